"""The interface of every model, and the registry of kinds.

Design choices: `fit` is a generator, because an iterative model can then be stopped after any
epoch without threads or callbacks, and a closed-form one simply yields once; a fitted model is
JSON plus named arrays, because then one module (`artifact.py`) can store all of them safely;
kinds are import strings, because a process that serves a linear model must not import torch.

A new model is one file with a `Forecaster` and one line in `KINDS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from flts_ray.errors import ConfigError, DataError
from flts_ray.models.spread import Spread, in_turn
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows
from flts_ray.prepare.covariates import check_ahead

KINDS: dict[str, str] = {
    "seasonal_naive": "flts_ray.models.seasonal_naive:SeasonalNaive",
    "ar": "flts_ray.models.ar:LinearAR",
    "gru": "flts_ray.models.recurrent:GRU",
    "lstm": "flts_ray.models.recurrent:LSTM",
    "prophet": "flts_ray.models.prophet:ProphetPerSeries",
}
COMPOSITES: dict[str, str] = {"blend": "flts_ray.models.blend:Blends"}
"""Kinds that are put together from fitted models; nothing fits them from parameters."""


@dataclass(frozen=True)
class Task:
    """What is forecast. `horizon` in steps; `levels` rise strictly within (0, 1)."""

    horizon: int
    levels: tuple[float, ...]


@dataclass(frozen=True)
class Compute:
    """What one fit may use. `threads` of this process; `device` as torch names it; `spread` runs
    parts of a fit elsewhere, None runs them in this process; `bands`: False leaves the bands as
    they are in an update, for members of a blend, whose bands are followed together."""

    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    spread: Spread | None = None
    bands: bool = True

    @property
    def over_parts(self) -> Spread:
        """What runs a function on many parts."""
        return self.spread or in_turn


@dataclass(frozen=True)
class Forecast:
    """Forecasts of n windows, H steps, Q levels, in the input's units.

    mean: float64 [n, H], the expected value. quantiles: float64 [n, H, Q], never crossing.
    """

    ids: tuple[str, ...]
    origin_us: np.ndarray
    levels: tuple[float, ...]
    mean: np.ndarray
    quantiles: np.ndarray

    def at(self, levels: tuple[float, ...]) -> np.ndarray:
        """Quantiles at any levels within the fitted ones, linear between them.

        Returns float64 [n, H, len(levels)]. Raises DataError for a level outside.
        """
        low, high = self.levels[0], self.levels[-1]
        outside = [q for q in levels if not low <= q <= high]
        if outside:
            raise DataError(
                f"quantiles: {outside} lie outside the champion's range; ask for levels "
                f"from {low} to {high}",
                field="quantiles",
            )
        known = np.asarray(self.levels)
        right = np.clip(np.searchsorted(known, levels), 1, len(known) - 1)
        weight = (np.asarray(levels) - known[right - 1]) / (known[right] - known[right - 1])
        below, above = self.quantiles[..., right - 1], self.quantiles[..., right]
        return np.asarray(np.where(weight == 1.0, above, below + (above - below) * weight))

    @property
    def median(self) -> np.ndarray:
        return self.at((0.5,))[..., 0]


@dataclass(frozen=True)
class ModelSpec:
    """The data contract inside an artifact: all that is needed to feed the model.

    `lookback` is the number of past steps `forecast` needs; `needs_known_series` is True for a
    model that can forecast only the series it was fitted on.
    """

    kind: str
    task: Task
    lookback: int
    contract: Contract
    params: Mapping[str, Any] = field(default_factory=dict)
    needs_known_series: bool = False


class Fitted(Protocol):
    """A model that can forecast. Deterministic: the same windows give the same bits."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def stats(self) -> SeriesStats: ...

    def forecast(self, windows: Windows) -> Forecast:
        """Forecast `spec.task.horizon` steps after each origin.

        windows: lookback at least `spec.lookback` (only the last steps are used), horizon equal
        to the task's. Raises DataError for a series it cannot forecast.
        """
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON-ready values and named arrays from which `Forecaster.restore` rebuilds it."""
        ...


@dataclass(frozen=True)
class Progress:
    """One step of a fit: `fitted` is the best model so far, `metrics` are finite numbers."""

    epoch: int
    metrics: dict[str, float]
    fitted: Fitted


class Restorer(Protocol):
    """Rebuilds fitted models of one kind."""

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        """Rebuild a fitted model from what `Fitted.state` gave."""
        ...


class Updater(Protocol):
    """Goes on with fitted models of one kind."""

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """Go on from where `fitted` stopped, with rows that came since, and with new series.

        data: a set of the same contract with more rows; spans may lie elsewhere. Learns from the
        rows between what the model has seen of a series and the test span, which is not read;
        windows are built for those rows alone, so the cost does not grow with the history.
        Settings and the scale of known series stay; bands follow the windows that the new rows
        complete, each scored before it is learned from. A model that takes any series knows the
        new ones afterwards. Deterministic; `fitted` is not changed, and is returned itself where
        nothing is new. Raises DataError for a set of another contract and for a model that does
        not tell how far it has seen.
        """
        ...


class Follower(Protocol):
    """Keeps the bands of fitted models of one kind up to date."""

    def follow(self, fitted: Fitted, data: SeriesArrays) -> Fitted:
        """The same forecasts with bands that know what was missed of late.

        As `Updater.update`, with the same steps of the bands, but nothing else is learned, so it
        costs forecasts of the new windows; a series never seen before stays new.
        """
        ...


class Forecaster(Restorer, Updater, Follower, Protocol):
    """Fits one kind of model.

    `defaults` names every parameter with its default value; an unknown parameter is a
    ConfigError before any work is done. `iterative` says that `fit` yields once an epoch.
    """

    kind: str
    iterative: bool
    defaults: Mapping[str, Any]

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        """Fit on the training span; the validation span may choose and calibrate.

        Reads nothing of the test span. Raises DataError when no training window fits.
        """
        ...

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """Learn again from the training and the validation span together.

        fitted: what `fit` or `restore` gave; data: the set it was fitted on, spans unchanged.
        Settings, statistics and calibration stay: they were chosen on windows that the refitted
        model has seen, which could not judge it any more. Reads nothing of the test span and is
        deterministic; `fitted` is not changed. Raises DataError for another set.
        """
        ...


def forecaster(kind: str) -> Forecaster:
    """The forecaster registered under `kind`. Raises ConfigError with a suggestion."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known kinds: {', '.join(KINDS)}"
        raise ConfigError(f"models.{kind}: unknown model kind{hint}")
    made: Forecaster = _made(KINDS[kind])
    return made


