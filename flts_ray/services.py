"""What the steps of a pipeline are handed: addresses to work with, somebody to tell.

Design choices: clients are made where they are used, from addresses, because a connection that
outlives a step can only go stale.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flts_ray.config import Config
from flts_ray.events import Events, NoEvents
from flts_ray.registry import Registry
from flts_ray.store import Store
from flts_ray.tune.progress import StudyView


@dataclass(frozen=True)
class Services:
    """What a pipeline works with. `folder` is this machine's own part of the root."""

    config: Config
    folder: Path
    store: Store
    mlflow_uri: str
    dashboard: str | None = None
    events: Events = field(default_factory=NoEvents)

    def registry(self) -> Registry:
        return Registry.connect(self.mlflow_uri, self.store, self.config.name)


class Narrator(Protocol):
    """Tells a person, or a log, how far the pipeline is."""

    def step(self, title: str, detail: str = "") -> None: ...

    def stage(self, name: str, done: int, total: int) -> None: ...

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]: ...
