"""The raw history of one request onto the grid: what the model sees of it.

Design choices: the repair functions of preparation are used as they are, so that a request and
a prepared table with the same rows give the same window; unlike there the last stamp defines
the origin even where its value is missing, because the caller asks for what follows it; only
the steps that the window can depend on are laid out, so one wrong year costs no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from flts_ray.errors import DataError
from flts_ray.panel import Contract, from_local_us, steps_after, to_local_us
from flts_ray.prepare.calendar import calendar_columns, calendar_features
from flts_ray.prepare.clean import (
    EARLIEST_US,
    LATEST_US,
    carry_forward,
    impute,
    merge_duplicates,
    snap,
)

MAX_MAGNITUDE = 1e30  # float32 arithmetic of a model overflows beyond
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class History:
    """The last L steps before an origin.

    origin_us: first step after the history. y: float64 [L], no NaN; observed: bool [L];
    known_future: float32 [L, K]; past: float32 [L, P].
    """

    origin_us: int
    y: np.ndarray
    observed: np.ndarray
    known_future: np.ndarray
    past: np.ndarray


@dataclass(frozen=True)
class RawHistory:
    """Rows of a request in their order. `field` is the request's path of this series.

    ds_us: int64 [n] UTC; y: float64 [n], NaN where missing; observed: bool [n]; covariates by
    column, float64 [n], NaN where missing.
    """

    field: str
    ds_us: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    known_future: Mapping[str, np.ndarray]
    past: Mapping[str, np.ndarray]


def parse_stamps(stamps: Sequence[str], time_zone: str, field: str) -> np.ndarray:
    """ISO 8601 stamps as int64 UTC microseconds; without an offset they are in `time_zone`.

    Raises DataError naming the first stamp that cannot be read.
    """
    naive = np.zeros(len(stamps), dtype=bool)
    found = np.zeros(len(stamps), dtype=np.int64)
    for i, text in enumerate(stamps):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise DataError(
                f"{field}[{i}]: {text[:40]!r} is no ISO 8601 stamp; write it like "
                "2024-01-31T13:30:00Z",
                field=f"{field}[{i}]",
            ) from None
        naive[i] = moment.tzinfo is None
        aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        found[i] = (aware - EPOCH) // MICROSECOND
    outside = np.flatnonzero((found < EARLIEST_US) | (found >= LATEST_US))
    if len(outside):
        at = f"{field}[{outside[0]}]"
        raise DataError(f"{at}: lies outside the years 1678 to 2261", field=at)
    found[naive] = from_local_us(found[naive], time_zone)
    return found


def numbers(values: Sequence[float | None] | np.ndarray, field: str) -> np.ndarray:
    """float64 with NaN for every missing or non-finite value. Raises DataError beyond 1e30."""
    found = np.array(values, dtype=np.float64)
    found[~np.isfinite(found)] = np.nan
    huge = np.flatnonzero(np.abs(found) > MAX_MAGNITUDE)
    if len(huge):
        at = f"{field}[{huge[0]}]"
        raise DataError(f"{at}: {found[huge[0]]:g} lies beyond {MAX_MAGNITUDE:g}", field=at)
    return found


def lay_history(raw: RawHistory, contract: Contract, lookback: int) -> History:
    """Sort, snap, merge duplicates (the last row wins) and fill gaps up to `contract.max_gap`.

    Raises DataError that says how many points are missing, or where a longer gap lies.
    """
    frequency = contract.frequency
    zone = contract.time_zone if frequency.wall_clock else "UTC"
    order = np.argsort(raw.ds_us, kind="stable")
    wall = to_local_us(raw.ds_us[order], zone)
    anchor, steps, _ = snap(wall, frequency.step_us)
    origin = int(steps[-1]) + 1
    reach = lookback + max(contract.season, contract.max_gap)
    grid = np.arange(origin - reach, origin)
    measured = np.where(raw.observed, raw.y, np.nan)[order]
    observed = ~np.isnan(_spread(steps, measured, grid))
    given = _spread(steps, raw.y[order], grid)
    y = impute(given, contract.season, contract.max_gap)
    window = slice(reach - lookback, None)
    start = from_local_us(np.array([anchor + origin * frequency.step_us]), zone)
    _check_complete(given, y, lookback, int(start[0]), raw.field, contract)
    ahead = _lay_columns(raw.known_future, contract.known_future, steps, order, grid[window])
    behind = _lay_columns(raw.past, contract.past, steps, order, grid[window], before=0.0)
    return History(int(start[0]), y[window], observed[window], ahead, behind)


def _spread(steps: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    unique, merged = merge_duplicates(steps, values)
    inside = unique >= grid[0]
    laid = np.full(len(grid), np.nan)
    laid[unique[inside] - grid[0]] = merged[inside]
    return laid


def _lay_columns(
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    steps: np.ndarray,
    order: np.ndarray,
    grid: np.ndarray,
    before: float | None = None,
) -> np.ndarray:
    """Columns on the grid, float32 [L, C]; before a first value: `before`, or that value."""
    laid = np.zeros((len(grid), len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        values = columns[name][order]
        finite = values[np.isfinite(values)]
        first = before if before is not None else (finite[0] if len(finite) else 0.0)
        carried = carry_forward(steps, values, grid)
        laid[:, i] = np.where(np.isnan(carried), first, carried)
    return laid


def _check_complete(
    given: np.ndarray, y: np.ndarray, lookback: int, origin_us: int, field: str, contract: Contract
) -> None:
    """Refuse a window (the last steps of `y`) with a hole. given: `y` before gaps were filled."""
    begin = len(y) - lookback
    holes = begin + np.flatnonzero(np.isnan(y[begin:]))
    if not len(holes):
        return
    values = np.flatnonzero(~np.isnan(given))
    first = int(values[0]) if len(values) else len(y)
    if holes[0] < first:
        raise DataError(
            f"{field}: needs {lookback} points at {contract.freq}, got {len(y) - first}: "
            f"{first - begin} are missing",
            field=field,
        )
    after = int(np.searchsorted(values, holes[0]))
    last = int(values[after]) - 1 if after < len(values) else len(y) - 1
    edges = np.array([values[after - 1] + 1, last]) - len(y)
    since, until = stamps_text(steps_after(np.asarray(origin_us), edges, contract))
    raise DataError(
        f"{field}: no value from {since} to {until}; gaps up to {contract.max_gap} steps are "
        "filled, send the values of this one",
        field=field,
    )


def calendar_of(ds_us: np.ndarray, contract: Contract) -> np.ndarray:
    """The contract's calendar columns at instants of any shape, float32 with one axis more."""
    if not contract.calendar:
        return np.zeros((*ds_us.shape, 0), dtype=np.float32)
    every = calendar_features(ds_us, contract.time_zone, contract.freq, contract.holidays)
    names = calendar_columns(contract.freq, contract.holidays)
    return every[..., [names.index(name) for name in contract.calendar]]


def stamps_text(ds_us: np.ndarray) -> list[str]:
    """ISO 8601 in UTC, in whole seconds where they are."""
    moments: npt.NDArray[np.datetime64] = ds_us.astype("datetime64[us]")
    whole = not (ds_us % 1_000_000).any()
    text = np.datetime_as_string(moments, unit="s" if whole else "us", timezone="UTC")
    found: list[str] = text.tolist()
    return found