def restorer(kind: str) -> Restorer:
    """What rebuilds a stored model of any kind. Raises ConfigError with a suggestion."""
    if kind not in COMPOSITES:
        return forecaster(kind)
    made: Restorer = _made(COMPOSITES[kind])
    return made


def updater(kind: str) -> Updater:
    """What updates a model of any kind. Raises ConfigError with a suggestion."""
    if kind not in COMPOSITES:
        return forecaster(kind)
    made: Updater = _made(COMPOSITES[kind])
    return made


def follower(kind: str) -> Follower:
    """What keeps bands of any kind up to date. Raises ConfigError with a suggestion."""
    if kind not in COMPOSITES:
        return forecaster(kind)
    made: Follower = _made(COMPOSITES[kind])
    return made


def _made(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)()


def check_windows(spec: ModelSpec, windows: Windows) -> None:
    """Raise DataError unless the windows reach back far enough, ask for the task's horizon and
    hold what must be known of it."""
    horizon = spec.task.horizon
    if windows.lookback < spec.lookback or windows.horizon != horizon:
        raise DataError(
            f"{spec.kind} needs {spec.lookback} past steps and forecasts {horizon}; "
            f"the windows have {windows.lookback} and ask for {windows.horizon}",
            field="history",
        )
    check_ahead(windows)


def check_same_set(fitted: Fitted, data: SeriesArrays) -> None:
    """Raise DataError unless `data` holds the series and columns that `fitted` was fitted on."""
    if fitted.stats.ids == data.ids and fitted.spec.contract == data.contract:
        return
    raise DataError(
        f"{fitted.spec.kind}: the set has {data.n_series} series and is not the one this model "
        f"was fitted on ({len(fitted.stats.ids)} series); refit it on that one, or train again",
        field="unique_id",
    )


def resolve_params(model: Forecaster, params: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults overlaid with `params`. Raises ConfigError naming an unknown parameter."""
    unknown = set(params) - set(model.defaults)
    if unknown:
        name = sorted(unknown)[0]
        near = difflib.get_close_matches(name, model.defaults, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(model.defaults)}"
        raise ConfigError(f"models.{model.kind}.params.{name}: unknown parameter{hint}")
    return {**model.defaults, **params}


def fit_fully(
    kind: str,
    data: SeriesArrays,
    task: Task,
    params: Mapping[str, Any] | None = None,
    compute: Compute | None = None,
) -> Fitted:
    """Run a fit to its end and return the fitted model."""
    steps = list(forecaster(kind).fit(data, task, params or {}, compute or Compute()))
    return steps[-1].fitted
