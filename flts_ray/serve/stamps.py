"""Time stamps of requests and answers: many at once, and those of the usual origins once.

Design choices: stamps written alike (2024-01-31T13:30:00, with or without Z) are read as one array,
because `datetime` costs a microsecond each; whatever is written otherwise is read one by one; what
depends on the origin alone is kept for the latest origins, because most series of a service end at
the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from flts_ray.panel import Contract, from_local_us, steps_after
from flts_ray.prepare.clean import EARLIEST_US, LATEST_US
from flts_ray.serve.history import calendar_of, parse_stamps, stamps_text

KEPT_ORIGINS = 256
FEW = 8
"""Fewer are read one by one in less time."""
_AT = np.array([4, 7, 10, 13, 16, 19])
_MARKS = np.frombuffer(b"--T::Z", dtype=np.uint8)
_LENGTHS = (19, 20)


def read_stamps(stamps: Sequence[str], time_zone: str, field: str) -> np.ndarray:
    """What `history.parse_stamps` returns and raises, faster where all are written alike."""
    found = _uniform(stamps) if len(stamps) >= FEW else None
    if found is None or not (found >= EARLIEST_US).all() or not (found < LATEST_US).all():
        return parse_stamps(stamps, time_zone, field)
    return found if len(stamps[0]) == _LENGTHS[1] else from_local_us(found, time_zone)


def _uniform(stamps: Sequence[str]) -> np.ndarray | None:
    """Microseconds as if all were UTC, int64; None unless every stamp has the usual form."""
    count = len(stamps)
    length = len(stamps[0]) if count else 0
    if length not in _LENGTHS or any(len(text) != length for text in stamps):
        return None
    try:
        raw = "".join(stamps).encode("ascii")
    except UnicodeEncodeError:
        return None
    if b"\0" in raw:  # NumPy takes it for the end of a text
        return None
    text = np.frombuffer(raw, dtype=np.uint8).reshape(count, length)
    if not (text[:, _AT[: length - 14]] == _MARKS[: length - 14]).all():
        return None
    try:
        moments = np.frombuffer(raw, dtype=f"S{length}").astype("S19").astype("datetime64[us]")
    except ValueError:
        return None
    return moments.astype(np.int64)


def calendars(origin_us: np.ndarray, lookback: int, horizon: int, contract: Contract) -> np.ndarray:
    """Calendar columns around each origin, float32 [n, L + H, C]."""
    first = int(origin_us[0])
    if len(origin_us) == 1:
        return _calendar(first, lookback, horizon, contract)
    if (origin_us == first).all():
        one = _calendar(first, lookback, horizon, contract)
        return np.broadcast_to(one, (len(origin_us), *one.shape[1:]))
    origins, inverse = np.unique(origin_us, return_inverse=True)
    if len(origins) <= KEPT_ORIGINS // 4:
        every = np.concatenate([_calendar(int(u), lookback, horizon, contract) for u in origins])
    else:
        steps = np.arange(-lookback, horizon)
        every = calendar_of(steps_after(origins[:, None], steps, contract), contract)
    return every[inverse]


@lru_cache(maxsize=KEPT_ORIGINS)
def _calendar(origin_us: int, lookback: int, horizon: int, contract: Contract) -> np.ndarray:
    """float32 [1, L + H, C]"""
    stamps = steps_after(np.asarray([[origin_us]]), np.arange(-lookback, horizon), contract)
    found = calendar_of(stamps, contract)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=KEPT_ORIGINS)
def step_stamps(origin_us: int, steps: int, contract: Contract) -> tuple[str, ...]:
    """ISO stamps of the steps from an origin on."""
    return tuple(stamps_text(steps_after(np.asarray(origin_us), np.arange(steps), contract)))
