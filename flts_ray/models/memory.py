"""What a fitted model remembers: how far it has seen each series, and how its bands fared since.

Design choices: positions are instants, because a newer prepared set may begin or order its series
otherwise; what a model has seen is a property of the model, stored in its artifact, so that
whoever judges it need not find the data it was made from; forecasts never read the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted, Task
from flts_ray.models.track import Track
from flts_ray.panel import Contract, steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats

PREFIX = "memory."
NEVER = int(np.iinfo(np.int64).min)
"""Seen position of a series that was never seen."""


@dataclass(frozen=True)
class Memory:
    """until_us: int64 [series of the model], UTC microseconds, the first step of each series
    that neither fit, choice, calibration nor update has used; learned_us: the same without what
    was used for bands alone. track: of the bands since the fit; base, count: windows that the fit
    calibrated on, and that came with what was learned since."""

    until_us: np.ndarray
    learned_us: np.ndarray
    track: Track
    base: float = 0.0
    count: float = 0.0

    @classmethod
    def of(cls, data: SeriesArrays, task: Task) -> Memory:
        """What a fit on `data` has seen: all before the test span."""
        spans = np.maximum(data.valid_end - data.train_end - task.horizon + 1, 0)
        until = steps_after(data.start_us, data.valid_end, data.contract)
        return cls(until, until, Track.none(task.horizon, len(task.levels)), float(spans.sum()))

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for `Fitted.state`."""
        weights = np.array([self.base, self.count])
        positions = {"until": self.until_us, "learned": self.learned_us}
        named = {**positions, "weights": weights, **self.track.arrays()}
        return {f"{PREFIX}{name}": array for name, array in named.items()}


def memory_of(fitted: Fitted) -> Memory | None:
    """What a model remembers; None where nobody knows."""
    memory: Memory | None = getattr(fitted, "memory", None)
    return memory


def stored(memory: Memory | None) -> dict[str, np.ndarray]:
    """Arrays for `Fitted.state`; none where there is no memory."""
    return {} if memory is None else memory.arrays()


def split_memory(
    arrays: dict[str, np.ndarray], stats: SeriesStats, task: Task
) -> tuple[dict[str, np.ndarray], Memory | None]:
    """Stored arrays without those of the memory, and the memory.

    Raises KeyError and ValueError for a memory of other series or of another task.
    """
    mine = {k.removeprefix(PREFIX): a for k, a in arrays.items() if k.startswith(PREFIX)}
    rest = {k: a for k, a in arrays.items() if not k.startswith(PREFIX)}
    if not mine:
        return rest, None
    until, track = mine["until"], Track.from_arrays(mine)
    learned = mine.get("learned", until)  # until bands could be followed alone, all was learned
    base, count = (float(value) for value in mine["weights"])
    for seen in (until, learned):
        if seen.shape != (len(stats.ids),) or seen.dtype != np.int64:
            raise ValueError(f"the memory is of {seen.shape} series, not of {len(stats.ids)}")
    if track.shift.shape != (task.horizon, len(task.levels)):
        raise ValueError(f"the memory has bands of another task, {track.shift.shape}")
    return rest, Memory(until, learned, track, base, count)


def needed_memory(fitted: Fitted) -> Memory:
    """The memory of a model. Raises DataError where it has none, so that it cannot be updated."""
    memory = memory_of(fitted)
    if memory is None:
        raise DataError(
            f"{fitted.spec.kind}: this model does not tell how far it has seen its series, so "
            "nobody knows which rows are new to it; train again",
            field="model",
        )
    return memory


def until_of(memory: Memory, stats: SeriesStats, ids: Sequence[str]) -> np.ndarray:
    """How far each of these series was seen: int64 [n], NEVER for one that was not."""
    return of_series(memory.until_us, stats, ids)


def of_series(seen_us: np.ndarray, stats: SeriesStats, ids: Sequence[str]) -> np.ndarray:
    """Seen positions of these series, those in `stats` having [S]: int64 [n], NEVER for others."""
    rows = (stats.row_of.get(name, -1) for name in ids)
    at = np.fromiter(rows, dtype=np.int64, count=len(ids))
    return np.append(seen_us, NEVER)[at]


def positions_of(until_us: np.ndarray, start_us: np.ndarray, contract: Contract) -> np.ndarray:
    """Steps from the start of each series that lie before `until_us`: int64 [n], not negative."""
    frequency, seen = contract.frequency, until_us > start_us
    begin, end = start_us, np.where(seen, until_us, start_us)
    if frequency.wall_clock and contract.time_zone != "UTC":
        begin, end = (to_local_us(each, contract.time_zone) for each in (begin, end))
    return np.asarray(-((begin - end) // frequency.step_us), dtype=np.int64)


def seen_positions(fitted: Fitted, data: SeriesArrays) -> np.ndarray | None:
    """First step of each series of `data` that the model has not seen: int64 [series].

    None for a model that does not tell.
    """
    memory = memory_of(fitted)
    if memory is None:
        return None
    until = until_of(memory, fitted.stats, data.ids)
    return positions_of(until, data.start_us, data.contract)
