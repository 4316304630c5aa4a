"""The pure step that prepares one bucket of series: an Arrow table in, Arrow tables out.

Design choices: rows are sorted once for the whole bucket and each series is then a slice of flat
NumPy arrays; calendar columns are computed once for the whole bucket, because its series share
their days; whatever happens inside one series ends in its quarantine row, so one bad series
never stops the others. The result depends on the rows alone, not on their order between pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.config import PrepareConfig, SplitConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.calendar import calendar_features
from flts_ray.prepare.clean import GridSeries, RawSeries, Rejected, Repairs, lay_on_grid
from flts_ray.prepare.splits import check_spans, split_ends
from flts_ray.prepare.stats import TrainingStats, training_stats

STATIC_PREFIX = "static."
"""Before the name of a static covariate in the series table, apart from the statistics."""
REPAIRS = tuple(Repairs.__dataclass_fields__)
STATS = tuple(TrainingStats.__dataclass_fields__)
QUARANTINE_SCHEMA = pa.schema(
    [("unique_id", pa.string()), ("code", pa.string()), ("reason", pa.string()), ("rows", "int64")]
)


@dataclass(frozen=True)
class Rules:
    """What decides how a series is prepared. `horizon` in steps."""

    contract: Contract
    prepare: PrepareConfig
    split: SplitConfig
    horizon: int
    has_test_files: bool


@dataclass(frozen=True)
class Bucket:
    """A prepared bucket: rows of all series, one row a series, one row a quarantined series."""

    data: pa.Table
    series: pa.Table
    quarantine: pa.Table


@dataclass(frozen=True)
class _Kept:
    """A series that passed; `first_row` is where its statics are looked up."""

    id: str
    grid: GridSeries
    ends: tuple[int, int]
    stats: TrainingStats


def prepare_bucket(table: pa.Table, rules: Rules) -> Bucket:
    """Prepare every series of one bucket.

    table: columns unique_id, ds, y, the contract's covariates, is_test and order (distinct, the
    reading order); rows in any order. Rows of the result are sorted by unique_id, then ds.
    Raises DataError when a covariate column is no number.
    """
    ids, starts, table = _grouped(table)
    raw = _raw(table, rules.contract)
    kept: list[_Kept] = []
    refused: list[tuple[str, str, str, int]] = []
    rows_kept: list[slice] = []
    for i, name in enumerate(ids):
        rows = slice(int(starts[i]), int(starts[i + 1]))
        outcome = _prepare_series(name, raw.take(np.arange(rows.start, rows.stop)), rules)
        if isinstance(outcome, Rejected):
            refused.append((name, outcome.code, outcome.reason, rows.stop - rows.start))
        else:
            kept.append(outcome)
            rows_kept.append(rows)
    statics = _first_values(table, rules.contract.static, rows_kept)
    return Bucket(
        data=_data_table(kept, rules.contract),
        series=_series_table(kept, statics),
        quarantine=pa.table(
            [list(column) for column in zip(*refused, strict=True)] or [[], [], [], []],
            schema=QUARANTINE_SCHEMA,
        ),
    )


def _grouped(table: pa.Table) -> tuple[list[str], np.ndarray, pa.Table]:
    """Sort rows by series, then reading order. Returns ids, int64 [ids + 1] borders, table."""
    coded = table["unique_id"].dictionary_encode().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = pa.concat_arrays(coded.unify_dictionaries().chunks)
    names = coded.dictionary.to_pylist()
    by_name = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[by_name] = np.arange(len(names))
    series = rank[coded.indices.to_numpy(zero_copy_only=False)]
    order = np.lexsort((table["order"].to_numpy(), series))
    counts = np.bincount(series, minlength=len(names))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [names[i] for i in by_name], starts, table.take(pa.array(order))


def _raw(table: pa.Table, contract: Contract) -> RawSeries:
    stamps = table["ds"].cast(pa.int64())
    names = contract.past + contract.known_future
    columns = [_numbers(table, name) for name in names]
    return RawSeries(
        ds_us=stamps.fill_null(0).to_numpy(),
        dated=stamps.is_valid().to_numpy(),
        y=_numbers(table, "y"),
        is_test=table["is_test"].to_numpy(),
        covariates=np.stack(columns, axis=1) if columns else np.zeros((len(table), 0)),
    )


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        column = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column {name}: holds something that is no number ({error}); a past or known-future "
            "covariate must be numeric, text is possible in a static one",
            field=name,
        ) from None
    return np.asarray(column.fill_null(np.nan).to_numpy())


def _prepare_series(name: str, raw: RawSeries, rules: Rules) -> _Kept | Rejected:
    contract = rules.contract
    known_ahead = np.arange(raw.covariates.shape[1]) >= len(contract.past)
    try:
        # A value that overflows the arithmetic would poison every statistic it enters.
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            grid = lay_on_grid(raw, contract, rules.prepare, known_ahead)
            ends = _ends(grid, rules)
            _check_constant(grid, ends[0], rules.prepare)
            stats = training_stats(
                grid.y, grid.observed, ends[0], contract.season, rules.prepare.clip
            )
        return _Kept(name, grid, ends, stats)
    except Rejected as rejected:
        return rejected
    except Exception as error:  # noqa: BLE001 - the fault of one series must not stop the others
        return Rejected("failed", f"failed: {type(error).__name__}: {error}")


def _ends(grid: GridSeries, rules: Rules) -> tuple[int, int]:
    length, split = len(grid.y), rules.split
    ends = split_ends(length, grid.test_start, rules.has_test_files, split)
    wanted = (split.validation > 0, split.test > 0 or rules.has_test_files)
    check_spans(length, ends, rules.contract.season, rules.horizon, wanted)
    return ends


def _check_constant(grid: GridSeries, train_end: int, policy: PrepareConfig) -> None:
    """Raise Rejected where nothing changes before `train_end`.

    There is nothing to learn, and no scale: one later change would outweigh all other series.
    """
    known = grid.y[:train_end][grid.observed[:train_end]]
    if policy.constant == "keep" or known.min() != known.max():
        return
    later = grid.y[grid.observed]
    where = "" if later.min() == later.max() else f" of its first {train_end} steps (training)"
    code = "all_zero" if known[0] == 0 else "constant"
    raise Rejected(
        code, f"every value{where} is {known[0]:g}; set prepare.constant to keep to use it"
    )


def _first_values(
    table: pa.Table, names: Sequence[str], rows: Sequence[slice]
) -> Iterator[tuple[str, pa.Array]]:
    """First value of each static column in each run of rows; null where there is none.

    A number that no float32 can hold (NaN and infinities among them) is no value.
    """
    for name in names:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if pa.types.is_floating(column.type):
            usable = pc.less_equal(pc.abs(column), float(np.finfo(np.float32).max))
            column = pc.if_else(usable, column, None)
        valid = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        at = np.searchsorted(valid, [run.start for run in rows])
        found = [
            int(valid[i]) if i < len(valid) and valid[i] < run.stop else None
            for i, run in zip(at, rows, strict=True)
        ]
        yield name, column.take(pa.array(found, type=pa.int64()))


def _data_table(kept: Sequence[_Kept], contract: Contract) -> pa.Table:
    lengths = np.array([len(one.grid.y) for one in kept], dtype=np.int64)
    ids = pa.array([one.id for one in kept], type=pa.string())
    series = np.repeat(np.arange(len(kept)), lengths)
    position = np.arange(len(series)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    start = np.array([one.grid.start_us for one in kept], dtype=np.int64)
    ds = steps_after(start[series], position, contract)
    columns = {
        "unique_id": ids.take(pa.array(series)),
        "ds": pa.array(ds).cast(pa.timestamp("us", tz="UTC")),
        "y": pa.array(_stack([one.grid.y for one in kept], np.float64), from_pandas=True),
        "observed": pa.array(_stack([one.grid.observed for one in kept], np.bool_)),
    }
    names = contract.past + contract.known_future
    for i, name in enumerate(names):
        columns[name] = pa.array(_stack([k.grid.covariates[:, i] for k in kept], np.float32))
    calendar = calendar_features(ds, contract.time_zone, contract.freq, contract.holidays)
    for i, name in enumerate(contract.calendar):
        columns[name] = pa.array(np.ascontiguousarray(calendar[:, i]))
    return pa.table(columns)


def _stack(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


def _series_table(kept: Sequence[_Kept], statics: Iterator[tuple[str, pa.Array]]) -> pa.Table:
    int64, float64 = pa.int64(), pa.float64()
    columns = {
        "unique_id": pa.array([one.id for one in kept], type=pa.string()),
        "start_us": pa.array([one.grid.start_us for one in kept], type=int64),
        "rows": pa.array([len(one.grid.y) for one in kept], type=int64),
        "train_end": pa.array([one.ends[0] for one in kept], type=int64),
        "valid_end": pa.array([one.ends[1] for one in kept], type=int64),
    }
    for name in STATS:
        columns[name] = pa.array([getattr(one.stats, name) for one in kept], type=float64)
    repairs = [asdict(one.grid.repairs) for one in kept]
    for name in REPAIRS:
        columns[name] = pa.array([one[name] for one in repairs], type=int64)
    columns |= {f"{STATIC_PREFIX}{name}": values for name, values in statics}
    return pa.table(columns)


def count_codes(quarantine: pa.Table) -> dict[str, int]:
    """How many series each quarantine code holds, by code."""
    counted = pc.value_counts(quarantine["code"].combine_chunks())
    return dict(sorted((entry["values"], entry["counts"]) for entry in counted.to_pylist()))
