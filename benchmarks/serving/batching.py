"""Micro-batching for a hand-made server: one batch runs, the next one gathers meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class MicroBatcher:
    """Gathers items of one event loop. `run` maps a batch to as many results.

    in_thread: whether batches run beside the event loop, or in it.
    """

    def __init__(
        self, run: Callable[[Sequence[Any]], Sequence[Any]], most: int, in_thread: bool
    ) -> None:
        self._run = run
        self._most = most
        self._thread = ThreadPoolExecutor(1) if in_thread else None
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._busy = False

    def submit(self, item: Any) -> asyncio.Future[Any]:
        """The item's result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((item, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next, loop)
        return future

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if not batch:
            self._busy = False
            return
        items = [item for item, _ in batch]
        futures = [future for _, future in batch]
        if self._thread is None:
            self._settle(futures, self._run(items))
            loop.call_soon(self._next, loop)
            return
        running = loop.run_in_executor(self._thread, self._run, items)
        running.add_done_callback(lambda done: self._done(loop, futures, done))

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: Sequence[asyncio.Future[Any]],
        done: asyncio.Future[Any],
    ) -> None:
        error = done.exception()
        if error is None:
            self._settle(futures, done.result())
        else:
            for future in futures:
                future.set_exception(error)
        self._next(loop)

    @staticmethod
    def _settle(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)
