"""Keeps a slot's challenger at the registry's, unless it was dropped.

Design choices: who drops a challenger writes that down in the store under its digest, where only
the first writer wins, so that every replica, also one that starts later, learns of it and of the
reason; whatever goes wrong with a challenger leaves the champion alone; a repaired or newer
challenger has another digest and begins anew.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import structlog

from flts_ray.errors import FltsError
from flts_ray.serve.engine import ModelSlot, ServedModel, warm
from flts_ray.serve.refresh import ModelSource, Ref
from flts_ray.store import NotFound, Store

MAX_FAILURES = 10
"""Requests that a challenger may fail while the champion answers them."""
_log = structlog.get_logger("flts_ray.serve")


class Dropped:
    """Challengers of `name` that were dropped: `challengers/<name>/<digest>.json`."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def why(self, digest: str) -> str | None:
        """The reason; None for one that was not dropped. Raises Unavailable."""
        try:
            return str(json.loads(self._store.get(self._key(digest)))["reason"])
        except NotFound:
            return None

    def drop(self, version: str, digest: str, reason: str) -> None:
        """Write it down; of several replicas the first one's reason stays. Raises Unavailable."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"name": self._name, "version": version, "reason": reason, "at": at}
        self._store.put_new(self._key(digest), json.dumps(record).encode())

    def _key(self, digest: str) -> str:
        return f"challengers/{self._name}/{digest}.json"


class ChallengerKeeper:
    """Looks at `source` every `poll_s` seconds. `told` gets champion and challenger after it."""

    def __init__(
        self,
        source: ModelSource,
        slot: ModelSlot,
        dropped: Dropped,
        poll_s: float,
        told: Callable[[ServedModel | None, ServedModel | None], None],
    ) -> None:
        self._source = source
        self._slot = slot
        self._dropped = dropped
        self._poll_s = poll_s
        self._told = told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="challenger")
        self._refused: str | None = None
        self._unsaid: dict[str, tuple[str, str]] = {}
        self._failures: Counter[str] = Counter()
        slot.challenger_failed = self.failed

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(self._poll_s)

    async def step(self) -> None:
        """One look. Never raises for anything that the source or the store does."""
        loop = asyncio.get_running_loop()
        held = self._slot.challenger
        try:
            found = await loop.run_in_executor(self._thread, self._look, held)
        except FltsError as error:
            _log.warning("challenger_unreachable", problem=str(error))
            found = held  # as with the champion, what is loaded stays
        if found is not held:
            self._slot.install_challenger(found)
        self._told(self._slot.champion, self._slot.challenger)

    def drop(self, challenger: ServedModel, reason: str) -> None:
        """Stop asking it here, at once, and everywhere, at their next look. Any thread."""
        self._unsaid[challenger.digest] = (challenger.version, reason)
        if self._slot.challenger is challenger:
            self._slot.install_challenger(None)

    def failed(self, challenger: ServedModel, error: str) -> None:
        """Count a request that the champion had to answer; too many of them drop it."""
        self._failures[challenger.digest] += 1
        count = self._failures[challenger.digest]
        if count == MAX_FAILURES:
            self.drop(challenger, f"it failed {count} requests that the champion answered: {error}")

    def _look(self, held: ServedModel | None) -> ServedModel | None:
        for digest, (version, reason) in list(self._unsaid.items()):
            self._dropped.drop(version, digest, reason)
            del self._unsaid[digest]
        ref, champion = self._source.challenger(), self._slot.champion
        if ref is None or champion is None or ref.digest in (champion.digest, self._refused):
            return None
        if self._dropped.why(ref.digest) is not None:
            return None
        if held is not None and (held.version, held.digest) == (str(ref.version), ref.digest):
            return held
        return self._loaded(ref, champion)

    def _loaded(self, ref: Ref, champion: ServedModel) -> ServedModel | None:
        try:
            model = self._source.load(ref)
            if model.fitted.spec.contract != champion.fitted.spec.contract:
                raise FltsError("its data contract is not the champion's")
            warm(model)
        except Exception as error:  # noqa: BLE001 -- a challenger may fail in any way when warmed
            self._refused = ref.digest
            _log.warning("challenger_refused", version=str(ref.version), problem=repr(error))
            return None
        _log.info("challenger_loaded", version=model.version, kind=model.fitted.spec.kind)
        return model
