"""Parameters of the recurrent forecasters, and the window they choose for a data set.

Design choices: a bound for every parameter, so that a wrong one is refused before any work is
done; what is left open follows from the season and from how long the training histories are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flts_ray.errors import ConfigError, DataError
from flts_ray.prepare.arrays import SeriesArrays

MIN_SEGMENTS, MAX_SEGMENTS = 8, 30
GLOBAL_DEFAULTS = MappingProxyType(
    {"hidden": 64, "dropout": 0.1, "lr": 2e-3, "batch": 128, "windows_per_epoch": 8192}
)
OWN_DEFAULTS = MappingProxyType(
    {"hidden": 16, "dropout": 0.0, "lr": 1e-2, "batch": 16, "windows_per_epoch": 256}
)
LONGEST = 720
"""Most steps of a lookback that nobody asked for, unless two seasons are longer."""
SPANS = 4
"""The training span holds at least this many times what the network reads."""


class Settings(BaseModel):
    """Parameters of a recurrent forecaster, their defaults and bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: Literal["global", "per_series"] = "global"
    """One network for all series, or a small one of its own for each, trained as one job."""
    lookback: int | None = Field(None, ge=2, le=100_000)
    """Past steps the network reads, rounded to whole segments; None: two seasons if half of the
    training span holds them, and for one network for all at least a quarter of it, up to 720."""
    segment: int | None = Field(None, ge=1, le=10_000)
    """Steps in a segment; None: about a quarter of a season, 8 to 30 segments in all."""
    hidden: int | None = Field(None, ge=1, le=4096)
    """None: 64, and 16 in a network of one series."""
    layers: int = Field(1, ge=1, le=8)
    dropout: float | None = Field(None, ge=0, lt=1)
    """None: 0.1, and none in a network of one series."""
    lr: float | None = Field(None, gt=0, le=1)
    """Highest learning rate; None: 0.002, and 0.01 in a network of one series."""
    weight_decay: float = Field(1e-2, ge=0)
    batch: int | None = Field(None, ge=1, le=65_536)
    """Windows in one gradient step; None: 128, and 16 in a network of one series."""
    epochs: int = Field(12, ge=1, le=10_000)
    patience: int = Field(3, ge=1)
    """Epochs without a better validation loss before training stops."""
    refit_epochs: int = Field(0, ge=0, le=10_000)
    """Epochs of training and validation windows after the best epoch was chosen; 0: none, which
    keeps the bands as calibrated. A few pay where the newest weeks are unlike the rest."""
    windows_per_epoch: int | None = Field(None, ge=1)
    """Windows of one epoch; None: 8,192, and 256 in a network of one series."""
    mean_weight: float = Field(0.1, ge=0)
    """Weight of the mean's Huber loss beside the quantiles' pinball loss."""
    average: float = Field(0.97, ge=0, lt=1)
    """Decay of the running mean of the weights, a gradient step; 0: no averaging."""
    centre: Literal["last", "mean"] = "last"
    """What is subtracted from a window."""
    skip: Literal["linear", "none"] = "linear"
    """Whether a ridge regression on the window is added to what the network says."""
    known_future: bool = True
    """Whether known-future covariates are read; calendar and holidays are in any case."""
    past: bool = False
    """Whether past covariates are read: they help some series and mislead in others, so that a
    study should try both."""
    max_lags: int = Field(720, ge=1, le=4096)
    """Most steps the ridge regression reads."""

    def settled(self, lookback: int, segment: int) -> Settings:
        """The same with a value for everything that was left open."""
        own = self.group == "per_series"
        defaults = OWN_DEFAULTS if own else GLOBAL_DEFAULTS
        opened = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update={**opened, "lookback": lookback, "segment": segment})


def settings_of(kind: str, params: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"models.{kind}.params.{first['loc'][0]}: {first['msg']} (value: {first['input']!r})"
        ) from None


def geometry(kind: str, settings: Settings, data: SeriesArrays, horizon: int) -> tuple[int, int]:
    """Lookback and segment: what the parameters say, else what season and training allow."""
    season = data.contract.season
    longest = int(data.train_end.max(initial=0)) - horizon
    lookback = settings.lookback
    if lookback is None:
        typical = int(np.median(data.train_end)) - horizon if data.n_series else 0
        room = max(typical, longest // 2)
        most = LONGEST if settings.group == "global" else 0
        whole = min(most, room // SPANS) // season * season
        wanted = max(whole, 2 * season, horizon, 16, 2 * (settings.segment or 0))
        lookback = max(2, min(wanted, room // 2))
    if longest < lookback:
        raise no_window(kind, lookback, horizon, data)
    segment = settings.segment or _segment(lookback, season, horizon)
    if segment > longest:
        raise ConfigError(
            f"models.{kind}.params.segment: {segment} steps do not fit into the longest training "
            f"history of {longest} steps; choose at most {longest}"
        )
    up = -(-lookback // segment) * segment
    return (up if up <= longest else longest // segment * segment), segment


def _segment(lookback: int, season: int, horizon: int) -> int:
    """About a quarter season, 8 to 30 segments in a lookback, a divisor of it if one is near."""
    least = -(-lookback // MAX_SEGMENTS)
    most = max(least, lookback // MIN_SEGMENTS)
    most = max(least, min(most, horizon))
    aim = min(max(round(season / 4), least), most)
    whole = [w for w in range(least, most + 1) if lookback % w == 0]
    near = [w for w in whole if aim / 2 <= w <= 2 * aim]
    return min(near, key=lambda w: (abs(w - aim), w)) if near else aim


def no_window(kind: str, lookback: int, horizon: int, data: SeriesArrays) -> DataError:
    longest = int(data.train_end.max(initial=0))
    return DataError(
        f"{kind}: no training window fits: {lookback} past steps and {horizon} to forecast need "
        f"{lookback + horizon} training steps in a row without a long gap, the longest series "
        f"has {longest}; shorten models.{kind}.params.lookback or task.horizon, or give longer "
        "series",
        field="y",
    )
