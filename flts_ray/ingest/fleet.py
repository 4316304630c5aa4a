"""What a group of ingestion actors works on, and how each says how it is.

Design choices: one picklable value travels to every actor and holds all it needs, so that Ray can
restart any of them anywhere; secrets travel inside it and not in a runtime environment, which Ray
shows in its dashboard and writes to its logs; a task in a process that others use later is given
them for as long as it runs; what an actor says is plain JSON data, because it is read by processes
of other versions.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from flts_ray.config import Config
from flts_ray.ingest.worker_status import WorkerStatus

State = Literal["waiting", "starting", "running", "draining", "done", "failed", "restarting"]
NAMESPACE = "flts"
"""Ray namespace of all named actors: by default every driver has one of its own."""
SECRETS = (
    "KAFKA_USERNAME", "KAFKA_PASSWORD",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
)  # fmt: skip
"""The only variables that actors are given; where one is not set, the node's own counts."""


class Ingesting(Protocol):
    """What an actor does with a worker."""

    def run(self, stop: threading.Event, until_end: bool = False) -> None: ...

    def snapshot(self) -> WorkerStatus: ...

    def close(self) -> None: ...


class Forwarding(Protocol):
    """What an actor does with dead letters: everything at once, in the background."""

    @property
    def forwarded(self) -> int: ...

    def forward(self, partition: int, upto: int) -> None: ...

    def close(self, timeout_s: float = 10.0) -> bool: ...


OpenWorker = Callable[[Config, str, int, int], Ingesting]
"""(config, brokers, index, of) to a worker with all its clients; raises FltsError."""
OpenForwarder = Callable[[Config, str, str], Forwarding]
"""(config, brokers, epoch)."""


@dataclass(frozen=True)
class Fleet:
    """N actors of one configuration. `compact` is called every `compact_every_s` in a Ray task."""

    config: Config
    brokers: str
    open_worker: OpenWorker
    until_end: bool = False
    compact_every_s: float | None = None
    compact: Callable[[Config, str], str] | None = None
    open_forwarder: OpenForwarder | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        return self.config.ingest.actors

    @property
    def supervisor(self) -> str:
        return f"flts-ingest-{self.config.name}"

    def actor(self, index: int) -> str:
        """Name of one actor."""
        return f"{self.supervisor}-{index}"

    def digest(self) -> str:
        """Equal for fleets that do the same; whoever starts another one replaces the first."""
        sections = self.config.canonical("name", "root", "data", "stream", "ingest")
        keys = sorted(self.environment.items())
        said = repr((sections, self.brokers, self.until_end, self.compact_every_s, keys))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def environment_for_actors() -> dict[str, str]:
    """What of this process's environment actors elsewhere need. Never to be logged."""
    return {name: os.environ[name] for name in SECRETS if os.environ.get(name)}


@contextmanager
def surrounded_by(environment: Mapping[str, str]) -> Iterator[None]:
    """Variables for a task in a process that others use after it, so that they do not stay."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def seen_from_elsewhere(config: Config) -> Config:
    """The configuration with an absolute root, for processes with another working folder."""
    root = config.root.removeprefix("file://")
    if "://" in root:
        return config
    return config.model_copy(update={"root": str(Path(root).expanduser().absolute())})


@dataclass(frozen=True)
class ActorStatus:
    """How one actor is. `worker` holds its worker's status; `starts` within the last minutes."""

    index: int
    of: int
    state: State
    starts: int = 0
    error: str = ""
    pid: int = 0
    worker: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
