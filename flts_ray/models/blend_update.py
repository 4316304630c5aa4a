"""A blend whose members go on learning; who serves which series stays.

Design choices: members are updated as if each stood alone, bands included, and the weights, which
were chosen on forecasts that nobody had seen, stay; a series that is new gets the row that any new
series is served by, without the members that know only their own series, so that it is forecast
after the update as it was before.
"""

from __future__ import annotations

import numpy as np

from flts_ray.models.base import Compute, Fitted, forecaster
from flts_ray.models.memory import NEVER, Memory, memory_of, until_of
from flts_ray.models.news import news_of
from flts_ray.models.recent_scores import RecentScores
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats


def updated_members(
    members: tuple[Fitted, ...], data: SeriesArrays, compute: Compute
) -> tuple[Fitted, ...]:
    """Every member after the news."""
    return tuple(forecaster(one.spec.kind).update(one, data, compute) for one in members)


def grown_stats(fitted: Fitted, data: SeriesArrays) -> SeriesStats | None:
    """Statistics of the blend after the update, new series last; None where nothing is new."""
    news = news_of(fitted, data, only_known=fitted.spec.needs_known_series)
    return None if news is None else news.stats


def shared_memory(stats: SeriesStats, members: tuple[Fitted, ...]) -> Memory | None:
    """What a blend has seen: all that any of its members has. None if one does not tell."""
    memories = [(one, memory_of(one)) for one in members]
    until = np.full(len(stats.ids), NEVER)
    for one, memory in memories:
        if memory is None:
            return None
        until = np.maximum(until, until_of(memory, one.stats, stats.ids))
    task = members[0].spec.task
    return Memory(until, RecentScores.none(0.0, task.horizon, len(task.levels)))


def row_of_new(weights: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Weights [M] of a series that the members in `bound` (bool [M]) do not know."""
    free = np.where(bound, 0.0, weights)
    return np.asarray(free / free.sum())
