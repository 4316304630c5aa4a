"""Keeps a slot at the registry's champion.

Design choices: whatever goes wrong, the model that is loaded keeps answering; a new one is
checked, loaded and warmed with one forecast before any request can meet it; a failure is logged
when it begins or changes, not at every look; a champion that cannot be loaded is tried again
after ever longer pauses, because the next look may find it repaired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import structlog

from flts_ray.errors import FltsError
from flts_ray.serve.engine import ModelSlot, ServedModel, warm

MAX_PAUSE = 32  # looks
_log = structlog.get_logger("flts_ray.serve")
_Made = TypeVar("_Made")


class Ref(Protocol):
    """Names one version of the champion."""

    @property
    def version(self) -> int | str: ...
    @property
    def digest(self) -> str: ...


class ModelSource(Protocol):
    """Where champions and challengers come from. All methods may block and raise FltsError."""

    def current(self) -> Ref | None:
        """The champion now, None without one."""
        ...

    def challenger(self) -> Ref | None:
        """The challenger now, None without one."""
        ...

    def load(self, ref: Any) -> ServedModel:
        """Fetch and check what one of the others gave."""
        ...


class Refresher:
    """Looks at `source` every `poll_s` seconds and installs what changed."""

    def __init__(self, source: ModelSource, slot: ModelSlot, poll_s: float) -> None:
        self._source = source
        self._slot = slot
        self._poll_s = poll_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refresh")
        self._looking = asyncio.Lock()
        self._said = ""
        self._failed: tuple[str, str] | None = None
        self._failures = 0
        self._pause = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await self.step()

    async def step(self) -> None:
        """One look. Never raises for anything that the source does."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        ref = await self._attempt("champion_unreachable", self._source.current)
        if ref is None:
            return
        key = (str(ref.version), ref.digest)
        if key != self._failed:
            self._failed, self._failures, self._pause = None, 0, 0
        engine = self._slot.engine
        if engine is not None and key == (engine.model.version, engine.model.digest):
            self._said = ""
            return
        if self._pause > 0:
            self._pause -= 1
            return
        await self._load(ref, key)

    async def _load(self, ref: Ref, key: tuple[str, str]) -> None:
        def loaded() -> ServedModel:
            model = self._source.load(ref)
            warm(model)
            return model

        model = await self._attempt("champion_refused", loaded, version=str(ref.version))
        if model is None:
            self._failed = key
            self._failures += 1
            self._pause = min(2**self._failures, MAX_PAUSE)
            return
        self._slot.install(model)
        self._said = ""
        _log.info(
            "champion_loaded", name=model.name, version=model.version, kind=model.fitted.spec.kind
        )

    async def _attempt(
        self, event: str, work: Callable[[], _Made | None], **about: str
    ) -> _Made | None:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work)
        except FltsError as error:
            self._say(event, str(error), **about)
        except Exception as error:  # noqa: BLE001 -- a champion may fail in any way when warmed
            self._say(event, repr(error), **about)
        return None

    def _say(self, event: str, problem: str, **about: str) -> None:
        said = f"{event} {about} {problem}"
        if said != self._said:
            _log.warning(event, problem=problem, **about)
            self._said = said
