"""One process that serves the app.

Design choices: this module is all that a replica imports of the deployment, so that it starts
quickly; it looks at the registry once before it counts as started, so that scaling up or replacing
one puts no empty replica before callers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from ray import serve

from flts_ray.champion import ChampionRef
from flts_ray.config_serve import ServeConfig
from flts_ray.local.private import private_folder
from flts_ray.serve.app import Api, build_app
from flts_ray.serve.door import Door
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.last_copy import Memory, WithLastCopy, memory_of
from flts_ray.serve.refresh import ModelSource, Refresher
from flts_ray.serve.scaling import LATENCY, ONGOING, RATE
from flts_ray.serve.watch import Watch
from flts_ray.store import Store

SWITCH_S = 0.0005
"""Longest that a thread keeps the interpreter while another one waits; Python's own is 0.005."""


@serve.ingress()
class ForecastReplica:
    """The app with what it needs.

    door: None lets everybody in. store_uri: where the forecast log goes, and what is known of
    dropped challengers; None keeps neither.
    """

    def __init__(
        self,
        name: str,
        limits: ServeConfig,
        make_source: Callable[[], ModelSource],
        door: Door | None = None,
        store_uri: str | None = None,
    ) -> None:
        # Log, metrics and watcher work in threads. While one of them does, every write to a socket
        # costs the event loop such an interval until it may go on.
        sys.setswitchinterval(SWITCH_S)
        self._slot = ModelSlot(name, limits)
        self._source = make_source()
        self._refresher = Refresher(self._source, self._slot, limits.poll_s)
        self._door = door
        self._store_uri = store_uri

    async def __serve_build_asgi_app__(self) -> Api:
        await self._refresher.step()
        if self._store_uri is None:
            return build_app(self._slot, self._refresher.run, self._door)
        watch = Watch(self._slot, Store.open(self._store_uri), self._source)
        run = partial(watch.run, self._refresher.run)
        return build_app(self._slot, run, self._door, watch.observer)

    async def refresh(self) -> str | None:
        """Look at the registry now; returns the version that is served from here on."""
        await self._refresher.step()
        engine = self._slot.engine
        return None if engine is None else engine.model.version

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy reads."""
        reading = self._slot.load.reading()
        return {RATE: reading.per_s, LATENCY: reading.p95_ms, ONGOING: reading.inside}


def registry_source(mlflow_uri: str, store_uri: str, name: str) -> ModelSource:
    """Champions of the registry, cached in a folder of this machine that only we can read."""
    from flts_ray.serve.source import RegistrySource

    source = RegistrySource(mlflow_uri, store_uri, name, private_folder() / name)
    path = memory_of(private_folder() / "last", name, mlflow_uri, store_uri)
    return WithLastCopy(source, Memory(path, ChampionRef))
