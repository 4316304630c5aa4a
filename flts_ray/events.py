"""What the pipeline tells other programs of its steps, as messages of a Kafka broker.

Each message is a CloudEvent 1.0 in the binary mode of its Kafka binding (v1.0.2): the attributes
`specversion`, `id`, `source`, `type` and `time` are headers `ce_*`, `content-type` is another, and
the value is flat JSON, so that consumers which know nothing of CloudEvents read it as they always
did. Its fields, by topic:

- `training-data`: bucket, object, config_hash, identifier, v
- `model-training`: model_type, config_hash, run_id, experiment, status (RUNNING, SUCCESS, FAILED),
  identifier; new: error, trial, study_run (a study as a whole has no trial and is its own run)
- `model-selected`: run_id, model_uri, model_type, config_hash, score (null after a rollback, which
  judges nothing), identifier; new: version, previous, entry (its number in the history)

All but the new ones have the names that older consumers expect. `identifier`, which is the key of
the message too, is the model's name.

Design choices: publishing puts a message into a bounded queue and returns, a thread does the rest,
so nobody waits for a broker; what does not fit is dropped and counted, because an event repeats
what the store and MLflow know; delivery is at least once, and an id is made of what the event
tells, so that a step told twice is recognised.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import structlog

from flts_ray.errors import FltsError
from flts_ray.streams.records import Headers, Producer

Kind = Literal["training-data", "model-training", "model-selected"]
TOPICS: tuple[Kind, ...] = ("training-data", "model-training", "model-selected")
CLOSE_S, FLUSH_S = 2.0, 10.0
TRIES = 5
"""Deliveries of the same events that may fail before they are dropped."""
TOLD_AGAIN_S = 60.0
"""Seconds between two warnings about events that were dropped."""
_SAME: Mapping[Kind, tuple[str, ...]] = {
    "training-data": ("bucket", "object", "config_hash"),
    "model-training": ("study_run", "trial", "status"),
    "model-selected": ("run_id", "version", "previous", "entry"),
}
"""What makes two events of a kind the same one."""


class Events(Protocol):
    """Somebody to tell."""

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        """Tell of a step; returns at once and never raises for the broker's sake."""


@dataclass(frozen=True)
class NoEvents:
    """Nobody listens."""

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class Message:
    """One event as Kafka carries it."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers


def _utc_now() -> datetime:
    return datetime.now(UTC)


def message_of(
    kind: Kind, data: Mapping[str, Any], source: str, identifier: str, moment: datetime
) -> Message:
    """The event as a message. Values that JSON cannot hold (NaN, infinity) become null."""
    told = {name: _finite(value) for name, value in {"identifier": identifier, **data}.items()}
    same = [source, kind, *(told.get(name) for name in _SAME[kind])]
    attributes = {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": hashlib.sha256(json.dumps(same).encode()).hexdigest()[:32],
        "ce_source": source,
        "ce_type": f"flts.{kind}.v1",
        "ce_time": moment.isoformat(),
    }
    return Message(
        kind,
        identifier.encode(),
        json.dumps(told, sort_keys=True).encode(),
        [(name, value.encode()) for name, value in attributes.items()],
    )


class KafkaEvents:
    """Events for a broker. `connect` may take its time and may raise; `limit`: most that wait.

    identifier: the name of the model. retry_s: seconds between two attempts at a broker that is
    away. Nothing is started before the first event.
    """

    def __init__(
        self,
        connect: Callable[[], Producer],
        identifier: str,
        limit: int,
        *,
        clock: Callable[[], datetime] = _utc_now,
        retry_s: float = 5.0,
    ) -> None:
        self.dropped = 0
        self._connect, self._identifier, self._limit = connect, identifier, limit
        self._clock, self._retry_s = clock, retry_s
        self._waiting: deque[Message] = deque()
        self._sending = 0
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._away = False
        self._warned = -math.inf
        self._thread: threading.Thread | None = None

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        source = f"/flts/{self._identifier}"
        message = message_of(kind, data, source, self._identifier, self._clock())
        with self._change:
            if self._closing.is_set() or len(self._waiting) + self._sending >= self._limit:
                self._drop(1, "the queue is full")
                return
            self._waiting.append(message)
            self._change.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float | None = None) -> None:
        """Send what waits, for `timeout_s` seconds at most (None: `CLOSE_S`); where the broker is
        known to be away, not even that."""
        self._closing.set()
        with self._change:
            self._change.notify()
        if self._thread is not None and not self._away:
            self._thread.join(CLOSE_S if timeout_s is None else timeout_s)
        with self._change:
            left = len(self._waiting) + self._sending
            self._waiting.clear()
            if left:
                self._drop(left, "the command ended before the broker took them", at_once=True)

    def _run(self) -> None:
        producer = self._connected()
        if producer is None:
            return
        try:
            while (batch := self._next()) and self._deliver(producer, batch):
                continue
        finally:
            producer.close()

    def _connected(self) -> Producer | None:
        """A producer, as soon as the broker answers; None if the end came before."""
        while True:
            try:
                producer = self._connect()
            except FltsError as error:
                if not self._away:
                    structlog.get_logger().warning("events_wait", why=str(error))
                self._away = True
                if self._closing.wait(self._retry_s):
                    return None
            else:
                self._away = False
                return producer

    def _next(self) -> Sequence[Message]:
        """What waits, as soon as anything does; nothing at the end."""
        with self._change:
            self._sending = 0
            while not self._waiting and not self._closing.is_set():
                self._change.wait()
            batch = list(self._waiting)
            self._waiting.clear()
            self._sending = len(batch)
            return batch

    def _deliver(self, producer: Producer, batch: Sequence[Message]) -> bool:
        """False if the end came while the broker was away; `close` counts what was left."""
        for _ in range(TRIES):
            try:
                for one in batch:
                    producer.send(one.topic, one.value, key=one.key, headers=one.headers)
                producer.flush(FLUSH_S)
            except FltsError as error:
                why, self._away = str(error), True
                if self._closing.wait(self._retry_s):
                    return False
            else:
                self._away = False
                return True
        with self._change:
            self._drop(len(batch), why)
        return True

    def _drop(self, count: int, why: str, *, at_once: bool = False) -> None:
        """Count, and warn at most once in a while. The caller holds the lock."""
        self.dropped += count
        now = time.monotonic()
        if at_once or now - self._warned >= TOLD_AGAIN_S:
            self._warned = now
            structlog.get_logger().warning("events_dropped", total=self.dropped, why=why)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
