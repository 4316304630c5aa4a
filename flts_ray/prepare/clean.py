"""One raw series onto its regular grid: snapping, duplicates, gaps, covariates.

Design choices: every step of the result depends on rows up to that step only. In particular a
gap is filled from its left and up to `max_gap` steps whatever its final length, because the
length of a gap is not known at an origin inside it; a longer gap keeps its rest missing. A row
without a value that should have been known beforehand is refused, not made up. A series that
cannot be used raises `Rejected`, which the kernel turns into a quarantine row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flts_ray.config import PrepareConfig
from flts_ray.panel import Contract, from_local_us, to_local_us

# Calendars, pandas and Prophet count in this range.
EARLIEST_US = int(np.datetime64("1678-01-01", "us").astype(np.int64))
LATEST_US = int(np.datetime64("2262-01-01", "us").astype(np.int64))


class Rejected(Exception):
    """A series that goes to the quarantine: `code` for counting, `reason` for the reader."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


@dataclass(frozen=True)
class RawSeries:
    """Rows of one series in reading order.

    ds_us: int64 [n] UTC; dated: bool [n], False where the stamp is missing; y: float64 [n], NaN
    where missing, may hold infinities; is_test: bool [n]; covariates: float64 [n, C].
    """

    ds_us: np.ndarray
    dated: np.ndarray
    y: np.ndarray
    is_test: np.ndarray
    covariates: np.ndarray

    def take(self, index: np.ndarray) -> RawSeries:
        names = ("ds_us", "dated", "y", "is_test", "covariates")
        return RawSeries(*(getattr(self, name)[index] for name in names))


@dataclass(frozen=True)
class Repairs:
    """How much of one series was repaired: rows, except `imputed` and `missing`: grid steps."""

    undated: int = 0
    unsorted: int = 0
    snapped: int = 0
    duplicates: int = 0
    non_finite: int = 0
    imputed: int = 0
    missing: int = 0


@dataclass(frozen=True)
class GridSeries:
    """One series on its grid, from its first to its last observed step.

    start_us: UTC instant of step 0; y: float64 [steps]; observed: bool [steps]; covariates:
    float32 [steps, C]; test_start: step of the first row of a test file, None without one.
    """

    start_us: int
    y: np.ndarray
    observed: np.ndarray
    covariates: np.ndarray
    test_start: int | None
    repairs: Repairs


def lay_on_grid(
    raw: RawSeries, contract: Contract, policy: PrepareConfig, known_ahead: np.ndarray
) -> GridSeries:
    """Repair one series. known_ahead: bool [C], True for known-future covariates.

    Raises Rejected with code no_valid_rows, time_range, duplicates, not_finite, missing or
    missing_future.
    """
    frequency = contract.frequency
    zone = contract.time_zone if frequency.wall_clock else "UTC"
    rows, repairs = _in_time_order(raw)
    anchor, steps, snapped = snap(to_local_us(rows.ds_us, zone), frequency.step_us)
    infinite = np.isinf(rows.y)
    clean = np.where(infinite, np.nan, rows.y)
    unique, values = merge_duplicates(steps, clean, policy.duplicates == "mean")
    repeated = len(steps) - len(unique)
    if repeated and policy.duplicates == "quarantine":
        raise Rejected(
            "duplicates", f"{repeated} repeated stamps; set prepare.duplicates to last or mean"
        )
    first, y = _spread(unique, values, policy)
    observed = ~np.isnan(y)
    y = impute(y, contract.season, policy.max_gap)
    grid = np.arange(first, first + len(y))
    if policy.missing_future == "quarantine":
        _check_ahead(rows.ds_us, steps, grid, rows.covariates[:, known_ahead], contract)
    repairs = replace(
        repairs,
        snapped=snapped,
        duplicates=repeated,
        non_finite=int(infinite.sum()),
        imputed=int((~observed & ~np.isnan(y)).sum()),
        missing=int(np.isnan(y).sum()),
    )
    start = from_local_us(np.array([anchor + first * frequency.step_us]), zone)
    return GridSeries(
        start_us=int(start[0]),
        y=y,
        observed=observed,
        covariates=_carry_all(steps, rows.covariates, grid, known_ahead),
        test_start=max(int(steps[rows.is_test].min()) - first, 0) if rows.is_test.any() else None,
        repairs=repairs,
    )


def _check_ahead(
    ds_us: np.ndarray, steps: np.ndarray, grid: np.ndarray, ahead: np.ndarray, contract: Contract
) -> None:
    """Raise Rejected where every row of a step lacks the value of a known-future column.

    ds_us, steps: int64 [n], rising; ahead: float64 [n, K] in the contract's order. A step of the
    grid without any row is a gap, and its columns are carried on as its target is.
    """
    inside = (steps >= grid[0]) & (steps <= grid[-1])
    told = np.isfinite(ahead[inside])
    if told.all():
        return
    steps, stamps = steps[inside], ds_us[inside]
    begin = np.flatnonzero(np.append(True, steps[1:] != steps[:-1]))
    lacking = ~np.logical_or.reduceat(told, begin, axis=0)
    if not lacking.any():
        return
    column = int(np.argmax(lacking.any(axis=0)))
    at = begin[lacking[:, column]]
    since = np.datetime_as_string(stamps[at[0]].astype("datetime64[us]"), "s", "UTC")
    more = f" and at {len(at) - 1} more" if len(at) > 1 else ""
    name = contract.known_future[column]
    raise Rejected(
        "missing_future",
        f"known-future column {name} has no value at {since} (step {steps[at[0]] - grid[0]} of "
        f"{len(grid)}){more}; fill it in, give {name} the role past, or set "
        "prepare.missing_future to carry",
    )


