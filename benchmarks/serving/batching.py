"""Micro-batching for a hand-made server: one batch runs, the next one gathers meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class MicroBatcher:
    """Gathers items of one event loop. `run` maps at most `most` items to as many results."""

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]], most: int) -> None:
        self._run = run
        self._most = most
        self._thread = ThreadPoolExecutor(1)
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
        futures = [future for _, future in batch]
        running = loop.run_in_executor(self._thread, self._run, [item for item, _ in batch])
        running.add_done_callback(lambda done: self._done(loop, futures, done))

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: Sequence[asyncio.Future[Any]],
        done: asyncio.Future[Any],
    ) -> None:
        error = done.exception()
        for at, future in enumerate(futures):
            if future.done():
                continue
            if error is None:
                future.set_result(done.result()[at])
            else:
                future.set_exception(error)
        self._next(loop)
