"""Calls of a replica's model: when each began and ended, and since when its requests had waited.

Design choices: who calls the model puts down moments that it has looked at anyway, one entry a
call, and the thread that reports takes them away and does the arithmetic; a list and a deque of
CPython take single entries from several threads without a lock; nothing is put down unless
somebody reports, and never without a bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST = 65_536
"""Calls that are kept for whoever reports: more than any replica makes between two reports."""


class ModelCall(NamedTuple):
    """Moments of `time.monotonic()`; `since`: when each of its requests began to wait."""

    began: float
    ended: float
    since: Sequence[float]


class ModelCalls:
    """Calls of all models of a replica. Every method may be called from any thread.

    `wanted` says that somebody takes them.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._running: list[float] = []
        self._done: deque[ModelCall] = deque(maxlen=MOST)

    def begin(self, at: float) -> None:
        """A call runs from now on."""
        self._running.append(at)

    def end(self, call: ModelCall) -> None:
        """It is over."""
        self._running.remove(call.began)
        if self.wanted:
            self._done.append(call)

    def running(self) -> Sequence[float]:
        """When each call began that is not over."""
        return list(self._running)

    def take(self) -> Sequence[ModelCall]:
        """Calls that ended since this was last asked, in their order."""
        return [self._done.popleft() for _ in range(len(self._done))]


def busy_s(spans: Iterable[tuple[float, float]], since: float, until: float) -> float:
    """Seconds between two moments in which at least one of the spans (begin, end) lasted."""
    total, reached = 0.0, since
    for begin, end in sorted(spans):
        begin, end = max(begin, reached), min(end, until)
        if end > begin:
            total += end - begin
            reached = end
    return total
