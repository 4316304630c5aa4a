"""A blend whose members go on learning; who serves which series stays.

Design choices: members are updated as if each stood alone, but for their bands: those of the blend
follow what the blend has missed, because bands that are right one by one are not when they are
mixed; the weights, which were chosen on forecasts that nobody had seen, stay; a series that is new
gets the row that any new series is served by, without the members that know only their own series,
so that it is forecast after the update as it was before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.models.base import Compute, Fitted, forecaster
from flts_ray.models.memory import NEVER, Memory, memory_of, of_series, until_of
from flts_ray.models.track import Track
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats


def updated_members(
    members: tuple[Fitted, ...], data: SeriesArrays, compute: Compute
) -> tuple[Fitted, ...]:
    """Every member after the news, its bands as they were."""
    alone = replace(compute, bands=False)
    return tuple(forecaster(one.spec.kind).update(one, data, alone) for one in members)


def shared_memory(
    stats: SeriesStats, members: tuple[Fitted, ...], own: Memory | None = None
) -> Memory | None:
    """What a blend has seen: all that any of its members has, and it itself since.

    None if a member does not tell.
    """
    memories = [(one, memory_of(one)) for one in members]
    until = np.full(len(stats.ids), NEVER)
    learned = until
    for one, memory in memories:
        if memory is None:
            return None
        until = np.maximum(until, until_of(memory, one.stats, stats.ids))
        learned = np.maximum(learned, of_series(memory.learned_us, one.stats, stats.ids))
    task = members[0].spec.task
    if own is None:
        return Memory(until, learned, Track.none(task.horizon, len(task.levels)))
    return replace(own, until_us=np.maximum(until, own.until_us), learned_us=learned)


def row_of_new(weights: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Weights [M] of a series that the members in `bound` (bool [M]) do not know."""
    free = np.where(bound, 0.0, weights)
    return np.asarray(free / free.sum())
