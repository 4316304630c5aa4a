"""Parameters of the linear model: what may be written, and what follows from the data.

Design choices: every default is a rule about the season and the length of the series, so that one
configuration serves half-hourly load and two-minute traffic; a setting may be a list or `auto`,
because one fit tries them all on the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flts_ray.errors import ConfigError
from flts_ray.models.ar_features import Layout
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.calendar import shown_columns

LONGEST_DENSE = 336
SHORTEST_DENSE = 28
MOST_SEASONS = 7
LONGEST_REACH = 720
SPANS = 4
"""The training span holds at least this many times what a long map sees."""


class Settings(BaseModel):
    """Parameters of one fit; a single number stands for a list of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lags: int | tuple[int, ...] | None = None
    """Recent steps to look at, or a list of lags; None: two seasons, at most 336 steps."""
    seasons: int | None = Field(None, ge=0)
    """Seasonal lags; None: as many as fit 336 steps, one at least and seven at most."""
    ridge: tuple[float, ...] = (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Penalties to choose from, in units of the windows' correlations."""
    reach: int | None = Field(None, ge=0)
    """Steps seen by the maps that are shrunk towards the season; None: a quarter of the training
    span, at most 720, and none where `lags` says how far to look; 0: no such maps."""
    pooling: Literal["auto", "global", "per_series"] = "auto"
    """One map for all series, or one of its own for each with enough windows."""
    calendar: Literal["auto"] | bool = "auto"
    max_windows: int = Field(100_000, ge=1)
    """Most training windows of all series together."""

    @field_validator("ridge", "lags", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("ridge", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (float(value),) if isinstance(value, int | float) else value

    @field_validator("ridge")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < penalty < np.inf for penalty in value):
            raise ValueError("every penalty must be positive, and there must be one at least")
        return value

    @field_validator("lags")
    @classmethod
    def _lags(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if value is not None and (value == () or np.min(value) < 1):
            raise ValueError("lags are whole numbers of steps from 1")
        return value


def settings_of(params: Mapping[str, Any]) -> Settings:
    """Validated parameters. Raises ConfigError naming the parameter and its value."""
    try:
        return Settings.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"models.ar.params.{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')} "
            f"(value: {first['input']!r})"
        ) from None


def layout_of(data: SeriesArrays, horizon: int, settings: Settings) -> Layout:
    """The features that these series have room for."""
    season, contract = data.contract.season, data.contract
    room = float(np.median(data.train_end))
    if room < horizon + 4:
        room = float(np.max(data.train_end, initial=0))
    bound = max(2, int(room - horizon) // 2)
    dense = settings.lags
    if dense is None:
        dense = min(max(2 * season, SHORTEST_DENSE), LONGEST_DENSE, bound)
    lags = tuple(range(1, dense + 1)) if isinstance(dense, int) else tuple(sorted({*dense}))
    seasons = settings.seasons
    if seasons is None:
        fitting = min(max(LONGEST_DENSE // season, 1), MOST_SEASONS, bound // season)
        seasons = fitting if season > 1 else 0
    known = data.future[_training_rows(data), len(contract.calendar) :].astype(np.float64)
    given = np.isfinite(known)
    count = np.maximum(given.sum(axis=0), 1)
    center = np.where(given, known, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(given, (known - center) ** 2, 0.0).sum(axis=0) / count)
    return Layout(
        lags=tuple(lag for lag in lags if lag > 1),
        seasons=seasons,
        lookback=max(lags[-1], seasons * season, 2),
        horizon=horizon,
        season=season,
        calendar=contract.calendar,
        center=center,
        spread=np.where(spread > 0, spread, 1.0),
        shown=shown_columns(contract.calendar, contract.freq, int(data.train_end.max(initial=0))),
    )


def reach_of(data: SeriesArrays, layout: Layout, settings: Settings) -> int:
    """Steps that the long maps see, 0 where there shall be none."""
    if settings.reach is not None:
        return settings.reach if settings.reach >= 2 else 0
    if settings.lags is not None:
        return 0
    room = float(np.median(data.train_end)) - layout.horizon
    reach = min(LONGEST_REACH, int(room) // SPANS)
    return reach if reach > layout.season + 1 else 0


def _training_rows(data: SeriesArrays) -> np.ndarray:
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    return position < np.repeat(data.train_end, data.lengths)
