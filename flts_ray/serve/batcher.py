"""Micro-batching that waits only where waiting pays.

Design choices: one batch is in flight and the next one gathers meanwhile, so a lone request
waits for nobody and a crowd shares one call of the model; while a crowd is smaller than the last
batch was, the next one waits a little for the rest, never longer than a fifth of a batch; work
that is over in a moment runs in the event loop, because handing it to a thread and back costs more
than a small model, longer work in an executor, so that the loop stays free; work whose deadline
passed is dropped before it begins; an item's failure is a value of its own, so that one bad item
does not fail its neighbours.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from flts_ray.errors import Expired, Overloaded

PATIENCE = 0.2
"""Most share of a batch's time that the next one waits."""
TURNS = 2
"""Turns of the event loop from a request's first byte to its place among the waiting."""
MEMORY = 0.8
"""Weight of the past in running means of the time that one unit of weight takes."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    weight: int
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Gathers items of concurrent callers into batches of at most `max_weight`.

    `run` gets the items of one batch in the executor and returns one result or exception for
    each. A single item heavier than `max_weight` is a batch of its own. With `max_waiting` items
    waiting, more are refused. Batches expected to take less than `moment_s` run in the event loop.
    `batches` and `weight` count what ran since the start.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        executor: Executor,
        *,
        weigh: Callable[[Item], int],
        max_weight: int,
        max_waiting: int,
        max_wait_s: float = 0.0,
        moment_s: float = 0.0,
    ) -> None:
        self._run = run
        self._executor = executor
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._moment_s = moment_s
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._queued_weight = 0
        self._worker: asyncio.Task[None] | None = None
        self._last_items = 0
        self._batch_s = 0.0
        self._unit_s = 0.0
        self._unit_cpu_s = 0.0
        self.batches = 0
        self.weight = 0

    @property
    def queued(self) -> int:
        """Items that wait now."""
        return len(self._waiting)

    @property
    def backlog_s(self) -> float:
        """About how long the work takes that waits now."""
        return self._batch_s + self._queued_weight * self._unit_s

    async def submit(self, item: Item, deadline: float | None = None) -> Result:
        """The item's result; raises what `run` gave for it.

        deadline: `time.monotonic()` after which nobody wants the result; Expired is raised then.
        Raises Overloaded if too many wait already.
        """
        loop = asyncio.get_running_loop()
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise _expired()
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{len(self._waiting)} requests already wait here; repeat a little later",
                self.backlog_s,
            )
        waiting = _Waiting(item, self._weigh(item), loop.create_future())
        timer = None if left is None else loop.call_later(left, _expire, waiting.future)
        self._waiting.append(waiting)
        self._queued_weight += waiting.weight
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        try:
            return await waiting.future
        finally:
            if timer is not None:
                timer.cancel()

    async def _drain(self) -> None:
        try:
            await self._gather()
            while batch := self._next_batch():
                items, begin = [one.item for one in batch], time.monotonic()
                if self._is_moment(batch):
                    _settle(batch, self._attempt(items))
                    self._learn(batch, time.monotonic() - begin)
                    await self._gather()  # those who waited go on before the next batch
                    continue
                _settle(batch, await self._call(items))
                self._learn(batch, time.monotonic() - begin)
                if (pause := self._pause()) > 0:
                    await asyncio.sleep(pause)
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Let those in whose requests are being read at this moment."""
        quiet = 0
        while quiet < TURNS and self._queued_weight < self._max_weight:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == before else 0

    def _is_moment(self, batch: Sequence[_Waiting[Item, Result]]) -> bool:
        """True when it is over before anybody else would miss the event loop."""
        expected = self._unit_cpu_s * sum(one.weight for one in batch)
        return 0 < expected < self._moment_s

    async def _call(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._attempt, items)
        except RuntimeError as error:  # the executor was shut down
            return [error] * len(items)

    def _attempt(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        begin = time.thread_time()
        try:
            return self._run(items)
        except Exception as error:  # noqa: BLE001 -- handed to every caller of the batch
            return [error] * len(items)
        finally:
            unit = (time.thread_time() - begin) / max(sum(map(self._weigh, items)), 1)
            self._unit_cpu_s = _blended(self._unit_cpu_s, unit)

    def _learn(self, batch: Sequence[_Waiting[Item, Result]], seconds: float) -> None:
        weight = sum(one.weight for one in batch)
        self.batches += 1
        self.weight += weight
        self._unit_s = _blended(self._unit_s, seconds / max(weight, 1))
        self._batch_s = seconds
        self._last_items = len(batch)

    def _pause(self) -> float:
        """Seconds to wait for more; 0 when nobody or a whole batch waits."""
        if not 0 < len(self._waiting) < self._last_items:
            return 0.0
        return min(self._max_wait_s, PATIENCE * self._batch_s)

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        weight = 0
        while self._waiting:
            first = self._waiting[0]
            gone = first.future.done()  # its caller went away, or its deadline passed
            if batch and not gone and weight + first.weight > self._max_weight:
                break
            self._waiting.popleft()
            self._queued_weight -= first.weight
            if not gone:
                batch.append(first)
                weight += first.weight
        return batch


def _blended(mean: float, new: float) -> float:
    """The running mean with one more value; 0 was none."""
    return MEMORY * mean + (1 - MEMORY) * new if mean else new


def _expired() -> Expired:
    return Expired("the request's deadline passed before its forecast was made; nothing was done")


def _expire(future: asyncio.Future[Result]) -> None:
    if not future.done():
        future.set_exception(_expired())


def _settle(batch: Sequence[_Waiting[Item, Result]], results: Sequence[Result | Exception]) -> None:
    for one, result in zip(batch, results, strict=True):
        if one.future.done():
            continue
        if isinstance(result, Exception):
            one.future.set_exception(result)
        else:
            one.future.set_result(result)
