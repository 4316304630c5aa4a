"""Bulk bodies as an Arrow IPC stream: list columns, or one long table.

List columns: one row a series; `unique_id: string`, `y: list<float>`, first stamps in
`start: timestamp` or all of them in `ds: list<timestamp>`; covariates under their names, lists of
the history's length (known-future ones of the horizon's length more), static ones plain; `observed`
may be a list of booleans. A null in `y` asks for a series by its name alone.

Long table: one row a point; `unique_id`, `ds`, `y` and covariates; for a model with known-future
covariates the last rows of each series are its horizon and have no `y`.

Design choices: series of one length are views of the columns, never copied one by one; which of
the two tables was sent is told by the type of `y`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError, FltsError
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract
from flts_ray.serve.arrow_columns import (
    check_names,
    instants,
    is_list,
    lengths_of,
    mask,
    numbers,
    read_table,
    statics,
    texts,
    whole,
)
from flts_ray.serve.fields import Fields
from flts_ray.serve.predictor import check_count
from flts_ray.serve.regular import Block
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.wire_bulk import BulkBody, Part


def arrow_bulk(body: bytes, spec: ModelSpec, limits: ServeConfig) -> BulkBody:
    """Raises DataError where the body is none of the two tables."""
    table = read_table(body, limits)
    check_names(table, spec.contract)
    if is_list(table.schema.field("y").type):
        check_count(table.num_rows, limits.max_bulk_series)
        return ListTable(table, spec, limits.max_points)
    return LongTable(table, spec, limits)


class _Table:
    """What both tables have in common."""

    horizon: int | None = None  # a table has no place for it
    quantiles: Sequence[float] | None = None

    def __init__(self, spec: ModelSpec) -> None:
        self._contract = spec.contract
        self._ahead = spec.task.horizon


class ListTable(_Table):
    """One row a series."""

    def __init__(self, table: pa.Table, spec: ModelSpec, max_points: int) -> None:
        super().__init__(spec)
        self._ids = texts(table, "unique_id")
        self._max_points = max_points
        names = [n for n in ("y", "observed", *self._contract.known_future,
                             *self._contract.past) if n in table.column_names]  # fmt: skip
        for name in names:
            if not is_list(table.schema.field(name).type):
                raise DataError(f"{name}: must be a list column, as `y` is", field=name)
        by_start = "start" in table.column_names
        if by_start == ("ds" in table.column_names):
            raise DataError("ds: give either `start` or the lists `ds`", field="ds")
        if not by_start:
            if not is_list(table.schema.field("ds").type):
                raise DataError("ds: must be a list column, as `y` is", field="ds")
            names.append("ds")
        self._lists = {name: whole(table, name) for name in names}
        self._lengths = {name: lengths_of(column) for name, column in self._lists.items()}
        self._plain = self._plain_columns(table)

    @property
    def count(self) -> int:
        return len(self._ids)

    @property
    def points(self) -> np.ndarray:
        return np.clip(self._lengths["y"], 0, self._max_points)

    def part(self, begin: int, end: int) -> Part:
        """Some of the rows: as one block where they are alike, else one by one."""
        end = min(end, self.count)
        ids, rows = self._ids[begin:end], slice(begin, end)
        lengths = {name: found[rows] for name, found in self._lengths.items()}
        if _alike(lengths, self._contract.known_future, self._ahead, self._max_points):
            block = self._block(ids, rows)
            return Part(ids, block, range(len(ids)), {})
        refused = self._too_long(begin, lengths)
        kept = [i for i in range(len(ids)) if i not in refused]
        return Part(ids, self._singly(begin, kept, lengths), kept, refused)

    def _too_long(self, begin: int, lengths: dict[str, np.ndarray]) -> dict[int, FltsError]:
        """Rows with more points than are read at all, by position in the part."""
        refused: dict[int, FltsError] = {}
        for name, sizes in lengths.items():
            most = self._max_points
            if name in self._contract.known_future:
                most += self._ahead
            for i in np.flatnonzero(sizes > most).tolist():
                field = f"series[{begin + i}].{name}"
                told = f"{field}: {sizes[i]} points; send the last {most} at most"
                refused.setdefault(i, DataError(told, field=field))
        return refused

    def _values(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """The values of some rows end to end."""
        column = self._lists[name]
        if isinstance(rows, slice):
            chosen = column.slice(rows.start, rows.stop - rows.start)
        else:
            chosen = column.take(pa.array(rows))
        values = chosen.flatten()
        if name == "ds":
            return instants(values, name, self._contract)
        return mask(values, name) if name == "observed" else numbers(values, name)

    def _plain_columns(self, table: pa.Table) -> dict[str, Any]:
        """Columns of one value a series: `start` and statics."""
        found: dict[str, Any] = {}
        if "start" in table.column_names:
            found["start"] = instants(whole(table, "start"), "start", self._contract)
        for name in self._contract.static:
            if name in table.column_names:
                found[name] = statics(whole(table, name), name, self._contract)
        return found

    def _block(self, ids: list[str], rows: slice) -> Block:
        shaped = {name: self._values(name, rows).reshape(len(ids), -1) for name in self._lists}
        plain = {name: values[rows] for name, values in self._plain.items()}
        return block_of(ids, Fields(rows.start, len(ids)), shaped, plain, self._contract)

    def _singly(
        self, begin: int, kept: list[int], lengths: dict[str, np.ndarray]
    ) -> list[AskedSeries]:
        """The rows at the positions `kept` of the part that begins there."""
        rows = begin + np.asarray(kept, dtype=np.int64)
        # A part of which nothing is refused is read where it lies.
        at = rows if len(kept) < len(lengths["y"]) else slice(begin, begin + len(kept))
        flat = {name: self._values(name, at) for name in self._lists}
        sizes = {name: found[kept] for name, found in lengths.items()}
        ends = {name: np.cumsum(np.maximum(found, 0)) for name, found in sizes.items()}

        def of(name: str, i: int) -> np.ndarray | None:
            if sizes[name][i] < 0:
                return None
            return flat[name][ends[name][i] - sizes[name][i] : ends[name][i]]

        return [
            single(f"series[{row}].", self._ids[row], {name: of(name, i) for name in flat},
                   {name: values[row] for name, values in self._plain.items()}, self._contract)
            for i, row in enumerate(rows.tolist())
        ]  # fmt: skip


class LongTable(_Table):
    """One row a point; rows of a series in their order."""

    def __init__(self, table: pa.Table, spec: ModelSpec, limits: ServeConfig) -> None:
        super().__init__(spec)
        if "ds" not in table.column_names or "start" in table.column_names:
            raise DataError("ds: a long table has a stamp in every row", field="ds")
        column = whole(table, "unique_id")
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        names = texts(pa.table({"unique_id": column.dictionary}), "unique_id")
        if column.null_count:
            raise DataError("unique_id: holds a null", field="unique_id")
        codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self._flat = self._columns(table)
        first, order = _grouped(codes)
        if order is not None:
            codes = codes[order]
            self._flat = {name: values[order] for name, values in self._flat.items()}
        self._bounds = first
        check_count(len(first) - 1, limits.max_bulk_series)
        self._ids = [names[code] for code in codes[first[:-1]].tolist()]
        longest = int(np.diff(first).max(initial=0))
        if longest > limits.max_points:
            raise DataError(
                f"y: {longest} points of one series; send the last {limits.max_points} at most",
                field="y",
            )

    def _columns(self, table: pa.Table) -> dict[str, Any]:
        contract = self._contract
        found: dict[str, Any] = {}
        for name in table.column_names:
            column = whole(table, name)
            if name == "ds":
                found[name] = instants(column, name, contract)
            elif name == "observed":
                found[name] = mask(column, name)
            elif name in contract.static:
                found[name] = statics(column, name, contract)
            elif name != "unique_id":
                found[name] = numbers(column, name)
        return found

    @property
    def count(self) -> int:
        return len(self._ids)

    @property
    def points(self) -> np.ndarray:
        return np.diff(self._bounds)

    def part(self, begin: int, end: int) -> Part:
        """Some of the series: as one block where they are alike, else one by one."""
        end = min(end, self.count)
        ids = self._ids[begin:end]
        bounds = self._bounds[begin : end + 1]
        ahead = self._ahead if self._contract.known_future else 0
        sizes = np.diff(bounds)
        if (sizes == sizes[0]).all() and sizes[0] > ahead:
            block = self._block(ids, begin, slice(bounds[0], bounds[-1]), ahead)
            return Part(ids, block, range(len(ids)), {})
        asked = []
        for i in range(len(ids)):
            rows = slice(bounds[i], bounds[i + 1])
            columns = {name: self._cut(name, values[rows], ahead)
                       for name, values in self._flat.items()
                       if name not in self._contract.static}  # fmt: skip
            plain = {name: self._flat[name][bounds[i]] for name in self._contract.static
                     if name in self._flat}  # fmt: skip
            field = f"series[{begin + i}]."
            asked.append(single(field, ids[i], columns, plain, self._contract))
        return Part(ids, asked, range(len(ids)), {})

    def _block(self, ids: list[str], begin: int, rows: slice, ahead: int) -> Block:
        shaped: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, values in self._flat.items():
            laid = values[rows].reshape(len(ids), -1)
            if name in self._contract.static:
                plain[name] = laid[:, 0]
            else:
                shaped[name] = self._cut(name, laid, ahead)
        return block_of(ids, Fields(begin, len(ids)), shaped, plain, self._contract)

    def _cut(self, name: str, values: np.ndarray, ahead: int) -> np.ndarray:
        """Without the rows of the horizon, except for what is known of them."""
        if not ahead or name in self._contract.known_future:
            return values
        return values[..., :-ahead] if ahead < values.shape[-1] else values[..., :0]


def _alike(
    lengths: dict[str, np.ndarray], known: Sequence[str], ahead: int, max_points: int
) -> bool:
    """True when all histories have one length and every list fits it."""
    wanted = int(lengths["y"][0])
    return 0 < wanted <= max_points and all(
        (found == wanted + (ahead if name in known else 0)).all() for name, found in lengths.items()
    )


def block_of(
    ids: list[str],
    fields: Sequence[str],
    shaped: dict[str, np.ndarray],
    plain: dict[str, Any],
    contract: Contract,
) -> Block:
    """shaped: by column [n, steps]; plain: by column [n]."""
    return Block(
        fields=fields,
        ids=ids,
        y=shaped["y"],
        start_us=plain.get("start"),
        ds_us=shaped.get("ds"),
        observed=shaped.get("observed"),
        known_future={n: shaped[n] for n in contract.known_future if n in shaped},
        past={n: shaped[n] for n in contract.past if n in shaped},
        static={n: plain[n] for n in contract.static if n in plain},
    )


def single(
    field: str,
    name: str,
    columns: Mapping[str, np.ndarray | None],
    plain: dict[str, Any],
    contract: Contract,
) -> AskedSeries:
    """One series by itself; one without `y` is asked for by its name alone."""
    y = columns.get("y")
    given = {n: c for n, c in columns.items() if c is not None}
    alone = y is None
    return AskedSeries(
        field=field,
        id=name,
        named=True,
        ds=None if alone else given.get("ds"),
        start=int(plain["start"]) if "start" in plain and not alone else None,
        y=y,
        observed=given.get("observed"),
        known_future={n: given[n] for n in contract.known_future if n in given},
        past={n: given[n] for n in contract.past if n in given},
        static={n: float(plain[n]) for n in contract.static if n in plain},
    )


def _grouped(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Bounds of the runs of equal codes, int64 [series + 1]; and the order that makes them runs.

    No order where they are runs already.
    """
    starts = np.flatnonzero(np.diff(codes, prepend=codes[:1] - 1))
    if len(starts) == len(np.unique(codes)):
        return np.append(starts, len(codes)), None
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order][:1] - 1))
    return np.append(starts, len(codes)), order
