"""How busy a replica is, in plain numbers: what scaling and metrics read.

Design choices: requests in the system are their rate times their time in it (Little, 1961), because
those that wait in a socket are seen by nobody but themselves; those in work now are the least of
it, so that a replica that answers nobody counts as busy; whole seconds are the unit of memory, so
a request costs O(1) and a look a few additions; the last, unfinished second is left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RECENT_S = 5
"""Seconds that rates and latencies look back."""
NOW_S = 2
"""Seconds that the number of requests in the system looks back."""
SAMPLES = 512


@dataclass(frozen=True)
class Reading:
    """`p95_ms`: 95th percentile of recent answers, 0 without any; `per_s`: requests a second;
    `inside`: mean number of requests in the system."""

    per_s: float
    p95_ms: float
    inside: float


@dataclass(slots=True)
class _Second:
    at: int
    count: int = 0
    total_s: float = 0.0


class Load:
    """Requests of the last seconds, whatever becomes of them. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[_Second] = deque(maxlen=RECENT_S + 1)
        self._taken: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self.ongoing = 0
        """Requests that are in work."""

    def began(self) -> None:
        """A request is in work from now on."""
        self.ongoing += 1

    def ended(self, seconds: float, *, long: bool = False) -> None:
        """One of them is over; it was in the system for so long, waiting before it included.

        long: the time it takes is its caller's wish, and says nothing of the latency.
        """
        now = self._clock()
        self.ongoing -= 1
        if not long:
            self._taken.append((now, seconds))
        if not self._seconds or self._seconds[-1].at != int(now):
            self._seconds.append(_Second(int(now)))
        last = self._seconds[-1]
        last.count += 1
        last.total_s += seconds

    def reading(self) -> Reading:
        """The last whole seconds."""
        now = self._clock()
        whole = [one for one in self._seconds if int(now) - RECENT_S <= one.at < int(now)]
        taken = sorted(s for at, s in self._taken if at > now - RECENT_S)
        inside = sum(one.total_s for one in whole if one.at >= int(now) - NOW_S) / NOW_S
        return Reading(
            per_s=sum(one.count for one in whole) / RECENT_S,
            p95_ms=1e3 * taken[min(len(taken) - 1, int(0.95 * len(taken)))] if taken else 0.0,
            inside=max(inside, float(self.ongoing)),
        )
