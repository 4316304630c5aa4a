"""Prophet, one fit a series, many series side by side.

Design choices: Stan runs while fitting only, forecasts are `prophet_curve.evaluate`; Prophet
looks at the clock and not at the last values, so its forecast is corrected by what it has missed
of late (`prophet_level.py`); quantiles come from validation residuals, not from Prophet's
simulation, so they cost nothing and are calibrated; a series that Stan cannot fit falls back to
its training mean and is counted in the metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from flts_ray.errors import DataError
from flts_ray.models.base import (
    Compute,
    Fitted,
    Forecast,
    ModelSpec,
    Progress,
    Task,
    check_same_set,
)
from flts_ray.models.base import resolve_params as resolve
from flts_ray.models.calibrate import (
    ResidualQuantiles,
    check_lookback,
    known_rows,
    residual_quantiles,
    sample_origins,
    scaled_pinball,
    series_scale,
)
from flts_ray.models.prophet_curve import Curves, Seasonality, evaluate
from flts_ray.models.prophet_level import (
    Correction,
    candidates,
    default_windows,
    fit_correction,
)
from flts_ray.panel import US_PER_DAY, Contract, steps_after, to_local_us
from flts_ray.prepare.arrays import (
    SeriesArrays,
    SeriesStats,
    Windows,
    actuals_at,
    widened,
    windows_at,
)

YEARS_FOR_YEARLY = 2
MAX_VALIDATION_WINDOWS = 2000
KEPT_WINDOWS = 0.9
"""Share of the validation windows that a longer lookback must keep."""
DEFAULT_ORDERS = {"daily": (1.0, 6), "weekly": (7.0, 4), "yearly": (365.25, 8)}


def seasonalities_for(contract: Contract, longest_steps: int) -> tuple[Seasonality, ...]:
    """Cycles that the step and the longest training span can show: daily, weekly, yearly."""
    step = contract.frequency.step_us
    days = longest_steps * step / US_PER_DAY
    wanted = {
        "daily": step < US_PER_DAY and days >= 2,
        "weekly": step < 7 * US_PER_DAY and days >= 14,
        "yearly": days >= YEARS_FOR_YEARLY * 365,
    }
    return tuple(
        Seasonality(name, *DEFAULT_ORDERS[name]) for name, present in wanted.items() if present
    )


def regressor_columns(contract: Contract) -> list[int]:
    """Positions in a `future` array that Prophet gets: holidays and known-future covariates."""
    return [
        i
        for i, name in enumerate(contract.future)
        if name not in contract.calendar or name == "holiday"
    ]


@dataclass(frozen=True)
class FittedProphet:
    spec: ModelSpec
    stats: SeriesStats
    seasonalities: tuple[Seasonality, ...]
    curves: Curves
    correction: Correction
    band: ResidualQuantiles

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; only series it was fitted on."""
        rows = self.known(windows)
        mean = self.point(windows)
        scale = series_scale(windows.last(self.spec.lookback), self.stats)
        quantiles = self.band.apply(mean, scale, rows)
        return Forecast(windows.ids, windows.origin_us, self.spec.task.levels, mean, quantiles)

    def known(self, windows: Windows) -> np.ndarray:
        """Row of each window's series. Raises DataError for a series it was not fitted on."""
        rows = known_rows(windows.ids, self.stats)
        if (rows < 0).any():
            name = windows.ids[int(np.argmax(rows < 0))]
            raise DataError(
                f"unique_id: prophet knows only the series it was fitted on, not {name!r}; send "
                "the id of a known series, or train again with this series",
                field="unique_id",
            )
        return rows

    def point(self, windows: Windows) -> np.ndarray:
        """Corrected curve, float64 [n, H]."""
        check_lookback(windows, self.spec.lookback)
        windows = windows.last(self.spec.lookback)
        curve = self.curve(windows)
        back = windows.y - curve[:, : self.spec.lookback]
        return curve[:, self.spec.lookback :] + self.correction.apply(back)

    def curve(self, windows: Windows) -> np.ndarray:
        """The uncorrected curve over lookback and horizon: float64 [n, L + H]."""
        steps = np.arange(-windows.lookback, windows.horizon)
        wall = to_local_us(
            steps_after(windows.origin_us[:, None], steps, self.spec.contract),
            self.spec.contract.time_zone,
        )
        columns = regressor_columns(self.spec.contract)
        curve = np.empty(wall.shape)
        known = self.known(windows)
        for index in np.unique(known):
            rows = known == index
            # Rolling windows overlap, so each instant is evaluated once. A repeated wall-clock
            # hour may carry other regressor values, hence the row of values in the key.
            values = windows.future[rows][..., columns].reshape(wall[rows].size, len(columns))
            key = np.column_stack([wall[rows].ravel().astype(np.float64), values])
            unique, inverse = np.unique(key, axis=0, return_inverse=True)
            curve[rows] = evaluate(
                self.curves,
                int(index),
                unique[:, 0].astype(np.int64),
                unique[:, 1:],
                self.seasonalities,
                self.spec.params["seasonality_mode"] == "multiplicative",
            )[inverse.ravel()].reshape(int(rows.sum()), -1)
        return curve

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        correction = self.correction
        values: dict[str, Any] = {
            "seasonalities": [[s.name, s.period, s.order] for s in self.seasonalities],
            "level_window": correction.window,
            "phase_cycles": correction.cycles,
        }
        curves = {f"curve_{name}": array for name, array in self.curves.arrays().items()}
        shares = {"level_share": correction.level, "phase_share": correction.phase}
        return values, curves | self.band.arrays() | shares


