"""The table everybody speaks: `unique_id: string, ds: timestamp[us, UTC], y: double`, covariates.

Design choices: Arrow, because Parquet, Ray Data and HTTP bodies speak it without a copy; UTC
inside, the local zone is kept in the contract for calendar features; a frequency is a fixed step
in UTC below one day and a step in local wall-clock time from one day up, so that daily series
stay at local midnight across daylight-saving changes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from flts_ray.errors import ConfigError

Role = Literal["past", "known_future", "static"]

US_PER_SECOND = 1_000_000
US_PER_DAY = 86_400 * US_PER_SECOND
UNKNOWN_CATEGORY = -1.0
"""Code of a static text value that is missing or that no series of the prepared set had."""
_UNIT_US = {
    "s": US_PER_SECOND,
    "min": 60 * US_PER_SECOND,
    "h": 3600 * US_PER_SECOND,
    "D": US_PER_DAY,
    "W": 7 * US_PER_DAY,
}

BASE_SCHEMA = pa.schema(
    [
        pa.field("unique_id", pa.string()),
        pa.field("ds", pa.timestamp("us", tz="UTC")),
        pa.field("y", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Frequency:
    """A regular step: a count of seconds, minutes, hours, days or weeks, such as `30min`."""

    text: str

    def __post_init__(self) -> None:
        match = re.fullmatch(r"(\d*)(s|min|h|D|W)", self.text)
        if not match or match.group(1) == "0":
            raise ConfigError(
                f"frequency {self.text!r} is not understood; write a count and a unit "
                "(s, min, h, D, W), for example 30min, 1h or 1D"
            )

    @cached_property
    def step_us(self) -> int:
        """Length of one step in microseconds (of wall-clock time from one day up)."""
        match = re.fullmatch(r"(\d*)(s|min|h|D|W)", self.text)
        assert match is not None  # __post_init__ refused everything else
        return int(match.group(1) or 1) * _UNIT_US[match.group(2)]

    @property
    def wall_clock(self) -> bool:
        """True when steps are counted in local wall-clock time (one day and longer)."""
        return self.step_us % US_PER_DAY == 0

    @property
    def default_season(self) -> int:
        """Steps in the shortest natural cycle: a day below one day, else a week, else a year."""
        if self.step_us < US_PER_DAY:
            return max(1, US_PER_DAY // self.step_us)
        if self.step_us < 7 * US_PER_DAY:
            return max(1, 7 * US_PER_DAY // self.step_us)
        return max(1, round(365.25 * US_PER_DAY / self.step_us))

    @classmethod
    def of_step(cls, step_us: int) -> Frequency:
        """The frequency with this step; raises ConfigError if it is no whole second."""
        for unit in ("W", "D", "h", "min", "s"):
            count, rest = divmod(step_us, _UNIT_US[unit])
            if count and not rest:
                return cls(f"{count}{unit}")
        raise ConfigError(f"a step of {step_us} microseconds is no whole number of seconds")


def local_offset_us(ds_us: np.ndarray, time_zone: str) -> np.ndarray:
    """UTC offset of each instant in `time_zone`.

    ds_us: int64 microseconds since the epoch, UTC. Returns int64 microseconds, same shape.
    """
    if time_zone == "UTC" or ds_us.size == 0:
        return np.zeros_like(ds_us)
    zone = ZoneInfo(time_zone)
    return _stepwise(
        ds_us, lambda s: _offset_us(datetime.fromtimestamp(s, tz=UTC).astimezone(zone))
    )


def _stepwise(us: np.ndarray, offset_at: Callable[[int], int]) -> np.ndarray:
    """`offset_at(seconds)` of each time; int64 microseconds, same shape.

    An offset changes at most once a day, on a whole quarter hour: days that begin and end alike
    need no closer look, and elsewhere one look-up a quarter hour is exact.
    """
    days, inverse = np.unique(us // US_PER_DAY, return_inverse=True)
    ends = np.array([[offset_at(86_400 * int(d + i)) for i in (0, 1)] for d in days], np.int64)
    offsets = ends[inverse.reshape(-1), 0]
    changing = np.flatnonzero((ends[:, 0] != ends[:, 1])[inverse.reshape(-1)])
    quarters, inverse = np.unique(
        us.reshape(-1)[changing] // (900 * US_PER_SECOND), return_inverse=True
    )
    found = np.array([offset_at(900 * int(quarter)) for quarter in quarters], np.int64)
    offsets[changing] = found[inverse]
    return offsets.reshape(us.shape)


def _offset_us(moment: datetime) -> int:
    offset = moment.utcoffset()
    return 0 if offset is None else int(offset.total_seconds()) * US_PER_SECOND


def to_local_us(ds_us: np.ndarray, time_zone: str) -> np.ndarray:
    """Wall-clock microseconds (as if the wall clock were UTC) of UTC instants."""
    return ds_us + local_offset_us(ds_us, time_zone)


def from_local_us(wall_us: np.ndarray, time_zone: str) -> np.ndarray:
    """UTC instants of wall-clock times; the inverse of `to_local_us` where one exists.

    An ambiguous wall time (clock set back) is its first occurrence; a wall time that does not
    exist (clock set forward) is read with the offset before the change, as the standard
    library does for fold=0 (PEP 495).
    """
    if time_zone == "UTC" or wall_us.size == 0:
        return wall_us.copy()
    zone = ZoneInfo(time_zone)
    return wall_us - _stepwise(
        wall_us, lambda s: _offset_us(datetime.fromtimestamp(s, tz=UTC).replace(tzinfo=zone))
    )


def steps_after(start_us: np.ndarray, steps: np.ndarray, contract: Contract) -> np.ndarray:
    """Instants `steps` grid steps after `start_us`, broadcast against each other.

    start_us: int64 UTC microseconds; steps: integers, may be negative. Returns int64 UTC.
    """
    frequency = contract.frequency
    start_us, steps = np.asarray(start_us, np.int64), np.asarray(steps, np.int64)
    if not frequency.wall_clock or contract.time_zone == "UTC":
        return start_us + steps * frequency.step_us
    wall = to_local_us(start_us, contract.time_zone) + steps * frequency.step_us
    return from_local_us(wall, contract.time_zone)


@dataclass(frozen=True)
class Contract:
    """What the columns of a panel mean; travels with prepared sets and inside artifacts.

    Column order of `known_future`, `past` and `static` is the order of the last axis of the
    matching arrays. `calendar` names the generated calendar columns, which precede
    `known_future` in `future` arrays. `season` is in steps. `max_gap` is how many
    steps of a gap are imputed, counted from its start. `categories` belongs to `static`, column
    by column: the sorted labels of one that holds text, whose positions are its values in
    arrays, and none for one that holds numbers.
    """

    freq: str
    season: int
    time_zone: str = "UTC"
    targets: tuple[str, ...] = ("y",)
    units: str = ""
    calendar: tuple[str, ...] = ()
    known_future: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    holidays: str | None = None
    max_gap: int = 0
    categories: tuple[tuple[str, ...], ...] = ()

    @property
    def frequency(self) -> Frequency:
        return Frequency(self.freq)

    @property
    def future(self) -> tuple[str, ...]:
        """Columns of a `future` array: calendar first, then known-future covariates."""
        return self.calendar + self.known_future

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The sorted labels of every static column that holds text."""
        named = zip(self.static, self.categories, strict=False)
        return {name: labels for name, labels in named if labels}

    def code_of(self, name: str, label: str | None) -> float:
        """What stands in arrays for a label of the static column `name`.

        UNKNOWN_CATEGORY for a missing label and for one that no series of the set had.
        """
        labels = self.labels[name]
        at = bisect_left(labels, label) if label is not None else len(labels)
        return float(at) if at < len(labels) and labels[at] == label else UNKNOWN_CATEGORY

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Contract:
        return cls(**{name: _frozen(value) for name, value in raw.items()})


def _frozen(value: Any) -> Any:
    """Lists as tuples, at every depth."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
