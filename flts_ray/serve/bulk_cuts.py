"""Where a bulk request is cut into parts.

Design choices: the first parts are one micro-batch each, so that an answer begins soon; later ones
are as many series as the model forecasts in a quarter of a second, because reading and writing a
thousand series costs little more than a hundred; numbers bound a part too, so that long histories
never fill the memory, however many are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flts_ray.models.base import ModelSpec

PART_S = 0.25
"""Time that a part should take."""
MOST_SERIES = 2048
MOST_NUMBERS = 2**20
"""Bounds of one part; a single series may be larger."""


def numbers_of(points: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """About how many numbers each series is while it is forecast, int64 [n]; points: sent."""
    contract, task = spec.contract, spec.task
    columns = 1 + len(contract.past) + len(contract.known_future)
    return np.maximum(points, columns * spec.lookback) + task.horizon * len(task.levels)


class Cuts:
    """The parts of one request in order.

    numbers: int64 [n] of `numbers_of`; batch: series in one micro-batch; now: seconds.
    """

    def __init__(
        self, numbers: np.ndarray, batch: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._ends = np.cumsum(numbers)
        self._batch = batch
        self._now = now
        self._begun = now()
        self._at = 0
        self._size = batch

    def next(self) -> range | None:
        """The series of the next part; None behind the last one."""
        begin, count = self._at, len(self._ends)
        if begin >= count:
            return None
        before = int(self._ends[begin - 1]) if begin else 0
        fit = int(np.searchsorted(self._ends, before + MOST_NUMBERS, side="right")) - begin
        if fit >= self._batch:
            fit -= fit % self._batch
        self._at = min(count, begin + max(1, min(self._size, fit)))
        return range(begin, self._at)

    def done(self, count: int) -> None:
        """So many series, from the first on, have their forecasts by now."""
        pace = count / max(self._now() - self._begun, 1e-9)
        wanted = min(int(pace * PART_S), MOST_SERIES)
        self._size = max(self._batch, wanted - wanted % self._batch)