class ProphetPerSeries:
    kind = "prophet"
    iterative = False
    defaults: Mapping[str, Any] = {
        "changepoint_prior_scale": 0.05,
        "seasonality_prior_scale": 10.0,
        "seasonality_mode": "additive",
        "n_changepoints": 25,
        "max_history": 20_000,
        "level_windows": None,
    }

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        chosen = resolve(self, params)
        seasonalities = seasonalities_for(data.contract, int(data.train_end.max(initial=0)))
        rows, failed = _fit_all(data, seasonalities, chosen, compute)
        fitted, loss = correct_level(data, task, chosen, seasonalities, stack(rows))
        yield Progress(1, {"valid_loss": loss, "failed_series": float(len(failed))}, fitted)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedProphet:
        """Curves of both spans with the same cycles; see `Forecaster.refit`.

        A series that Stan cannot fit now keeps the curve it had.
        """
        assert isinstance(fitted, FittedProphet)
        check_same_set(fitted, data)
        params = fitted.spec.params
        rows, failed = _fit_all(widened(data), fitted.seasonalities, params, compute)
        for series in failed:
            rows[series] = {k: v[series] for k, v in fitted.curves.arrays().items()}
        return replace(fitted, curves=stack(rows))

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        curves = {k[6:]: v for k, v in arrays.items() if k.startswith("curve_")}
        return FittedProphet(
            spec,
            stats,
            tuple(Seasonality(*raw) for raw in values["seasonalities"]),
            Curves(**curves),
            Correction(
                int(values["level_window"]),
                int(values["phase_cycles"]),
                spec.contract.season,
                arrays["level_share"],
                arrays["phase_share"],
            ),
            ResidualQuantiles.from_arrays(arrays),
        )


def _fit_all(
    data: SeriesArrays,
    seasonalities: tuple[Seasonality, ...],
    params: Mapping[str, Any],
    compute: Compute,
) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    """A row of `Curves` for each series, and which series Stan could not fit."""
    with ThreadPoolExecutor(max(1, compute.threads)) as pool:
        fits = list(
            pool.map(lambda i: fit_series(data, i, seasonalities, params), range(data.n_series))
        )
    failed = [series for series, (_, reason) in enumerate(fits) if reason is not None]
    if failed:
        structlog.get_logger().warning(
            "prophet_fallback", series=len(failed), of=data.n_series, first=fits[failed[0]][1]
        )
    return [curve for curve, _ in fits], failed


def fit_series(
    data: SeriesArrays,
    series: int,
    seasonalities: tuple[Seasonality, ...],
    params: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], str | None]:
    """Fit one series. Returns its row of `Curves` and, if Stan failed, the reason."""
    from pandas import DataFrame, to_datetime

    first = int(data.offsets[series])
    end = int(data.train_end[series])
    steps = np.arange(max(0, end - int(params["max_history"])), end)
    steps = steps[data.observed[first + steps]]
    rows = first + steps
    instants = steps_after(data.start_us[series], steps, data.contract)
    wall = to_local_us(instants, data.contract.time_zone)
    y = np.clip(data.y[rows], data.stats.clip_lo[series], data.stats.clip_hi[series])
    regressors = data.future[rows][:, regressor_columns(data.contract)].astype(np.float64)
    frame = DataFrame({"ds": to_datetime(wall, unit="us"), "y": y})
    for column in range(regressors.shape[1]):
        frame[f"r{column}"] = regressors[:, column]
    try:
        return _run_prophet(frame, seasonalities, params), None
    except (RuntimeError, ValueError) as error:
        return _flat(frame, seasonalities), f"{data.ids[series]}: {error}"


