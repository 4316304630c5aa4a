"""Stamps of samples to UTC microseconds, the usual forms without a look at each.

Design choices: what is no stamp, and what a number means, is decided by the same rules as for
files; a batch that is all text of one form is converted in one step, which is ten times faster; the
form is told from the first stamp, because trying a wrong one costs more than the right one; no
stamp may be read differently beside other stamps, since it depends on timing which messages arrive
together. So forms on which the two ways differ never take the fast one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.panel import from_local_us
from flts_ray.sources.stamps import parse_stamps

_ZONED = re.compile(r"[T ].*([Zz]|[+-]\d\d(:?\d\d)?)$")
_FIRST_US = -5_364_662_400_000_000
_AFTER_US = 7_258_118_400_000_000
_INT64 = np.iinfo(np.int64)


def sample_stamps(
    values: Sequence[str | int | float], time_zone: str
) -> tuple[np.ndarray, np.ndarray]:
    """UTC microseconds (int64 [rows]) and the mask of values that are no stamp (bool [rows]).

    Text is ISO 8601 or digits; numbers count s, ms, us or ns since 1970, by magnitude, and may
    have a fraction. Text without offset is wall clock of `time_zone`. Bad rows are 0.
    """
    kinds = set(map(type, values))
    if kinds <= {str}:
        return _text(pa.array(values, pa.string()), time_zone)
    if kinds == {int}:
        return _integers(values, time_zone)
    us, bad = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    for kind, read in ((str, _strings), (int, _integers), (float, _floats)):
        rows = [at for at, value in enumerate(values) if type(value) is kind]
        us[rows], bad[rows] = read([values[at] for at in rows], time_zone)
    return us, bad


def _strings(values: Sequence[str | int | float], zone: str) -> tuple[np.ndarray, np.ndarray]:
    return _text(pa.array(values, pa.string()), zone)


def _text(column: pa.Array, zone: str) -> tuple[np.ndarray, np.ndarray]:
    if not len(column):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    zoned = _ZONED.search(column[0].as_py()) is not None
    try:
        moments = pc.cast(column, pa.timestamp("us", tz="UTC" if zoned else None))
    except pa.ArrowInvalid:
        return _value_by_value(column, zone)
    us = moments.cast(pa.int64()).to_numpy(zero_copy_only=False)
    bad = (us < _FIRST_US) | (us >= _AFTER_US)
    us = np.where(bad, 0, us)
    return us if zoned else np.where(bad, 0, from_local_us(us, zone)), bad


def _value_by_value(column: pa.Array, zone: str) -> tuple[np.ndarray, np.ndarray]:
    # Beside a value that is no stamp the others cannot be read as one form.
    us, bad = parse_stamps(pa.concat_arrays([column, pa.array(["-"])]), zone)
    return us[:-1], bad[:-1]


def _integers(values: Sequence[str | int | float], zone: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        column = pa.array(values, pa.int64())
    except (OverflowError, pa.ArrowInvalid):
        # 0 is no stamp either: too small for any unit.
        fitting = [value if _INT64.min <= value <= _INT64.max else 0 for value in values]  # type: ignore[operator]
        column = pa.array(fitting, pa.int64())
    return parse_stamps(column, zone)


def _floats(values: Sequence[str | int | float], zone: str) -> tuple[np.ndarray, np.ndarray]:
    return _integers([_counted(float(value)) for value in values], zone)


def _counted(value: float) -> int:
    """The same moment as an integer; seconds and milliseconds keep their fraction."""
    size = abs(value)
    if value == value // 1 or not 1e8 <= size < 1e14 or 1e11 <= size < 3e11:
        return int(value) if size < float("inf") else 0
    return round(value * 1e6) if size < 1e11 else round(value * 1e3)
