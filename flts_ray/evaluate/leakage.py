"""Does a forecast use anything it could not have known? Change the future, forecast again.

Design choices: the set is changed in place and put back, so that a model which kept a reference
to its arrays is seen as well as one that reads beyond the origin in its windows (arrays that
cannot be written are copied first: a model restored from its artifact holds no reference to
them anyway); "the future" is every step of every series at or after the origin's instant, so
that a look at a neighbour is seen; instants are visited from late to early, so that each row is
changed once a way and not once an origin; only calls of equal batch shape are compared, because
matrix products of another shape may round differently.

Limits: `leakage_audit` cannot see what a model copied while it was fitted. `fit_audit` can: it
fits twice, once with a changed test span, and compares the forecasts. Neither sees a choice made
outside the fit, such as parameters picked after a look at test scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError, FltsError
from flts_ray.evaluate.backtest import Origins, forecast_at, instant_text, instants_of
from flts_ray.models.base import Fitted, Forecast
from flts_ray.panel import to_local_us
from flts_ray.prepare.arrays import SeriesArrays

_WAYS = ("other values", "missing", "huge")
_HUGE = 1e30


@dataclass(frozen=True)
class AuditResult:
    """checked: windows looked at; first_violation: what was seen, None if passed."""

    passed: bool
    checked: int
    first_violation: str | None = None


def leakage_audit(
    fitted: Fitted, data: SeriesArrays, origins: Origins, seed: int = 0, max_origins: int = 32
) -> AuditResult:
    """Change values, observation marks and past covariates at and after the origin, and future
    covariates after the horizon; the forecasts of up to `max_origins` windows, drawn by `seed`,
    must stay identical in every bit.

    Also refuses a model that answers the same question differently twice, and one whose
    forecast depends on later windows of the same batch. Arrays of `data` that can be written
    are changed during the call and restored before it returns: nothing else may read them
    meanwhile. Raises DataError without origins, and what the model raises on unchanged data.
    """
    if not len(origins):
        raise DataError("leakage audit: no origins to look at; enlarge the test span")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(origins), min(max_origins, len(origins)), replace=False))
    live, sample = _writable(data, origins.part(chosen))
    audit = _Audit(fitted, live, sample, instants_of(live, sample), rng)
    violation = next(audit.violations(), None)
    return AuditResult(violation is None, len(sample), violation)


def fit_audit(
    fit: Callable[[SeriesArrays], Fitted], data: SeriesArrays, origins: Origins, seed: int = 0
) -> AuditResult:
    """Fit once on the data and once on a copy with another test span, and forecast `origins` of
    the unchanged data with both: the forecasts must be identical in every bit.

    fit: a deterministic fit, for example `lambda d: fit_fully(kind, d, task, params)`.
    """
    other = data.take(np.arange(data.n_series))
    _corrupt(other, other.valid_end, other.lengths, 0, "other values", np.random.default_rng(seed))
    clean = forecast_at(fit(data), data, origins)
    found = _first_change(clean, forecast_at(fit(other), data, origins), np.arange(len(origins)))
    reason = None if found is None else f"{found} when the test span is changed before the fit"
    return AuditResult(reason is None, len(origins), reason)


@dataclass(frozen=True)
class _Audit:
    fitted: Fitted
    data: SeriesArrays
    sample: Origins
    origin_us: np.ndarray
    rng: np.random.Generator

    def violations(self) -> Iterator[str]:
        everyone = np.arange(len(self.sample))
        clean = self.forecast(everyone)
        again = _first_change(clean, self.forecast(everyone), everyone)
        if again:
            yield f"{again} between two equal calls: the model is not deterministic"
        yield from self.later_windows(clean)
        groups = [np.flatnonzero(self.origin_us == t) for t in np.unique(self.origin_us)[::-1]]
        references = [self.forecast(rows) for rows in groups]
        for way in _WAYS:
            with _restored(self.data, self.first_rows(int(self.origin_us.min()))):
                upto = self.data.lengths
                for rows, reference in zip(groups, references, strict=True):
                    since = self.first_rows(int(self.origin_us[rows[0]]))
                    self.corrupt(since, upto, way)
                    upto = since
                    yield from self.changes(reference, rows, rows, f"become {way}")

    def later_windows(self, clean: Forecast) -> Iterator[str]:
        """The whole sample as one batch, in which only the later windows are changed."""
        middle = int(np.sort(self.origin_us)[(len(self.sample) - 1) // 2])
        since = self.first_rows(middle)
        with _restored(self.data, since):
            self.corrupt(since, self.data.lengths, "other values")
            early = np.flatnonzero(self.origin_us <= middle)
            everyone = np.arange(len(self.sample))
            yield from self.changes(clean, everyone, early, "change in later windows of the batch")

    def changes(
        self, reference: Forecast, rows: np.ndarray, watched: np.ndarray, what: str
    ) -> Iterator[str]:
        """Forecast `rows` of the sample again; a sentence if a `watched` one is different."""
        try:
            found = _first_change(reference, self.forecast(rows), np.searchsorted(rows, watched))
        except (FltsError, ValueError, ArithmeticError) as error:
            found = f"{self.place(int(watched[0]))}: the forecast fails ({error})"
        if found:
            yield f"{found} when values at and after the origin {what}"

    def forecast(self, rows: np.ndarray) -> Forecast:
        return forecast_at(self.fitted, self.data, self.sample.part(rows))

    def place(self, row: int) -> str:
        return _place(self.data.ids[int(self.sample.series[row])], int(self.origin_us[row]))

    def corrupt(self, since: np.ndarray, upto: np.ndarray, way: str) -> None:
        _corrupt(self.data, since, upto, self.fitted.spec.task.horizon, way, self.rng)

    def first_rows(self, instant_us: int) -> np.ndarray:
        """First step at or after an instant, int64 [series], the length where there is none."""
        contract = self.data.contract
        start, at = self.data.start_us, np.array([instant_us])
        if contract.frequency.wall_clock:
            start, at = (to_local_us(x, contract.time_zone) for x in (start, at))
        steps = -((start - at) // contract.frequency.step_us)
        return np.clip(steps, 0, self.data.lengths)


def _corrupt(
    data: SeriesArrays,
    since: np.ndarray,
    upto: np.ndarray,
    horizon: int,
    way: str,
    rng: np.random.Generator,
) -> None:
    """Overwrite positions [since, upto) of every series, and `future` `horizon` steps later."""
    rows, series = _ranges(data, since, upto)
    ahead, _ = _ranges(data, since + horizon, upto + horizon)
    if way == "other values":
        spread = data.stats.std[series] + data.stats.scale[series]
        data.y[rows] = data.stats.mean[series] + spread * rng.standard_normal(len(rows))
        data.observed[rows] = rng.random(len(rows)) < 0.5
        data.past[rows] = rng.standard_normal((len(rows), data.past.shape[1]))
        data.future[ahead] = rng.standard_normal((len(ahead), data.future.shape[1]))
        return
    value = np.nan if way == "missing" else _HUGE
    data.y[rows], data.observed[rows], data.past[rows] = value, way == "huge", value
    data.future[ahead] = value


def _ranges(
    data: SeriesArrays, since: np.ndarray, upto: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of positions [since, upto) within each series, and the series of each row."""
    since, upto = np.minimum(since, data.lengths), np.minimum(upto, data.lengths)
    counts = np.maximum(upto - since, 0)
    series = np.repeat(np.arange(data.n_series), counts)
    within = np.arange(len(series)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (data.offsets[:-1] + since)[series] + within, series


@contextmanager
def _restored(data: SeriesArrays, since: np.ndarray) -> Iterator[None]:
    """Put back everything at and after `since` when the block is left."""
    rows, _ = _ranges(data, since, data.lengths)
    kept = [(array, array[rows]) for array in (data.y, data.observed, data.past, data.future)]
    try:
        yield
    finally:
        for array, values in kept:
            array[rows] = values


def _writable(data: SeriesArrays, sample: Origins) -> tuple[SeriesArrays, Origins]:
    """The set itself where it can be written, else a copy of the sampled series alone."""
    arrays = (data.y, data.observed, data.past, data.future)
    if all(array.flags.writeable for array in arrays):
        return data, sample
    series, position = np.unique(sample.series, return_inverse=True)
    return data.take(series), Origins(position.astype(np.int64), sample.positions)


def _first_change(before: Forecast, after: Forecast, watched: np.ndarray) -> str | None:
    was, now = _values(before), _values(after)
    differs = was.view(np.uint64) != now.view(np.uint64)
    changed = watched[differs[watched].any(axis=(1, 2))]
    if not len(changed):
        return None
    row = int(changed[0])
    step, column = (int(at[0]) for at in np.nonzero(differs[row]))
    name = f"level {before.levels[column - 1]:g}" if column else "mean"
    return (
        f"{_place(before.ids[row], int(before.origin_us[row]))}: the forecast changes ({name} at "
        f"step {step + 1}: {float(was[row, step, column])!r}, then "
        f"{float(now[row, step, column])!r})"
    )


def _values(forecast: Forecast) -> np.ndarray:
    """Mean and quantiles side by side, float64 [n, H, 1 + Q]."""
    both = np.concatenate([forecast.mean[..., None], forecast.quantiles], axis=-1)
    return np.ascontiguousarray(both, np.float64)


def _place(series: str, origin_us: int) -> str:
    return f"series {series} at origin {instant_text(origin_us)}"