def _in_time_order(raw: RawSeries) -> tuple[RawSeries, Repairs]:
    """Drop rows without a stamp and sort; rows of one stamp keep their reading order."""
    undated = int((~raw.dated).sum())
    rows = raw.take(np.flatnonzero(raw.dated)) if undated else raw
    if not len(rows.ds_us):
        raise Rejected("no_valid_rows", f"none of its {len(raw.dated)} rows has a time stamp")
    outside = (rows.ds_us < EARLIEST_US) | (rows.ds_us >= LATEST_US)
    if outside.any():
        stamp = np.datetime64(int(rows.ds_us[outside][0]), "us")
        raise Rejected("time_range", f"stamp {stamp} lies outside the years 1678 to 2261")
    unsorted = int((np.diff(rows.ds_us) < 0).sum())
    if unsorted:
        rows = rows.take(np.argsort(rows.ds_us, kind="stable"))
    return rows, Repairs(undated=undated, unsorted=unsorted)


def snap(time_us: np.ndarray, step_us: int) -> tuple[int, np.ndarray, int]:
    """Nearest grid step of each time on the grid through the most common phase.

    time_us: int64 [n]. Returns the phase (the lowest of equally common ones), int64 [n] steps
    counted from it, and how many times lay off the grid.
    """
    phases, counts = np.unique(time_us % step_us, return_counts=True)
    anchor = int(phases[counts.argmax()])
    shifted = time_us - anchor
    return anchor, (shifted + step_us // 2) // step_us, int((shifted % step_us != 0).sum())


def merge_duplicates(
    steps: np.ndarray, y: np.ndarray, mean: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One value a step: the last row's, or the mean of those that are not missing.

    steps: int64 [n], rising; y: float64 [n] in reading order within a step, NaN where missing.
    Returns the distinct steps and their values.
    """
    last = np.flatnonzero(np.append(steps[1:] != steps[:-1], True))
    if not mean or len(last) == len(steps):
        return steps[last], y[last]
    begin = np.append(0, last[:-1] + 1)
    total = np.add.reduceat(np.nan_to_num(y), begin)
    count = np.add.reduceat((~np.isnan(y)).astype(np.int64), begin)
    merged = np.full(len(last), np.nan)
    np.divide(total, count, out=merged, where=count > 0)
    return steps[last], merged


def _spread(steps: np.ndarray, values: np.ndarray, policy: PrepareConfig) -> tuple[int, np.ndarray]:
    """First observed step, and values on the whole grid from it to the last observed one."""
    finite = np.flatnonzero(~np.isnan(values))
    if not len(finite):
        raise Rejected("not_finite", f"none of its {len(values)} stamps has a finite value")
    first = int(steps[finite[0]])
    length = int(steps[finite[-1]]) - first + 1
    share = 1 - len(finite) / length
    # Judged before the grid exists: one stamp of a wrong year would make it huge.
    if share > policy.max_missing:
        raise Rejected(
            "missing",
            f"{share:.1%} of its {length} steps have no value, prepare.max_missing allows "
            f"{policy.max_missing:.0%}; check the stamps and data.frequency",
        )
    y = np.full(length, np.nan)
    y[steps[finite] - first] = values[finite]
    return first, y


def impute(y: np.ndarray, season: int, max_gap: int) -> np.ndarray:
    """Fill the first `max_gap` steps of each gap from what came before it.

    y: float64 [steps], NaN where missing. A filled step takes the value observed one season
    earlier, or else the last one observed before it. Returns a new array; steps deeper in a gap,
    and those before the first value, stay NaN.
    """
    position = np.arange(len(y))
    missing = np.isnan(y)
    last = np.maximum.accumulate(np.where(missing, -1, position))
    fill = np.flatnonzero(missing & (last >= 0) & (position - last <= max_gap))
    carried = y[last[fill]]
    earlier = np.where(fill >= season, y[np.maximum(fill - season, 0)], np.nan)
    filled = y.copy()
    filled[fill] = np.where(np.isnan(earlier), carried, earlier)
    return filled


def carry_forward(steps: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Latest finite value at or before each grid step, NaN before the first.

    steps: int64 [n], rising (the last row of a step wins); values: float64 [n]; grid: int64 [m].
    Returns float64 [m].
    """
    finite = np.isfinite(values)
    at = np.searchsorted(steps[finite], grid, side="right")
    return np.append(np.nan, values[finite])[at]


def _carry_all(
    steps: np.ndarray, covariates: np.ndarray, grid: np.ndarray, known_ahead: np.ndarray
) -> np.ndarray:
    """Covariates on the grid, float32 [m, C].

    Before its first value a known-future covariate takes that value (it was known), any other
    is 0 (nothing was).
    """
    laid = np.zeros((len(grid), covariates.shape[1]), dtype=np.float32)
    for column, ahead in enumerate(known_ahead):
        values = covariates[:, column]
        carried = carry_forward(steps, values, grid)
        finite = np.flatnonzero(np.isfinite(values))
        before = values[finite[0]] if ahead and len(finite) else 0.0
        laid[:, column] = np.where(np.isnan(carried), before, carried)
    return laid
