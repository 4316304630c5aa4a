"""Time stamps of any usual form to UTC microseconds.

Design choices: a column is read in one vectorised step when all of it has one form, and value by
value (still vectorised) only when it has not, so that every bad row can be named; wall-clock stamps
keep their wall time until all rows of a series are known, because the repeated hour in autumn can
only be told apart by its order; years are limited to 1800-2199, which catches epoch stamps of the
wrong unit and place-holders such as 9999-12-31.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.panel import US_PER_DAY, US_PER_SECOND, from_local_us, local_offset_us

Column: TypeAlias = "pa.Array | pa.ChunkedArray"

_FIRST_US = -5_364_662_400 * US_PER_SECOND
_AFTER_US = 7_258_118_400 * US_PER_SECOND
_ISO = (
    r"^(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})"
    r"(?:[Tt ]+(?P<hour>\d{1,2})(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2})"
    r"(?:[.,](?P<fraction>\d{1,9})\d*)?)?)?)?"
    r"\s*(?P<zone>[Zz]|(?P<sign>[+-])(?P<zone_hour>\d{2})(?::?(?P<zone_minute>\d{2}))?)?$"
)
# Eight to twelve digits that spell a date are not seconds or milliseconds since 1970.
_COMPACT = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d)?)?$"
_EPOCH_UNITS = ((10**17, 1000, False), (10**14, 1, True), (3 * 10**11, 1000, True))
_EPOCH_SECONDS = (10**8, 10**11)


@dataclass(frozen=True)
class Stamps:
    """A column as read. All arrays are [rows].

    us: int64 microseconds, UTC or, where `naive`, of the wall clock. bad: no stamp at all.
    """

    us: np.ndarray
    naive: np.ndarray
    bad: np.ndarray

    def take(self, index: np.ndarray) -> Stamps:
        return Stamps(self.us[index], self.naive[index], self.bad[index])


def parse_stamps(column: Column, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """UTC microseconds (int64 [rows]) and the mask of rows that hold no stamp (bool [rows]).

    Accepts typed timestamps and dates, ISO 8601 text with or without offset, and integers since
    1970 in s, ms, us or ns by magnitude. Stamps without offset are wall clock of `zone`; a
    repeated hour is its first occurrence here, see `resolve_ambiguous`. Bad rows are 0.
    """
    stamps = read_stamps(column)
    return to_utc_us(stamps, zone), stamps.bad


def to_utc_us(stamps: Stamps, zone: str) -> np.ndarray:
    """UTC microseconds, int64 [rows]; repeated hours are their first occurrence."""
    us = stamps.us.copy()
    us[stamps.naive] = from_local_us(us[stamps.naive], zone)
    return us


def read_stamps(column: Column) -> Stamps:
    """Parse without deciding about zones."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_stamps(column.cast(kind.value_type))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _typed(column)
    if pa.types.is_integer(kind):
        return _limited(*_epoch(column.cast(pa.int64(), safe=False)), aware=True)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(column.cast(pa.string()))
    return _none(len(column))


def _none(rows: int) -> Stamps:
    return Stamps(np.zeros(rows, np.int64), np.zeros(rows, bool), np.ones(rows, bool))


def _limited(us: np.ndarray, bad: np.ndarray, aware: bool | np.ndarray) -> Stamps:
    bad = bad | (us < _FIRST_US) | (us >= _AFTER_US)
    return Stamps(np.where(bad, 0, us), ~(bad | aware), bad)


def _integers(column: pa.Array) -> np.ndarray:
    return column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _nulls(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)


def _typed(column: pa.Array) -> Stamps:
    zone = getattr(column.type, "tz", None)
    unit = getattr(column.type, "unit", "")
    if unit == "ns":
        us = _integers(column.cast(pa.int64())) // 1000
    elif unit == "us":
        us = _integers(column.cast(pa.int64()))
    elif unit:
        us = _scaled(column.cast(pa.int64()), US_PER_SECOND if unit == "s" else 1000)
    else:
        us = _scaled(column.cast(pa.date32()).cast(pa.int32()), US_PER_DAY)
    return _limited(us, _nulls(column), aware=zone is not None)


def _scaled(column: pa.Array, factor: int) -> np.ndarray:
    count = _integers(column)
    reach = _AFTER_US // factor + 1
    return np.clip(count, -reach, reach) * factor


