"""Windows of many regular histories at once, without Python for each point.

Design choices: a history whose last steps are complete and lie on the grid needs no repair, and
then its window is a slice; whatever is not so plain is left to `rows.py`, which repairs it or says
what is wrong, so both give the same window or none. Series of one length are one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract, from_local_us, to_local_us
from flts_ray.prepare.arrays import Windows, bounded
from flts_ray.prepare.clean import EARLIEST_US, LATEST_US
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import MAX_MAGNITUDE
from flts_ray.serve.rows import AskedSeries, Numbers, static_value
from flts_ray.serve.stamps import calendars, read_stamps


@dataclass(frozen=True)
class Block:
    """n histories of T points. `fields`: their paths in the request, as in `AskedSeries`.

    y: float [n, T], NaN where missing; observed: bool [n, T] or None for all; known_future: by
    column [n, T + H]; past: by column [n, T]; static: by column [n].
    `start_us`: int64 [n], first stamps of regular histories; or `ds_us`: int64 [n, T].
    """

    fields: Sequence[str]
    ids: Sequence[str]
    y: np.ndarray
    start_us: np.ndarray | None = None
    ds_us: np.ndarray | None = None
    observed: np.ndarray | None = None
    known_future: Mapping[str, np.ndarray] | None = None
    past: Mapping[str, np.ndarray] | None = None
    static: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def series(self, i: int) -> AskedSeries:
        """One of them by itself."""
        return AskedSeries(
            field=self.fields[i],
            id=self.ids[i],
            named=True,
            ds=None if self.ds_us is None else self.ds_us[i],
            start=None if self.start_us is None else int(self.start_us[i]),
            y=self.y[i],
            observed=None if self.observed is None else self.observed[i],
            known_future={name: values[i] for name, values in (self.known_future or {}).items()},
            past={name: values[i] for name, values in (self.past or {}).items()},
            static={name: values[i].item() for name, values in (self.static or {}).items()},
        )


def regular_windows(block: Block, model: ServedModel) -> tuple[Windows, np.ndarray] | None:
    """Windows of the rows that need no repair, and which those are, bool [n].

    None where no row can be read so: too short, or a column is missing or foreign.
    """
    spec = model.fitted.spec
    if block.y.shape[1] < spec.lookback or not _same_columns(block, spec.contract):
        return None
    window = slice(block.y.shape[1] - spec.lookback, None)
    origin_us, good = _origins(block, spec.contract)
    y = np.asarray(block.y[:, window], dtype=np.float64)
    if not -MAX_MAGNITUDE <= block.y.min() <= block.y.max() <= MAX_MAGNITUDE:  # or a NaN
        good &= np.isfinite(y).all(axis=1)
        good &= ~(np.abs(block.y) > MAX_MAGNITUDE).any(axis=1)
    known, good = _columns(block.known_future, spec.contract.known_future, block, window, good)
    past, good = _columns(block.past, spec.contract.past, block, window, good)
    static, good = _statics(block, spec.contract, good)
    at = np.fromiter(map(model.position.get, block.ids, repeat(-1)), np.int64, len(block))
    if spec.needs_known_series:
        good &= at >= 0
    if not good.any():
        return None
    stats, new = model.fitted.stats, at < 0
    if not new.all():
        low = np.where(new, -np.inf, stats.clip_lo[at])[:, None]
        high = np.where(new, np.inf, stats.clip_hi[at])[:, None]
        y = bounded(y, low, high)
    seen = block.observed
    windows = Windows(
        contract=spec.contract,
        ids=tuple(block.ids),
        origin_us=origin_us,
        y=y,
        observed=np.ones(y.shape, dtype=bool) if seen is None else seen[:, window],
        past=past,
        future=_future(origin_us, known, spec),
        static=static,
        scale=np.where(new, np.nan, stats.scale[at]),
    )
    return (windows if good.all() else chosen(windows, np.flatnonzero(good))), good


def chosen(windows: Windows, rows: np.ndarray) -> Windows:
    """Some of the windows. rows: int64 positions."""
    names = ("origin_us", "y", "observed", "past", "future", "static", "scale")
    return Windows(
        contract=windows.contract,
        ids=tuple(windows.ids[i] for i in rows.tolist()),
        **{name: getattr(windows, name)[rows] for name in names},
    )


def _same_columns(block: Block, contract: Contract) -> bool:
    return (
        set(block.known_future or ()) == set(contract.known_future)
        and set(block.past or ()) == set(contract.past)
        and set(block.static or ()) == set(contract.static)
    )


def _origins(block: Block, contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Step after each history, int64 [n], and where its stamps are regular and in range."""
    frequency, length = contract.frequency, block.y.shape[1]
    zone = contract.time_zone if frequency.wall_clock else "UTC"
    good = np.ones(len(block), dtype=bool)
    if block.ds_us is not None:
        first = block.ds_us[:, 0]
        good &= (block.ds_us[:, -1] >= EARLIEST_US) & (block.ds_us[:, -1] < LATEST_US)
    else:
        assert block.start_us is not None  # a block has one or the other
        first = block.start_us
    good &= (first >= EARLIEST_US) & (first < LATEST_US)
    if zone == "UTC" and block.ds_us is None:
        return first + length * frequency.step_us, good
    wall = to_local_us(np.where(good, first, 0), zone)
    if block.ds_us is not None:
        readable = block.ds_us if good.all() else np.where(good[:, None], block.ds_us, 0)
        steps = readable if zone == "UTC" else to_local_us(readable, zone)
        good &= (np.diff(steps, axis=1) == frequency.step_us).all(axis=1)
    return from_local_us(wall + length * frequency.step_us, zone), good


