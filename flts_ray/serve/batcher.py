"""Micro-batching that waits only where waiting pays.

Design choices: one batch is in flight and the next one gathers meanwhile, so a lone request
waits for nobody and a crowd shares one call of the model; while a crowd is smaller than the last
batch was, the next one waits a little for the rest; work that is over in a moment runs in the
event loop, because handing it to a thread and back costs more than a small model, longer work in
an executor, so that the loop stays free; work whose deadline passed is dropped before it begins;
an item's failure is a value of its own, so that one bad item does not fail its neighbours.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from flts_ray.errors import Expired, Overloaded
from flts_ray.serve.model_calls import ModelCall, ModelCalls

CROWD_S = 0.05
"""After this time without a batch a crowd has gone, and nobody is waited for."""
MEMORY = 0.8
"""Weight of the past in running means of the time that one unit of weight takes."""
STRETCH = 2.0
"""Most that one call adds to what the next is expected to take, as a ratio to the mean."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    weight: int
    future: asyncio.Future[Result]
    since: float


class Batcher(Generic[Item, Result]):
    """Gathers items of concurrent callers into batches of at most `max_weight`.

    `run` gets the items of one batch in the executor and returns one result or exception for
    each. A single item heavier than `max_weight` is a batch of its own. With `max_waiting` items
    waiting, more are refused. Batches expected to take less than `moment_s` run in the event loop.
    `batches` and `weight` count what ran since the start; `calls` is told of each.
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
        calls: ModelCalls | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._moment_s = moment_s
        self._calls = calls or ModelCalls()
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._queued_weight = 0
        self._worker: asyncio.Task[None] | None = None
        self._last_items = 0
        self._ended = -math.inf
        self._enough: asyncio.Future[None] | None = None
        self._batch_s = 0.0
        self._unit_s = 0.0
        self._work_s = 0.0
        self.batches = 0
        self.weight = 0

    @property
    def queued(self) -> int:
        """Items that wait now."""
        return len(self._waiting)

    @property
    def waiting_since(self) -> float | None:
        """`time.monotonic()` when the first of them came; None without any. Any thread."""
        try:
            return self._waiting[0].since
        except IndexError:
            return None

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
        now = time.monotonic()
        left = None if deadline is None else deadline - now
        if left is not None and left <= 0:
            raise _expired()
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{len(self._waiting)} requests already wait here; repeat a little later",
                self.backlog_s,
            )
        waiting = _Waiting(item, self._weigh(item), loop.create_future(), now)
        timer = None if left is None else loop.call_later(left, _expire, waiting.future)
        self._waiting.append(waiting)
        self._queued_weight += waiting.weight
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        elif self._enough is not None and self._is_enough():
            _release(self._enough)
        try:
            return await waiting.future
        finally:
            if timer is not None:
                timer.cancel()

    async def _drain(self) -> None:
        try:
            await self._gather()
            while batch := self._next_batch():
                begin, moment = time.monotonic(), self._is_moment(batch)
                _settle(batch, self._attempt(batch) if moment else await self._call(batch))
                self._learn(batch, begin)
                if self._waiting and moment:
                    await asyncio.sleep(0)  # those who have their answer go on first
                await self._gather()
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Wait for as many as the last batch had, if some wait and a crowd is about."""
        lonely = time.monotonic() - self._ended > CROWD_S
        if lonely or self._max_wait_s <= 0 or not self._waiting or self._is_enough():
            return
        loop = asyncio.get_running_loop()
        self._enough = loop.create_future()
        timer = loop.call_later(self._max_wait_s, _release, self._enough)
        try:
            await self._enough
        finally:
            timer.cancel()
            self._enough = None

    def _is_enough(self) -> bool:
        return len(self._waiting) >= self._last_items or self._queued_weight >= self._max_weight

    def _is_moment(self, batch: Sequence[_Waiting[Item, Result]]) -> bool:
        """True when it is over before anybody else would miss the event loop."""
        expected = self._work_s * sum(one.weight for one in batch)
        return 0 < expected < self._moment_s

    async def _call(self, batch: Sequence[_Waiting[Item, Result]]) -> Sequence[Result | Exception]:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._attempt, batch)
        except RuntimeError as error:  # the executor was shut down
            return [error] * len(batch)

    def _attempt(self, batch: Sequence[_Waiting[Item, Result]]) -> Sequence[Result | Exception]:
        begin = time.monotonic()
        self._calls.begin(begin)
        try:
            return self._run([one.item for one in batch])
        except Exception as error:  # noqa: BLE001 -- handed to every caller of the batch
            return [error] * len(batch)
        finally:
            end = time.monotonic()
            self._calls.end(ModelCall(begin, end, [one.since for one in batch]))
            unit = (end - begin) / max(sum(one.weight for one in batch), 1)
            # A call during which another process had the processor says little about the next.
            self._work_s = _blended(self._work_s, min(unit, STRETCH * (self._work_s or unit)))

    def _learn(self, batch: Sequence[_Waiting[Item, Result]], begin: float) -> None:
        self._ended = time.monotonic()
        seconds = self._ended - begin
        weight = sum(one.weight for one in batch)
        self.batches += 1
        self.weight += weight
        self._unit_s = _blended(self._unit_s, seconds / max(weight, 1))
        self._batch_s = seconds
        self._last_items = len(batch)

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


def _release(enough: asyncio.Future[None]) -> None:
    if not enough.done():
        enough.set_result(None)


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
