"""Rows of files as series of a bulk request, without Python for each point.

Design choices: a series is cut as `histories.py` cuts it: it ends at its last value, begins where
no window can depend on it any more, and what is known ahead is placed by its stamp; all series of
a table are cut at once, in arrays; a part of them whose histories have one length is one block,
which lies in memory as the model wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.errors import DataError, FltsError
from flts_ray.jobs.histories import About
from flts_ray.panel import Contract, steps_after
from flts_ray.serve.arrow_columns import whole
from flts_ray.serve.regular import Block
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.wire_bulk import Part

MIN_RUN = 4
"""Rows of a series that lie together on the average, or they are looked for anywhere."""
NO_VALUE = "y: every value is missing; without one there is nothing to forecast from"


@dataclass(frozen=True)
class _Sorted:
    """Rows by series and stamp. Rows of series i are `bounds[i]` to `bounds[i + 1]`.

    ds_us: int64 [rows]; columns, `y` among them: float64 [rows], NaN where missing.
    """

    ids: list[str]
    bounds: np.ndarray
    ds_us: np.ndarray
    columns: dict[str, np.ndarray]


class RawSeries:
    """The series of a table, sorted by name. See `BulkBody`.

    table: rows as `read_batches` gives them, in any order, with the columns of the contract.
    Raises DataError for a static column of the other kind than the model knows.
    """

    def __init__(self, table: pa.Table, about: About) -> None:
        self._contract = about.contract
        rows = _sorted(table, about.contract)
        self.ids = rows.ids
        self._ds_us = rows.ds_us
        self._columns = rows.columns
        self._end = _ends(rows)
        self._begin = _begins(rows, self._end, about)
        self._first = _first_values(rows, self._begin, about.contract)
        self._ahead = _ahead_rows(rows, self._end, about)
        self._static = {name: _static(rows, rows.columns[name]) for name in about.contract.static}

    @property
    def count(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> Part:
        """Some of the series: as one block where they are alike, else one by one."""
        every = np.arange(begin, min(end, self.count))
        empty = self._end[every] < 0
        refused: dict[int, FltsError] = {
            i: DataError(NO_VALUE, field="y") for i in np.flatnonzero(empty).tolist()
        }
        chosen = every[~empty]
        ids = [self.ids[i] for i in every.tolist()]
        lengths = self._end[chosen] - self._begin[chosen]
        told = all(np.isfinite(values[chosen]).all() for values in self._static.values())
        if len(chosen) and told and (lengths == lengths[0]).all():
            return Part(
                ids, self._block(chosen, int(lengths[0])), (chosen - begin).tolist(), refused
            )
        asked = [self._series(i) for i in chosen.tolist()]
        return Part(ids, asked, (chosen - begin).tolist(), refused)

    def _block(self, chosen: np.ndarray, length: int) -> Block:
        begin = self._begin[chosen]

        def laid(name: str) -> np.ndarray:
            values = _cut(self._columns[name], begin, length)
            if name in self._first:
                values = values.copy()
                values[:, 0] = self._first[name][chosen]
            return values

        contract = self._contract
        return Block(
            fields=[""] * len(chosen),
            ids=[self.ids[i] for i in chosen.tolist()],
            y=laid("y"),
            ds_us=_cut(self._ds_us, begin, length),
            known_future={
                name: np.concatenate([laid(name), self._known_ahead(name, chosen)], axis=1)
                for name in contract.known_future
            },
            past={name: laid(name) for name in contract.past},
            static={name: values[chosen] for name, values in self._static.items()},
        )

    def _series(self, i: int) -> AskedSeries:
        """One of them by itself; a static value that it lacks is not sent."""
        one = self._block(np.array([i]), int(self._end[i] - self._begin[i])).series(0)
        given = {name: value for name, value in one.static.items() if value == value}
        return AskedSeries(
            field="",
            id=one.id,
            named=True,
            ds=one.ds,
            y=one.y,
            known_future=one.known_future,
            past=one.past,
            static=given,
        )

    def _known_ahead(self, name: str, chosen: np.ndarray) -> np.ndarray:
        rows = self._ahead[chosen]
        return np.where(rows >= 0, self._columns[name][rows], np.nan)


def _cut(values: np.ndarray, begin: np.ndarray, length: int) -> np.ndarray:
    """Runs of `length` values from each row of `begin`: [n, length], a view where they are as far
    apart as the first two."""
    apart = int(begin[1] - begin[0]) if len(begin) > 1 else length
    if apart <= 0 or (np.diff(begin) != apart).any():
        return np.asarray(values[begin[:, None] + np.arange(length)])
    size = values.strides[0]
    return np.lib.stride_tricks.as_strided(
        values[begin[0] :], (len(begin), length), (apart * size, size), writeable=False
    )


def _sorted(table: pa.Table, contract: Contract) -> _Sorted:
    names = whole(table, "unique_id")
    numbers = ("y", *contract.known_future, *contract.past)
    columns = {name: table[name].to_numpy() for name in numbers}
    columns |= {name: _codes(table, name, contract) for name in contract.static}
    ds_us, place = table["ds"].cast(pa.int64()).to_numpy(), table["order"].to_numpy()
    found = _together(names, ds_us, place)
    ids, bounds, order = _anywhere(names, ds_us, place) if found is None else found
    if order is not None:
        ds_us = ds_us[order]
        columns = {name: values[order] for name, values in columns.items()}
    return _Sorted(ids, bounds, ds_us, columns)


_Order = tuple[list[str], np.ndarray, np.ndarray | None]
"""Names of the series, rising; bounds of their rows; and what sorts the rows by series, stamp and
reading order, None where they are sorted."""


def _together(names: pa.Array, ds_us: np.ndarray, place: np.ndarray) -> _Order | None:
    """The order of files in which the rows of a series lie together, one after the other.

    None for other files. Neighbours are compared, so that no name is looked up for each row.
    """
    if not len(names):
        return None
    changes = pc.not_equal(names.slice(1), names.slice(0, len(names) - 1))
    starts = np.append(0, np.flatnonzero(changes.to_numpy(zero_copy_only=False)) + 1)
    if len(starts) > max(1, len(names) // MIN_RUN):
        return None
    ids = names.take(pa.array(starts)).to_pylist()
    if len(set(ids)) < len(ids):
        return None
    inside = np.ones(len(names) - 1, dtype=bool)
    inside[starts[1:] - 1] = False
    if not _rising(inside, ds_us, place):
        return None
    sizes = np.diff(starts, append=len(names))
    by_name = sorted(range(len(ids)), key=ids.__getitem__)
    bounds = np.append(0, np.cumsum(sizes[by_name]))
    order = None
    if by_name != list(range(len(ids))):
        moved = starts[by_name] - bounds[:-1]
        order = np.repeat(moved, sizes[by_name]) + np.arange(len(names))
    return [ids[i] for i in by_name], bounds, order


def _anywhere(names: pa.Array, ds_us: np.ndarray, place: np.ndarray) -> _Order:
    """The order of any file."""
    column = names.dictionary_encode()
    ids = column.dictionary.to_pylist()
    by_name = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), dtype=np.int64)
    rank[by_name] = np.arange(len(ids))
    series = rank[column.indices.to_numpy()]
    order = np.argsort(series, kind="stable")
    inside = series[order][1:] == series[order][:-1]
    if not _rising(inside, ds_us[order], place[order]):
        order = np.lexsort((place, ds_us, series))
    bounds = np.searchsorted(series[order], np.arange(len(ids) + 1))
    return [ids[i] for i in by_name], bounds, order


def _rising(inside: np.ndarray, ds_us: np.ndarray, place: np.ndarray) -> bool:
    """True when rows of each series come by stamp, and those of one stamp in reading order.

    inside: bool [rows - 1], a row and the next one are of one series.
    """
    odd = np.flatnonzero(inside & (ds_us[1:] <= ds_us[:-1]))
    return bool(((ds_us[odd + 1] == ds_us[odd]) & (place[odd + 1] > place[odd])).all())


def _codes(table: pa.Table, name: str, contract: Contract) -> np.ndarray:
    """A static column as the numbers that stand for it in arrays, NaN where missing."""
    column, labelled = table[name], name in contract.labels
    if pa.types.is_floating(column.type):
        if labelled and np.isfinite(column.to_numpy()).any():
            raise DataError(f"{name}: numbers, but the model knows labels there", field=name)
        return column.to_numpy()
    if not labelled:
        raise DataError(f"{name}: text, but the model knows numbers there", field=name)
    found = column.combine_chunks().dictionary_encode()
    codes = [contract.code_of(name, label) for label in found.dictionary.to_pylist()]
    at = found.indices.fill_null(len(codes)).to_numpy()
    return np.array([*codes, np.nan])[at]


def _ends(rows: _Sorted) -> np.ndarray:
    """Row after the last value of each series, int64 [series]; -1 where there is none."""
    if np.isfinite(rows.columns["y"][rows.bounds[1:] - 1]).all():
        return rows.bounds[1:]
    told = np.where(np.isfinite(rows.columns["y"]), np.arange(len(rows.ds_us)), -1)
    last = np.maximum.reduceat(told, rows.bounds[:-1])
    return np.where(last >= rows.bounds[:-1], last + 1, -1)


def _begins(rows: _Sorted, end: np.ndarray, about: About) -> np.ndarray:
    """First row within reach of the last value, int64 [series]."""
    start = rows.bounds[:-1]
    last = np.where(end < 0, start, end - 1)
    first_us = steps_after(rows.ds_us[last], np.array([-about.reach]), about.contract)
    # Right for every regular series; the others are looked up.
    found = np.maximum(start, last - about.reach)
    before = rows.ds_us[np.maximum(found - 1, 0)]
    right = (rows.ds_us[found] >= first_us) & ((found == start) | (before < first_us))
    for i in np.flatnonzero(~right).tolist():
        inside = rows.ds_us[start[i] : last[i] + 1]
        found[i] = start[i] + np.searchsorted(inside, first_us[i])
    return found


def _first_values(rows: _Sorted, begin: np.ndarray, contract: Contract) -> dict[str, np.ndarray]:
    """What each covariate was at the first row that is kept, or before: float64 [series]."""
    found: dict[str, np.ndarray] = {}
    for name in (*contract.known_future, *contract.past):
        values = rows.columns[name]
        told = np.where(np.isfinite(values), np.arange(len(values)), -1)
        last = np.maximum.accumulate(told)[begin]
        found[name] = values[np.where(last >= rows.bounds[:-1], last, begin)]
    return found


def _ahead_rows(rows: _Sorted, end: np.ndarray, about: About) -> np.ndarray:
    """Row that holds each step of the horizon, the last of several; -1 for none: [series, H]."""
    found = np.full((len(rows.ids), about.horizon), -1, dtype=np.int64)
    if not about.contract.known_future:
        return found
    series = np.repeat(np.arange(len(rows.ids)), np.diff(rows.bounds))
    late = np.flatnonzero((np.arange(len(series)) >= end[series]) & (end[series] >= 0))
    series = series[late]
    passed_us = rows.ds_us[late] - rows.ds_us[end[series] - 1]
    # Rounded, so a day of 23 or 25 hours is one step too.
    steps = np.rint(passed_us / about.contract.frequency.step_us).astype(np.int64)
    inside = (steps >= 1) & (steps <= about.horizon)
    np.maximum.at(found, (series[inside], steps[inside] - 1), late[inside])
    return found


def _static(rows: _Sorted, values: np.ndarray) -> np.ndarray:
    """First value of each series, float64 [series]; NaN where it has none."""
    none = len(values)
    told = np.where(np.isfinite(values), np.arange(none), none)
    first = np.minimum.reduceat(told, rows.bounds[:-1])
    return np.append(values, np.nan)[np.where(first < rows.bounds[1:], first, none)]