def _columns(
    given: Mapping[str, np.ndarray] | None,
    names: Sequence[str],
    block: Block,
    window: slice,
    good: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Covariates of the window (and the horizon), float32 [n, steps, C], and complete rows."""
    values = [np.asarray((given or {})[name], dtype=np.float64) for name in names]
    if not values:
        steps = block.y.shape[1] - window.start
        return np.zeros((len(block), steps, 0), dtype=np.float32), good
    for column in values:
        good = good & np.isfinite(column[:, window]).all(axis=1)
        good &= ~(np.abs(column) > MAX_MAGNITUDE).any(axis=1)
    with np.errstate(over="ignore"):  # rows with such values are not good
        return np.stack([v[:, window] for v in values], axis=-1).astype(np.float32), good


def _statics(block: Block, contract: Contract, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not contract.static:
        return np.zeros((len(block), 0), dtype=np.float32), good
    values = np.zeros((len(block), len(contract.static)), dtype=np.float64)
    for i, name in enumerate(contract.static):
        values[:, i] = (block.static or {})[name]
    good = good & (np.abs(values) <= MAX_MAGNITUDE).all(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32), good


def _future(origin_us: np.ndarray, known: np.ndarray, spec: ModelSpec) -> np.ndarray:
    calendar = calendars(origin_us, spec.lookback, spec.task.horizon, spec.contract)
    if not known.shape[-1]:
        return calendar
    return np.concatenate([calendar, known], axis=-1)


def blocks_of(asked: Sequence[AskedSeries], spec: ModelSpec) -> Iterator[tuple[np.ndarray, Block]]:
    """Blocks of the series that may be regular, with their positions in `asked`."""
    alike: dict[tuple[int, bool], list[int]] = {}
    for i, series in enumerate(asked):
        if _plain(series, spec):
            assert series.y is not None  # it is plain
            alike.setdefault((len(series.y), series.ds is None), []).append(i)
    for rows in alike.values():
        found = list(_blocks(rows, [asked[i] for i in rows], spec))
        yield from found


def _plain(series: AskedSeries, spec: ModelSpec) -> bool:
    """True when the shapes are those of a history that may need no repair."""
    if series.y is None or series.origin is not None:
        return False
    length, horizon = len(series.y), spec.task.horizon
    return (
        length >= spec.lookback
        and (series.ds is None) != (series.start is None)
        and (series.ds is None or len(series.ds) == length)
        and (series.observed is None or len(series.observed) == length)
        and all(len(column) == length + horizon for column in series.known_future.values())
        and all(len(column) == length for column in series.past.values())
        and _columns_of(series) == _columns_wanted(spec.contract)
    )


def _columns_of(series: AskedSeries) -> tuple[set[str], ...]:
    return set(series.known_future), set(series.past), set(series.static)


def _columns_wanted(contract: Contract) -> tuple[set[str], ...]:
    return set(contract.known_future), set(contract.past), set(contract.static)


def _blocks(
    rows: list[int], asked: list[AskedSeries], spec: ModelSpec
) -> Iterator[tuple[np.ndarray, Block]]:
    """One block of series alike; none of those whose stamps or labels cannot be read."""
    contract = spec.contract
    kept: list[int] = []
    statics: list[list[float]] = []
    stamps = _stamps(asked, contract)
    for i, series in enumerate(asked):
        try:
            values = [static_value(series, name, contract) for name in contract.static]
        except DataError:
            continue  # it is read again by itself, which tells what is wrong
        if stamps[i] is not None:
            kept.append(i)
            statics.append(values)
    if not kept:
        return
    asked = [asked[i] for i in kept]
    by_start = asked[0].ds is None
    laid = np.stack([found for i in kept if (found := stamps[i]) is not None])
    observed = (
        [_mask(one) for one in asked] if any(one.observed is not None for one in asked) else None
    )
    fixed = np.array(statics, dtype=np.float64).reshape(len(kept), len(contract.static))
    yield (
        np.asarray([rows[i] for i in kept]),
        Block(
            fields=[one.field for one in asked],
            ids=[one.id for one in asked],
            y=_matrix([one.y for one in asked if one.y is not None]),
            start_us=laid[:, 0] if by_start else None,
            ds_us=None if by_start else laid,
            observed=None if observed is None else np.stack(observed),
            known_future={
                name: _matrix([one.known_future[name] for one in asked])
                for name in contract.known_future
            },
            past={name: _matrix([one.past[name] for one in asked]) for name in contract.past},
            static={name: fixed[:, i] for i, name in enumerate(contract.static)},
        ),
    )


def _stamps(asked: Sequence[AskedSeries], contract: Contract) -> list[np.ndarray | None]:
    """First stamps, or all of them, of each series, int64; None where they cannot be read."""
    if all(isinstance(one.ds, list) for one in asked):
        try:
            texts = [text for one in asked for text in one.ds or ()]
            return list(read_stamps(texts, contract.time_zone, "ds").reshape(len(asked), -1))
        except DataError:
            pass  # which series it is shows below
    seen: dict[str, np.ndarray | None] = {}
    found: list[np.ndarray | None] = []
    for one in asked:
        if isinstance(one.start, int):
            found.append(np.array([one.start]))
        elif isinstance(one.ds, np.ndarray):
            found.append(one.ds)
        elif one.ds is not None:
            found.append(_read(one.ds, contract))
        else:
            start = one.start or ""
            if start not in seen:
                seen[start] = _read([start], contract)
            found.append(seen[start])
    return found


def _read(texts: Sequence[str], contract: Contract) -> np.ndarray | None:
    try:
        return read_stamps(texts, contract.time_zone, "ds")
    except DataError:
        return None


def _mask(series: AskedSeries) -> np.ndarray:
    length = len(series.y if series.y is not None else ())
    if series.observed is None:
        return np.ones(length, dtype=bool)
    return np.asarray(series.observed, dtype=bool)


def _matrix(columns: Sequence[Numbers]) -> np.ndarray:
    """float64 [n, steps]; None is NaN."""
    return np.array(columns, dtype=np.float64)
