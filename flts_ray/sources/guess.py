"""What the columns of a table nobody has described seem to mean.

Design choices: the reader's own rules decide what a time and a number is, so that a guess can be
read; names count where they are telling, values where they are not: a column names series if
times repeat without it; several number columns of equal rank without a series column are a wide
table. Guesses are made from the first rows alone, because a file may be huge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.panel import Frequency, Role
from flts_ray.sources.columns import names, numbers
from flts_ray.sources.files import open_file
from flts_ray.sources.infer import infer_frequency
from flts_ray.sources.inputs import Input, find_inputs
from flts_ray.sources.stamps import read_stamps

ROWS = 100_000
TIME_NAMES = ("ds", "timestamp", "datetime", "time", "date", "ts", "utc", "period", "index")
ID_NAMES = (
    "unique_id", "series_id", "id", "series", "cell", "site", "feeder", "station", "meter", "node",
    "building", "house", "household", "customer", "device", "sensor", "substation", "line", "bus",
    "plant", "unit", "turbine", "location", "city", "area", "region", "zone", "state", "country",
    "name", "code",
)  # fmt: skip
TARGET_NAMES = (
    "y", "target", "value", "load", "demand", "consumption", "usage", "power", "energy", "traffic",
    "throughput", "volume", "count", "down", "ot", "kwh", "mwh", "kw", "mw", "gw",
)  # fmt: skip
KNOWN_NAMES = (
    "holiday", "workday", "weekend", "weekday", "event", "promo", "hour", "minute", "day", "dow",
    "month", "year", "week", "quarter", "tariff",
)  # fmt: skip
COVARIATE_NAMES = (
    *KNOWN_NAMES, "temp", "temperature", "humidity", "wind", "rain", "pressure", "radiation",
    "cloud", "price", "lat", "lon", "latitude", "longitude",
)  # fmt: skip
MOST_BAD = 0.05
"""Share of rows that may not fit what a column is; the reader will name them."""


@dataclass(frozen=True)
class Guess:
    """What columns seem to mean. `targets` has one entry in the long layout.

    others: columns that might be covariates, and as what. rows: of one series, None where the part
    that was looked at does not tell. frequency: None where the stamps show none.
    """

    time: str
    id: str | None
    targets: tuple[str, ...]
    others: Mapping[str, Role]
    frequency: Frequency | None
    rows: int | None


@dataclass(frozen=True)
class _Table:
    """The first rows of a file; columns whose name is unique and not empty."""

    columns: dict[str, pa.Array]
    whole: bool


def guess_columns(path: str) -> Guess:
    """Look at the first file of a path. Raises DataError if it has no time or number column."""
    item = find_inputs(DataConfig(path=path))[0]
    table = _head(item)
    columns = table.columns
    time = _time(columns)
    if time is None:
        raise DataError(
            f"{item.uri}: no column holds times, among {', '.join(map(repr, columns))}; "
            "write them like 2014-01-31 13:30",
            field="data.time",
        )
    read = read_stamps(columns[time])
    good = np.flatnonzero(~read.bad)
    stamps = read.us[good]
    rest = {name: column.take(pa.array(good)) for name, column in columns.items() if name != time}
    numeric = [name for name, column in rest.items() if _is_number(column)]
    series = _series(rest, numeric, stamps)
    numeric = [name for name in numeric if name != series]
    if not numeric:
        raise DataError(
            f"{item.uri}: no column holds numbers, among {', '.join(map(repr, columns))}",
            field="data.target",
        )
    targets = _targets(numeric, rest, wide=series is None)
    ids = _codes(rest[series]) if series else np.zeros(stamps.size, np.int64)
    return Guess(
        time=time,
        id=series,
        targets=targets,
        others=_others(rest, numeric, {series or "", *targets}, ids),
        frequency=_frequency(ids, stamps),
        rows=_rows(ids, table.whole),
    )


def _head(item: Input) -> _Table:
    file = open_file(item, "")
    count = Counter(file.header)
    wanted = [name for name in file.header if name.strip() and count[name] == 1]
    if not wanted:
        raise DataError(f"{item.uri}: no column has a name of its own; name them in the first line")
    batches = file.batches(wanted)
    first = next(batches, None)
    if first is None or not first.rows.size:
        raise DataError(f"{item.uri}: the file has no rows", field="data.path")
    whole = first.rows.size <= ROWS and next(batches, None) is None
    return _Table({name: first.columns[name].slice(0, ROWS) for name in wanted}, whole)


def _time(columns: dict[str, pa.Array]) -> str | None:
    """A column in which every value is a time; named like one, else written like one."""
    fits = [name for name, column in columns.items() if _is_time(column)]
    named = [name for name in _ranked(fits, TIME_NAMES) if _rank(name, TIME_NAMES) is not None]
    written = [name for name in fits if not _is_number(columns[name])]
    return next(iter([*named, *written, *fits]), None)


def _is_time(column: pa.Array) -> bool:
    return bool(len(column)) and bool(read_stamps(column).bad.mean() <= MOST_BAD)


def _is_number(column: pa.Array) -> bool:
    values, bad = numbers(column, allow_bool=True)
    finite = np.isfinite(values.to_numpy(zero_copy_only=False))
    return bool(bad.mean() <= MOST_BAD) and bool(finite.any())


def _others(
    rest: dict[str, pa.Array], numeric: Sequence[str], taken: set[str], ids: np.ndarray
) -> dict[str, Role]:
    """Columns that might be covariates: numbers, and texts of which every series has one."""
    found: dict[str, Role] = {}
    for name, column in rest.items():
        if name in taken:
            continue
        if name in numeric:
            found[name] = _role(name, column, ids)
        elif _one_each(_codes(column), ids) and _are_labels(column):
            found[name] = "static"
    return found


def _one_each(values: np.ndarray, ids: np.ndarray) -> bool:
    """Whether several series have one value each."""
    series = np.unique(ids)
    return series.size > 1 and all(np.unique(values[ids == one]).size == 1 for one in series)


def _rows(ids: np.ndarray, whole: bool) -> int | None:
    """Rows of a typical series; of a part, where series follow one another and the first ended."""
    counts = np.unique(ids, return_counts=True)[1]
    if not whole:
        ended = counts.size - 1 == np.count_nonzero(np.diff(ids))
        counts = counts[:-1] if ended else counts[:0]
    return int(np.median(counts)) if counts.size else None


def _role(name: str, column: pa.Array, ids: np.ndarray) -> Role:
    values = numbers(column, allow_bool=True)[0].to_numpy(zero_copy_only=False)
    if _one_each(values, ids):
        return "static"
    return "past" if _rank(name, KNOWN_NAMES) is None else "known_future"


def _series(rest: dict[str, pa.Array], numeric: Sequence[str], stamps: np.ndarray) -> str | None:
    """The column that names series: by its name, or because times repeat without it."""
    labels = [
        name
        for name, column in rest.items()
        if _are_labels(column) and (name not in numeric or _names_things(name))
    ]
    repeated = stamps.size - np.unique(stamps).size
    named = [name for name in _ranked(labels, ID_NAMES) if _rank(name, ID_NAMES) is not None]
    texts = [name for name in labels if name not in numeric]
    if not repeated:
        constant = [name for name in texts if np.unique(_codes(rest[name])).size == 1]
        return next(iter([*(name for name in named if name in texts), *constant]), None)
    left = {name: _repeated(_codes(rest[name]), stamps) for name in [*named, *texts]}
    best = min(left, key=lambda name: left[name], default=None)
    return best if best is not None and left[best] < repeated else None


def _names_things(name: str) -> bool:
    """Whether numbers under this name are likely to be names: `meter`, but not `meter_reading`."""
    lowered = name.strip().lower()
    return lowered in ID_NAMES or lowered.endswith(("id", "_no", "number", "code"))


def _are_labels(column: pa.Array) -> bool:
    """Every row has a name, and names come back."""
    if names(column)[1].any() or len(column) < 2:
        return False
    return 2 * np.unique(_codes(column)).size <= len(column)


def _codes(column: pa.Array) -> np.ndarray:
    encoded = names(column)[0].dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _repeated(codes: np.ndarray, stamps: np.ndarray) -> int:
    """Rows whose series and time were there before."""
    return int(stamps.size - np.unique(np.stack([codes, stamps]), axis=1).shape[1])


def _targets(numeric: list[str], rest: dict[str, pa.Array], *, wide: bool) -> tuple[str, ...]:
    """One column, or several of equal rank where the table can be wide."""
    likely = [name for name in numeric if _rank(name, COVARIATE_NAMES) is None]
    likely = [name for name in likely if not _is_flag(rest[name])] or likely or numeric
    exact = [name for name in TARGET_NAMES if name in {one.lower() for one in likely}]
    if exact:
        return (next(name for name in likely if name.lower() == exact[0]),)
    telling = [name for name in likely if _rank(name, TARGET_NAMES) is not None]
    if len(telling) == 1:
        return (telling[0],)
    return tuple(telling or likely) if wide else ((telling or likely)[0],)


def _is_flag(column: pa.Array) -> bool:
    values = numbers(column, allow_bool=True)[0].to_numpy(zero_copy_only=False)
    return bool(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all())


def _ranked(found: Sequence[str], telling: Sequence[str]) -> list[str]:
    def key(name: str) -> int:
        rank = _rank(name, telling)
        return len(telling) if rank is None else rank

    return sorted(found, key=key)


def _rank(name: str, telling: Sequence[str]) -> int | None:
    """Place of the first telling name that is the column's name or a word of it."""
    lowered = name.strip().lower()
    words = {lowered, *re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())}
    return next((place for place, one in enumerate(telling) if one in words), None)


def _frequency(ids: np.ndarray, stamps: np.ndarray) -> Frequency | None:
    try:
        return infer_frequency(ids, stamps)
    except DataError:
        return None
