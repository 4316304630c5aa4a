"""Micro-batching without a timer.

Design choices: one batch is in flight and the next one gathers meanwhile, so a lone request
waits for nobody and a crowd shares one call of the model; the work runs in an executor, so the
event loop stays free for health checks; an item's failure is a value of its own, so that one bad
item does not fail its neighbours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from flts_ray.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers items of concurrent callers into batches of at most `max_weight`.

    `run` gets the items of one batch in the executor and returns one result or exception for
    each. A single item heavier than `max_weight` is a batch of its own. More than `max_waiting`
    waiting items are refused with Unavailable.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        executor: Executor,
        *,
        weigh: Callable[[Item], int],
        max_weight: int,
        max_waiting: int,
    ) -> None:
        self._run = run
        self._executor = executor
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The item's result; raises what `run` gave for it."""
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable(
                f"{len(self._waiting)} requests already wait here; repeat a little later"
            )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        results: Sequence[Result | Exception]
        try:
            while batch := self._next_batch():
                items = [item for item, _ in batch]
                try:
                    call = loop.run_in_executor(self._executor, self._attempt, items)
                    results = await call
                except RuntimeError as error:  # the executor was shut down
                    results = [error] * len(items)
                _settle(batch, results)
        finally:
            self._worker = None

    def _attempt(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            return self._run(items)
        except Exception as error:  # noqa: BLE001 -- handed to every caller of the batch
            return [error] * len(items)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        weight = 0
        while self._waiting:
            item, future = self._waiting[0]
            if future.done():  # its caller went away
                self._waiting.popleft()
                continue
            weight += self._weigh(item)
            if batch and weight > self._max_weight:
                break
            batch.append(self._waiting.popleft())
        return batch


def _settle(
    batch: Sequence[tuple[Item, asyncio.Future[Result]]], results: Sequence[Result | Exception]
) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