def _run_prophet(
    frame: Any, seasonalities: tuple[Seasonality, ...], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    for noisy in ("cmdstanpy", "prophet"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from prophet import Prophet

    model = Prophet(
        changepoint_prior_scale=params["changepoint_prior_scale"],
        seasonality_prior_scale=params["seasonality_prior_scale"],
        seasonality_mode=params["seasonality_mode"],
        n_changepoints=min(int(params["n_changepoints"]), max(0, len(frame) // 4)),
        daily_seasonality=False,
        weekly_seasonality=False,
        yearly_seasonality=False,
        uncertainty_samples=0,
    )
    for seasonality in seasonalities:
        model.add_seasonality(seasonality.name, seasonality.period, seasonality.order)
    names = [name for name in frame.columns if name not in ("ds", "y")]
    for name in names:
        model.add_regressor(name)
    model.fit(frame)
    parameters = model.params
    return {
        "start_us": np.asarray(model.start.value // 1000),
        "span_us": np.asarray(model.t_scale.value // 1000),
        "y_scale": np.asarray(model.y_scale),
        "k": np.asarray(parameters["k"]).reshape(()),
        "m": np.asarray(parameters["m"]).reshape(()),
        "delta": np.asarray(parameters["delta"]).ravel(),
        "changepoints": np.asarray(model.changepoints_t, dtype=np.float64).ravel(),
        "beta": np.asarray(parameters["beta"]).ravel(),
        "regressor_mean": np.asarray([model.extra_regressors[n]["mu"] for n in names], float),
        "regressor_std": np.asarray([model.extra_regressors[n]["std"] for n in names], float),
    }


def _flat(frame: Any, seasonalities: tuple[Seasonality, ...]) -> dict[str, np.ndarray]:
    """A constant curve at the training mean."""
    n_regressors = frame.shape[1] - 2
    columns = 2 * sum(s.order for s in seasonalities) + n_regressors
    return {
        "start_us": np.asarray(0),
        "span_us": np.asarray(1),
        "y_scale": np.asarray(1.0),
        "k": np.asarray(0.0),
        "m": np.asarray(float(frame["y"].mean())),
        "delta": np.zeros(0),
        "changepoints": np.zeros(0),
        "beta": np.zeros(columns),
        "regressor_mean": np.zeros(n_regressors),
        "regressor_std": np.ones(n_regressors),
    }


def stack(fits: list[dict[str, np.ndarray]]) -> Curves:
    """Rows of single fits as arrays; changepoints are zero-padded to the most any series has."""
    width = max((len(fit["delta"]) for fit in fits), default=0)

    def padded(name: str, fit: dict[str, np.ndarray]) -> np.ndarray:
        row = fit[name]
        if name in ("delta", "changepoints"):
            # Prophet keeps one dummy change of rate zero where it placed no changepoint.
            row = row[: min(len(fit["delta"]), len(fit["changepoints"]))]
            return np.pad(row, (0, width - len(row)))
        return row

    return Curves(**{name: np.stack([padded(name, fit) for fit in fits]) for name in fits[0]})


def _validation(
    data: SeriesArrays, horizon: int, lookbacks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Validation windows, and the longest lookback that costs few of them and no series.

    Where gaps are many, a long lookback would judge by the few windows that have none.
    """
    base, shortest = 0, min(lookbacks)
    found = None
    for lookback in sorted({*lookbacks}):
        series, origins = sample_origins(
            data, "validation", lookback, horizon, MAX_VALIDATION_WINDOWS
        )
        if found is None:
            base, kept = len(series), len(np.unique(series))
        elif len(series) < KEPT_WINDOWS * base or len(np.unique(series)) < kept:
            break
        found = series, origins, lookback
    if not base or found is None:
        raise DataError(
            f"prophet: no validation window of {shortest} + {horizon} steps without gaps; "
            "shorten task.horizon or enlarge split.validation",
            field="task.horizon",
        )
    return found


def correct_level(
    data: SeriesArrays,
    task: Task,
    params: Mapping[str, Any],
    seasonalities: tuple[Seasonality, ...],
    curves: Curves,
) -> tuple[FittedProphet, float]:
    """Choose the correction on validation; calibrate the bands.

    Returns the fitted model and its scaled validation pinball loss. Raises DataError without a
    validation window.
    """
    season = data.contract.season
    windows_tried = tuple(params["level_windows"] or default_windows(season))
    longest = int(np.median(data.train_end)) // 4
    pairs = list(candidates(windows_tried, season, max(longest, min(windows_tried))))
    series, origins, lookback = _validation(
        data, task.horizon, [max(window, cycles * season) for window, cycles in pairs]
    )
    pairs = [pair for pair in pairs if max(pair[0], pair[1] * season) <= lookback]
    actual = actuals_at(data, series, origins, task.horizon)
    windows = windows_at(data, series, origins, lookback, task.horizon)
    none = Correction(1, 0, season, np.zeros(task.horizon), np.zeros(task.horizon))
    no_band = ResidualQuantiles(np.zeros((0, 0)), np.zeros((0, 0, 0)), np.zeros(0, np.int64))
    spec = ModelSpec("prophet", task, lookback, data.contract, {**params}, True)
    plain = FittedProphet(spec, data.stats, seasonalities, curves, none, no_band)
    curve, scale = plain.curve(windows), series_scale(windows, data.stats)
    missed, ahead = windows.y - curve[:, :lookback], curve[:, lookback:]
    tried = [(window, cycles, season) for window, cycles in pairs]
    correction, _ = fit_correction(missed, actual - ahead, scale, tried)
    mean = ahead + correction.apply(missed)
    band = residual_quantiles(actual, mean, scale, series, task.levels)
    loss = scaled_pinball(actual, band.apply(mean, scale, series), scale, task.levels)
    spec = replace(spec, lookback=correction.lookback)
    return FittedProphet(spec, data.stats, seasonalities, curves, correction, band), loss
