from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from flts_ray import events as module
from flts_ray.errors import Unavailable
from flts_ray.events import TOPICS, KafkaEvents, Kind, Message, NoEvents, message_of
from flts_ray.streams.records import Headers

NOW = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
TRAINING = {"study_run": "p", "trial": "ar-01", "status": "RUNNING", "run_id": None}


def told(kind: Kind, data: dict[str, Any], moment: datetime = NOW) -> Message:
    return message_of(kind, data, "/flts/load", "load", moment)


def header(message: Message, name: str) -> str:
    (value,) = [value for key, value in message.headers if key == name]
    return value.decode()


@dataclass
class Broker:
    """A producer that remembers, or fails as often as it is told to."""

    failures: int = 0
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    flushed: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("away")
        self.sent.append((topic, json.loads(value or b"")))

    def flush(self, timeout_s: float) -> None:
        self.flushed.set()

    def close(self) -> None:
        self.closed = True


@contextmanager
def published(connect: Callable[[], Any], limit: int = 100) -> Iterator[KafkaEvents]:
    events = KafkaEvents(connect, "load", limit, clock=lambda: NOW, retry_s=0.01)
    try:
        yield events
    finally:
        events.close()


def refused() -> Broker:
    raise Unavailable("nobody answers")


def test_the_value_is_flat_json_and_the_attributes_are_headers() -> None:
    message = told("training-data", {"bucket": "b", "object": "o", "config_hash": "c", "v": 1})
    assert json.loads(message.value) == {
        "bucket": "b", "object": "o", "config_hash": "c", "identifier": "load", "v": 1,
    }  # fmt: skip
    assert (message.topic, message.key) == ("training-data", b"load")
    assert {name: header(message, name) for name, _ in message.headers} == {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": header(message, "ce_id"),
        "ce_source": "/flts/load",
        "ce_type": "flts.training-data.v1",
        "ce_time": "2024-05-01T12:30:00+00:00",
    }


@pytest.mark.parametrize(
    ("kind", "data", "other"),
    [
        ("training-data", {"bucket": "b", "object": "o", "config_hash": "c"}, {"object": "p"}),
        ("model-training", TRAINING, {"status": "SUCCESS"}),
        ("model-training", TRAINING, {"trial": "ar-02"}),
        ("model-training", TRAINING, {"study_run": "q"}),
        ("model-selected", {"run_id": "r", "version": 2, "previous": 1}, {"previous": 3}),
    ],
)
def test_the_same_step_has_the_same_id_and_another_has_another(
    kind: Kind, data: dict[str, Any], other: dict[str, Any]
) -> None:
    later = told(kind, {**data, "error": "x"}, datetime(2025, 1, 1, tzinfo=UTC))
    first = header(told(kind, data), "ce_id")
    assert first == header(later, "ce_id")
    assert first != header(told(kind, {**data, **other}), "ce_id")
    elsewhere = message_of(kind, data, "/flts/other", "other", NOW)
    assert first != header(elsewhere, "ce_id")


def test_what_json_cannot_hold_becomes_null() -> None:
    message = told("model-selected", {"score": float("nan"), "version": 1})
    assert json.loads(message.value)["score"] is None


def test_everything_is_sent_in_order_and_the_end_waits_for_it() -> None:
    broker = Broker()
    with published(lambda: broker) as events:
        for n in range(50):
            events.publish(TOPICS[n % 3], {"v": n})
    assert [(topic, data["v"]) for topic, data in broker.sent] == [
        (TOPICS[n % 3], n) for n in range(50)
    ]
    assert (broker.closed, events.dropped) == (True, 0)


def test_nobody_waits_for_a_broker_that_does_not_answer() -> None:
    release = threading.Event()

    def stuck() -> Broker:
        release.wait(60)
        raise Unavailable("never")

    events = KafkaEvents(stuck, "load", 10)
    for n in range(25):
        events.publish("training-data", {"v": n})
    assert events.dropped == 15
    events.close(timeout_s=0.01)
    assert events.dropped == 25
    release.set()


def test_the_end_is_at_once_where_the_broker_is_known_to_be_away() -> None:
    tried = threading.Event()

    def away() -> Broker:
        if tried.is_set():
            raise AssertionError("tried again after the end")
        tried.set()
        raise Unavailable("nobody answers")

    events = KafkaEvents(away, "load", 10, retry_s=3600)
    events.publish("training-data", {})
    assert tried.wait(10)
    while not events._away:
        threading.Event().wait(0.001)
    events.close(timeout_s=3600)
    assert events.dropped == 1


def test_events_survive_a_broker_that_is_away_for_a_while() -> None:
    broker, attempts = Broker(failures=2), iter([refused, refused])

    def connect() -> Broker:
        return next(attempts, lambda: broker)()

    with published(connect) as events:
        events.publish("training-data", {"v": 1})
        assert broker.flushed.wait(10)
    assert ([data["v"] for _, data in broker.sent], events.dropped) == ([1], 0)


def test_what_the_broker_refuses_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRIES", 3)
    broker = Broker(failures=3)
    with published(lambda: broker) as events:
        events.publish("training-data", {"v": 1})
        while events.dropped == 0:
            threading.Event().wait(0.001)
        events.publish("training-data", {"v": 2})
        assert broker.flushed.wait(10)
    assert ([data["v"] for _, data in broker.sent], events.dropped) == ([2], 1)


def test_after_the_end_events_are_counted_only() -> None:
    broker = Broker()
    with published(lambda: broker) as events:
        events.publish("training-data", {"v": 1})
    events.publish("training-data", {"v": 2})
    assert (len(broker.sent), events.dropped) == (1, 1)


def test_without_an_event_nothing_is_started() -> None:
    with published(refused) as events:
        before = threading.active_count()
    assert (threading.active_count(), events.dropped) == (before, 0)
    NoEvents().publish("training-data", {})
    assert threading.active_count() == before
