"""Work in parts, wherever they run.

Design choices: a model names a picklable function of the set and a part, and what each part
costs, and does not know whether processes, machines or nobody else helps; results come in the
order of the parts, so that sums are the same wherever they are made; what a part raises is its
result, so that one bad part costs nothing but itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flts_ray.errors import FltsError
from flts_ray.prepare.arrays import SeriesArrays

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """The result of a part that raised, or whose process was lost."""

    reason: str


class Spread(Protocol):
    """Runs one function on many parts."""

    def __call__(
        self,
        work: Callable[[SeriesArrays, Part], Result],
        data: SeriesArrays,
        parts: Sequence[Part],
        costs: Sequence[float],
    ) -> Iterator[Result | Failed]:
        """Results of `work(data, part)` in the order of the parts.

        work: importable by name and deterministic: a part may be run twice; data: sent once;
        costs: expected cost of each part in any unit, one a part.
        """
        ...


def in_turn(
    work: Callable[[SeriesArrays, Part], Result],
    data: SeriesArrays,
    parts: Sequence[Part],
    costs: Sequence[float],
) -> Iterator[Result | Failed]:
    """A `Spread` that runs the parts one after the other in this process."""
    return (attempt(work, data, part) for part in parts)


def attempt(
    work: Callable[[SeriesArrays, Part], Result], data: SeriesArrays, part: Part
) -> Result | Failed:
    """What a part gives, or why it gave nothing."""
    try:
        return work(data, part)
    except FltsError as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001 - any error is the part's own result
        return Failed(f"{type(error).__name__}: {error}")


def whole(results: Iterator[Result | Failed]) -> Iterator[Result]:
    """The same results where each is needed. Raises FltsError for the first that failed."""
    for result in results:
        if isinstance(result, Failed):
            raise FltsError(
                f"a part of the fit failed: {result.reason}; correct its cause and train again"
            )
        yield result


def packed(costs: Sequence[float], bins: int) -> list[list[int]]:
    """Indices of parts in at most `bins` groups of about the same cost, the costliest group first.

    Longest processing time first: Graham, "Bounds on multiprocessing timing anomalies", SIAM
    Journal on Applied Mathematics, 1969. Within a group the order of the parts is kept.
    """
    heap: list[tuple[float, int]] = [(0.0, group) for group in range(max(1, bins))]
    groups: list[list[int]] = [[] for _ in heap]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, group = heapq.heappop(heap)
        groups[group].append(index)
        heapq.heappush(heap, (load + costs[index], group))
    loads = {group: load for load, group in heap}
    order = sorted(range(len(groups)), key=lambda group: -loads[group])
    return [sorted(groups[group]) for group in order if groups[group]]
