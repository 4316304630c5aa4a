"""A broker and an S3 server that work in one folder and come and go together.

Design choices: the folder is held by a lock from before the first start until after the last stop,
so that two never work on the same data; each server takes the port it had the last time if it can,
so that clients find it again; the keys of the S3 server are new each time and are told to nobody
but the caller; a server that dies while the other works is started again in its old place.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from flts_ray.atomic_files import appearing
from flts_ray.config_stream import StreamConfig
from flts_ray.errors import Conflict, Unavailable
from flts_ray.local.broker import NoidaBroker
from flts_ray.local.process import free_port
from flts_ray.local.s3 import LOCK as S3_LOCK
from flts_ray.local.s3 import S3Server, make_buckets
from flts_ray.local.startable import Startable

LOCK, PORTS = "stack.lock", "ports.json"
BROKER, S3 = "broker", "s3"
_HELD_S = 1.0
"""Whoever only looks whether the lock is free holds it for less."""


@dataclass(frozen=True)
class Plan:
    """What is wanted: topics (name to partitions), if any a broker; buckets, if any S3."""

    topics: Mapping[str, int]
    buckets: tuple[str, ...]

    def text(self) -> str:
        return json.dumps({"topics": dict(self.topics), "buckets": self.buckets})

    @classmethod
    def of_text(cls, text: str) -> Plan:
        raw = json.loads(text)
        return cls(raw["topics"], tuple(raw["buckets"]))


@dataclass(frozen=True)
class Addresses:
    """Where it can be reached: `host:port` of the broker, URL of S3; "" for what does not run.

    environment: what clients of S3 need in theirs, the keys among it.
    """

    brokers: str
    s3: str
    environment: Mapping[str, str] = field(repr=False)


class Stack(Startable):
    """Context manager around the servers of `plan`; everything they keep lies in `folder`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = Path(folder).resolve()
        self._plan = plan
        self._broker: NoidaBroker | None = None
        self._s3: S3Server | None = None

    def start(self) -> Addresses:
        """Start what is planned, wait until it answers, make topics and buckets.

        Raises Unavailable with the name of the server that failed and the end of its log.
        """
        ports = _known_ports(self.folder)
        if self._plan.topics:
            port = free_port(preferred=ports.get(BROKER))
            self._broker = NoidaBroker(self.folder / BROKER, port)
            self._broker.start()
        if self._plan.buckets:
            self._s3 = S3Server(self.folder / S3, self._plan.buckets[0], ports.get(S3))
            self._s3.start()
        self._remember_ports()
        make(self.addresses, self._plan)
        return self.addresses

    @property
    def addresses(self) -> Addresses:
        environment = {} if self._s3 is None else self._s3.environment()
        return Addresses(
            "" if self._broker is None else self._broker.brokers,
            environment.get("AWS_ENDPOINT_URL", ""),
            environment,
        )

    def tend(self) -> list[str]:
        """Start again what has died; returns the names.

        Raises Unavailable if a server does not come back, or not at its old address.
        """
        told, revived = self.addresses, []
        for name, server in ((BROKER, self._broker), (S3, self._s3)):
            if server is not None and not server.alive:
                structlog.get_logger().warning("local_server_died", server=name)
                server.stop()
                server.start()
                revived.append(name)
        if self.addresses != told:
            raise Unavailable(
                f"{', '.join(revived)}: the port was taken by another program meanwhile; run "
                "`flts up` again for new addresses"
            )
        return revived

    def stop(self) -> None:
        """Stop both; what they stored stays."""
        s3, self._s3 = self._s3, None
        broker, self._broker = self._broker, None
        try:
            if s3 is not None:
                s3.stop()
        finally:
            if broker is not None:
                broker.stop()

    def _remember_ports(self) -> None:
        ports = _known_ports(self.folder)
        if self._broker is not None:
            ports[BROKER] = self._broker.port
        if self._s3 is not None:
            ports[S3] = self._s3.port
        with appearing(self.folder / PORTS) as stream:
            stream.write(json.dumps(ports).encode())


def make(addresses: Addresses, plan: Plan) -> None:
    """Make the topics and buckets that are missing. Raises Unavailable if a server is away."""
    if plan.topics:
        from flts_ray.streams.connect import admin

        clerk = admin(StreamConfig(), addresses.brokers)
        try:
            for topic, partitions in plan.topics.items():
                clerk.create_topic(topic, partitions)
        finally:
            clerk.close()
    if plan.buckets:
        make_buckets(addresses.environment, plan.buckets)


def take(folder: Path) -> int:
    """Take the folder for as long as the descriptor is open. Raises Conflict if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    limit = time.monotonic() + _HELD_S
    while not _lock(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > limit:
            os.close(descriptor)
            raise Conflict(f"{folder}: another process works there; `flts down` stops it")
        time.sleep(0.05)
    return descriptor


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Take the folder for the length of the block. Raises Conflict if it is taken."""
    descriptor = take(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether a stack works in the folder, or servers of one that died are still ending."""
    locks = (LOCK, f"{BROKER}/{NoidaBroker.name}.lock", f"{S3}/{S3_LOCK}")
    return any(_held(folder / lock) for lock in locks)


def _held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _known_ports(folder: Path) -> dict[str, int]:
    """Ports of the last time; they are a convenience, so a damaged file is as good as none."""
    try:
        raw = json.loads((folder / PORTS).read_text(encoding="utf-8"))
        return {name: int(port) for name, port in raw.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
