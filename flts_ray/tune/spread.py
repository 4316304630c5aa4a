"""Parts of a fit as Ray tasks.

Design choices: who asks works too, so that parts are finished even where no CPU is free but its
own (a trial holds one while it waits for its parts), and it asks for help only once it has worked
alone for a while and much is left, because a first task costs seconds; parts are packed by
expected cost, the costliest pack first; a pack that no worker has begun is taken back when the
asker has nothing else to do; a pack whose worker is lost is tried again part by part in other
workers, and what is lost twice is a failed part; the set lies in the object store once and workers
look at the same memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import ray

from flts_ray.models.spread import Failed, Part, Result, attempt, packed
from flts_ray.prepare.arrays import SeriesArrays

ALONE_S = 1.0
"""How long the asker works alone."""
HELP_PAYS_S = 3.0
"""Help is asked for if the rest would take the asker longer than this."""
PACKS_PER_CPU = 8
POLL_S = 0.1
"""How often workers hand over what they have, and the asker looks."""
BEGIN_S = 60.0
"""How long a part that has lost its worker may wait for another one to begin it."""
LOST = "the worker process was lost twice (killed from outside, or out of memory)"


class RaySpread:
    """A `Spread` over the cluster that this process is connected to.

    held: reference to a set in the object store; work on that set, or on one that shares its
    arrays, sends only what differs. on_done: told how many parts are done, of how many.
    """

    def __init__(
        self,
        held: Any = None,
        on_done: Callable[[int, int], None] | None = None,
        alone_s: float = ALONE_S,
        help_pays_s: float = HELP_PAYS_S,
    ) -> None:
        self._held, self._on_done = held, on_done
        self._alone_s, self._help_pays_s = alone_s, help_pays_s
        self._data: SeriesArrays | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # The set itself stays behind: the reference travels.
        return RaySpread, (self._held, self._on_done, self._alone_s, self._help_pays_s)

    @property
    def data(self) -> SeriesArrays:
        """The set that is held; its arrays are read-only views of shared memory."""
        if self._data is None:
            self._data = ray.get(self._held)
        return self._data

    def __call__(
        self,
        work: Callable[[SeriesArrays, Part], Result],
        data: SeriesArrays,
        parts: Sequence[Part],
        costs: Sequence[float],
    ) -> Iterator[Result | Failed]:
        """See `Spread`. Without Ray, or where little is to do, all parts run here."""
        found: dict[int, Any] = {}
        events = self._events(work, data, parts, costs)
        with closing(events):
            for ready in range(len(parts)):
                while ready not in found:
                    found.update(next(events))
                    if self._on_done is not None:
                        self._on_done(ready + len(found), len(parts))
                yield found.pop(ready)

    def _events(
        self,
        work: Callable[[SeriesArrays, Part], Result],
        data: SeriesArrays,
        parts: Sequence[Part],
        costs: Sequence[float],
    ) -> Generator[dict[int, Any], None, None]:
        """Results by index of their part, each once, as they come."""
        began, done, total = time.monotonic(), 0.0, sum(costs)
        for index, part in enumerate(parts):
            yield {index: attempt(work, data, part)}
            done += costs[index]
            spent = time.monotonic() - began
            if spent >= self._alone_s and spent * (total - done) > self._help_pays_s * done:
                break
        else:
            return
        left = range(index + 1, len(parts))
        if ray.is_initialized():
            yield from _Helped(work, data, parts, costs, self._sent(data)).run(left)
            return
        for index in left:
            yield {index: attempt(work, data, parts[index])}

    def _sent(self, data: SeriesArrays) -> tuple[Any, dict[str, Any]]:
        """A reference to a set in the object store, and fields to be replaced in it."""
        if self._held is None:
            return ray.put(data), {}
        known = self.data
        differ = [f.name for f in fields(data) if not _same(getattr(data, f.name), known, f.name)]
        if any(name in differ for name in ("y", "observed", "future", "past")):
            return ray.put(data), {}
        return self._held, {name: getattr(data, name) for name in differ}


def _same(value: Any, known: SeriesArrays, name: str) -> bool:
    """Whether a field is that of the known set: equal, or for arrays the same memory."""
    other = getattr(known, name)
    if not isinstance(value, np.ndarray):
        return bool(name == "stats" and value is other) or (name == "contract" and value == other)
    places = [a.__array_interface__["data"][0] for a in (value, other)]
    return places[0] == places[1] and value.shape == other.shape and value.dtype == other.dtype


@dataclass(eq=False)
class _Pack:
    """Indices of parts that one task works on, and how far it is; `alone`: after a loss."""

    indices: list[int]
    stream: Any
    alone: bool
    asked: float = field(default_factory=time.monotonic)
    begun: bool = False
    done: int = 0


class _Helped:
    """Works on parts together with tasks; `sent` is what `RaySpread._sent` gives."""

    def __init__(
        self,
        work: Callable[[SeriesArrays, Any], Any],
        data: SeriesArrays,
        parts: Sequence[Any],
        costs: Sequence[float],
        sent: tuple[Any, dict[str, Any]],
    ) -> None:
        self._work, self._data, self._parts, self._costs = work, data, parts, costs
        self._ref, self._changed = sent
        self._helpers = max(1, int(ray.cluster_resources().get("CPU", 1.0)) - 1)
        self._waiting: deque[list[int]] = deque()
        self._mine: deque[int] = deque()
        self._running: list[_Pack] = []
        # Outside the placement group of a trial, which has no room but for the trial itself.
        self._task = ray.remote(
            num_cpus=1, num_returns="streaming", max_retries=0, scheduling_strategy="DEFAULT"
        )(work_through)

    def run(self, left: Sequence[int]) -> Generator[dict[int, Any], None, None]:
        """Results of the parts with these indices, each once, as they come."""
        bins = PACKS_PER_CPU * (self._helpers + 1)
        groups = packed([self._costs[index] for index in left], bins)
        self._waiting.extend([left[at] for at in group] for group in groups)
        looked = 0.0
        try:
            while self._waiting or self._mine or self._running:
                if time.monotonic() - looked >= POLL_S or not (self._mine or self._waiting):
                    self._ask()
                    yield self._collected()
                    looked = time.monotonic()
                if self._take():
                    index = self._mine.popleft()
                    yield {index: attempt(self._work, self._data, self._parts[index])}
                elif self._running:
                    ray.wait([one.stream for one in self._running], timeout=POLL_S)
        finally:
            for one in self._running:
                ray.cancel(one.stream)

    def _ask(self) -> None:
        """Keep one pack ready for every helper besides the one it works on."""
        while self._waiting and len(self._running) < 2 * self._helpers:
            self._send(self._waiting.popleft(), alone=False)

    def _send(self, indices: list[int], alone: bool) -> None:
        parts = [self._parts[index] for index in indices]
        stream = self._task.remote(self._work, self._ref, self._changed, parts)
        self._running.append(_Pack(indices, stream, alone))

    def _take(self) -> bool:
        """Whether there is a part to work on here: the cheapest pack, else one not begun."""
        if not self._mine and self._waiting:
            self._mine.extend(self._waiting.pop())
        idle = [one for one in self._running if not one.begun and not one.alone]
        if not self._mine and idle:
            last = idle[-1]
            ray.cancel(last.stream)
            self._running.remove(last)
            self._mine.extend(last.indices)
        return bool(self._mine)

    def _collected(self) -> dict[int, Any]:
        """What tasks have handed over since the last look."""
        found: dict[int, Any] = {}
        for one in list(self._running):
            try:
                self._drain(one, found)
            except StopIteration:
                self._running.remove(one)
            except ray.exceptions.RayError:
                self._running.remove(one)
                self._lost(one, found)
            else:
                if one.alone and not one.begun and time.monotonic() - one.asked > BEGIN_S:
                    ray.cancel(one.stream)
                    self._running.remove(one)
                    self._lost(one, found)
        return found

    def _drain(self, one: _Pack, found: dict[int, Any]) -> None:
        while ray.wait([one.stream], timeout=0)[0]:
            results = ray.get(next(one.stream))
            one.begun = True
            for result in results:
                found[one.indices[one.done]] = result
                one.done += 1

    def _lost(self, one: _Pack, found: dict[int, Any]) -> None:
        left = one.indices[one.done :]
        if one.alone:
            found.update({index: Failed(LOST) for index in left})
            return
        for index in left:
            self._send([index], alone=True)


def work_through(
    work: Callable[[SeriesArrays, Part], Result],
    data: SeriesArrays,
    changed: dict[str, Any],
    parts: Sequence[Part],
) -> Iterator[list[Result | Failed]]:
    """Results in order, a few at a time; the first list, which tells of the begin, is empty."""
    yield []
    data = replace(data, **changed)
    held: list[Result | Failed] = []
    looked = time.monotonic()
    for part in parts:
        held.append(attempt(work, data, part))
        if time.monotonic() - looked >= POLL_S:
            yield held
            held, looked = [], time.monotonic()
    yield held
