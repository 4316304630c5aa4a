"""How busy a replica is, in plain numbers: what scaling and metrics read.

Design choices: whole seconds are the unit of memory, so a request costs O(1) and a look a few
additions; the last, unfinished second is left out of rates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RECENT_S = 5
"""Seconds that rates and latencies look back."""
SAMPLES = 512


@dataclass(frozen=True)
class Reading:
    """`p95_ms`: 95th percentile of recent answers, 0 without any; `per_s`: requests a second."""

    per_s: float
    p95_ms: float


class Load:
    """Arrivals and latencies of the last seconds. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: deque[tuple[int, int]] = deque(maxlen=RECENT_S + 1)
        self._taken: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self.requests = 0

    def arrived(self) -> float:
        """Count one request; returns the time, for `answered`."""
        now = self._clock()
        self.requests += 1
        second = int(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1] = (second, self._counts[-1][1] + 1)
        else:
            self._counts.append((second, 1))
        return now

    def answered(self, arrived: float) -> None:
        """The request that arrived then has its answer."""
        now = self._clock()
        self._taken.append((now, now - arrived))

    def reading(self) -> Reading:
        """The last RECENT_S whole seconds."""
        now = self._clock()
        since = int(now) - RECENT_S
        count = sum(n for second, n in self._counts if since <= second < int(now))
        taken = sorted(s for at, s in self._taken if at > now - RECENT_S)
        p95 = taken[min(len(taken) - 1, int(0.95 * len(taken)))] if taken else 0.0
        return Reading(count / RECENT_S, p95 * 1e3)