def _epoch(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds and bad rows of integers whose unit is told by their size."""
    value = _integers(column)
    size = np.abs(value)
    seconds = (size >= _EPOCH_SECONDS[0]) & (size < _EPOCH_SECONDS[1])
    us = np.where(seconds, value, 0) * US_PER_SECOND
    ceiling = np.iinfo(np.int64).max
    known = seconds
    for floor, factor, multiply in _EPOCH_UNITS:
        here = (size >= floor) & (size < ceiling)
        part = np.where(here, value, 0)
        # Milliseconds are the only unit here that is longer than a microsecond.
        us += part * factor if multiply else part // factor
        known, ceiling = known | here, floor
    bad = ~known | _nulls(column)
    written = column.cast(pa.string()).filter(pa.array(~bad))
    if len(written) and pc.all(pc.match_substring_regex(written, _COMPACT)).as_py():
        bad = np.ones_like(bad)
    return us, bad


def _text(column: pa.Array) -> Stamps:
    """Whole columns of one form first; Arrow raises on the first value that differs."""
    for zone in (None, "UTC"):
        try:
            return _typed(pc.cast(column, pa.timestamp("us", tz=zone)))
        except pa.ArrowInvalid:
            continue
    return _mixed(pc.utf8_trim_whitespace(column))


def _mixed(column: pa.Array) -> Stamps:
    parts = pc.extract_regex(column, pattern=_ISO)
    us, bad = _assembled(parts)
    aware = _is(pc.not_equal(parts.field("zone"), ""))
    digits = _is(pc.match_substring_regex(column, r"^-?(\d{1,18}|[1-8]\d{18})$"))
    if digits.any():
        rows = np.flatnonzero(digits)
        us[rows], bad[rows] = _epoch(column.take(pa.array(rows)).cast(pa.int64()))
        aware[rows] = True
    return _limited(us, bad, aware)


def _is(column: pa.Array) -> np.ndarray:
    return column.fill_null(False).to_numpy(zero_copy_only=False)


def _number(parts: pa.StructArray, name: str) -> np.ndarray:
    text = parts.field(name)
    return _integers(pc.if_else(pc.equal(text, ""), "0", text).cast(pa.int64()))


def _assembled(parts: pa.StructArray) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds (offset subtracted) and bad rows of the fields of `_ISO`."""
    year, month, day = (_number(parts, name) for name in ("year", "month", "day"))
    hour, minute, second = (_number(parts, name) for name in ("hour", "minute", "second"))
    zone_hour, zone_minute = (_number(parts, name) for name in ("zone_hour", "zone_minute"))
    bad = ~_is(parts.is_valid()) | (month < 1) | (month > 12) | (year < 1800) | (year > 2199)
    months = np.where(bad, 0, (year - 1970) * 12 + month - 1)
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    after = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(parts.field("fraction"), 6, "0"), 0, 6)
    micros = _integers(fraction.cast(pa.int64()))
    # 24:00 is the end of the day in ISO 8601.
    midnight = (hour == 24) & (minute == 0) & (second == 0) & (micros == 0)
    bad |= (day < 1) | (day > after - first) | ((hour > 23) & ~midnight)
    bad |= (minute > 59) | (second > 59) | (zone_hour > 23) | (zone_minute > 59)
    sign = np.where(_is(pc.equal(parts.field("sign"), "-")), -1, 1)
    clock = hour * 3600 + minute * 60 + second - sign * (zone_hour * 3600 + zone_minute * 60)
    us = (first + day - 1) * US_PER_DAY + clock * US_PER_SECOND + micros
    return np.where(bad, 0, us), bad


def repeated_hours(wall_us: np.ndarray, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Which wall-clock times occur twice, and how much later the second time is.

    wall_us: int64 [rows]. Returns bool [rows] and int64 microseconds [rows] (0 elsewhere).
    """
    later = np.zeros(wall_us.shape, np.int64)
    if zone != "UTC" and wall_us.size:
        lowest, highest = int(wall_us.min()), int(wall_us.max())
        for start, end in _set_backs(lowest, highest, zone):
            later[(wall_us >= start) & (wall_us < end)] = end - start
    return later > 0, later


def _set_backs(low_us: int, high_us: int, zone: str) -> list[tuple[int, int]]:
    """Wall-clock spans that occur twice between two wall-clock times."""
    days = np.arange(low_us // US_PER_DAY - 2, high_us // US_PER_DAY + 4) * US_PER_DAY
    offsets = local_offset_us(days, zone)
    spans = []
    for i in np.flatnonzero(np.diff(offsets) < 0):
        quarters = np.arange(days[i], days[i + 1] + 1, 900 * US_PER_SECOND)
        inner = local_offset_us(quarters, zone)
        for j in np.flatnonzero(np.diff(inner) < 0):
            change = int(quarters[j + 1])
            spans.append((change + int(inner[j + 1]), change + int(inner[j])))
    return spans


def resolve_ambiguous(wall_us: np.ndarray, series: np.ndarray, zone: str) -> np.ndarray:
    """UTC microseconds (int64 [rows]) of wall-clock times in file order.

    wall_us: int64 [rows]; series: integer codes [rows]. Within the repeated hour of a series:
    the second pass begins where time goes back; a file with the newest row first is read from its
    end; if only one time of the hour is there (hourly data), or the rows are out of order, exact
    repeats are the second pass; all else is the first. Times that do not exist are read with the
    offset before the change.
    """
    us = from_local_us(wall_us, zone)
    repeated, later = repeated_hours(wall_us, zone)
    rows = np.flatnonzero(repeated)
    if not rows.size:
        return us
    # Stable, so that each run keeps file order; no zone repeats two hours in one day.
    rows = rows[np.lexsort((wall_us[rows] // US_PER_DAY, series[rows]))]
    run = np.stack([series[rows], wall_us[rows] // US_PER_DAY])
    borders = np.flatnonzero((run[:, 1:] != run[:, :-1]).any(axis=0)) + 1
    for start, end in pairwise([0, *borders.tolist(), rows.size]):
        members = rows[start:end]
        second = members[_second_pass(wall_us[members])]
        us[second] += later[second]
    return us


def _second_pass(wall_us: np.ndarray) -> np.ndarray:
    """Which rows of one repeated hour, in file order, are its second pass: bool [rows]."""
    steps = np.sign(np.diff(wall_us))
    if steps.sum() < 0:
        return _second_pass(wall_us[::-1])[::-1]
    back = np.flatnonzero(steps < 0)
    if back.size == 1:
        return np.arange(wall_us.size) > back[0]
    if back.size == 0 and wall_us.size and wall_us[0] != wall_us[-1]:
        return np.zeros(wall_us.size, bool)
    second = np.ones(wall_us.size, bool)
    second[np.unique(wall_us, return_index=True)[1]] = False
    return second
