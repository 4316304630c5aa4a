from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from flts_ray.config_stream import StreamConfig
from flts_ray.events import TOPICS, KafkaEvents
from flts_ray.local.broker import NoidaBroker
from flts_ray.streams.connect import admin, consumer, producer
from flts_ray.streams.records import Records
from tests.running import until

pytestmark = pytest.mark.integration


def test_events_arrive_with_their_headers_also_after_a_restart_of_the_broker(
    tmp_path: Path,
) -> None:
    with NoidaBroker(tmp_path) as broker:
        clerk = admin(StreamConfig(), broker.brokers)
        for topic in TOPICS:
            clerk.create_topic(topic, 1)
        clerk.close()
        events = KafkaEvents(partial(producer, StreamConfig(), broker.brokers), "load", 100)
        events.publish("model-training", {"run_id": "r", "status": "RUNNING", "study_run": "p"})
        first = read(broker.brokers, 1)
        broker.restart()
        events.publish("model-training", {"run_id": "r", "status": "SUCCESS", "study_run": "p"})
        found = read(broker.brokers, 2)
        events.close()
    assert events.dropped == 0
    assert [status for status, _ in found] == ["RUNNING", "SUCCESS"]
    assert found[0] == first[0]
    headers = [dict(headers) for _, headers in found]
    assert headers[0]["ce_id"] != headers[1]["ce_id"]
    for each in headers:
        assert each["ce_specversion"] == b"1.0"
        assert each["content-type"] == b"application/json"
        assert each["ce_type"] == b"flts.model-training.v1"
        assert datetime.fromisoformat(each["ce_time"].decode()).tzinfo == UTC


def read(brokers: str, count: int) -> list[tuple[str, tuple[tuple[str, bytes], ...]]]:
    """Status and headers of the first events, each id once: delivery is at least once."""
    reader = consumer(StreamConfig(topic="model-training"), brokers, group="test")
    found: dict[bytes, tuple[str, tuple[tuple[str, bytes], ...]]] = {}

    def enough() -> bool:
        for records in reader.poll(0.2, 100):
            found.update(dict(each(records)))
        return len(found) >= count

    try:
        reader.assign([0])
        reader.seek(0, 0)
        until(enough, 30, f"{count} events have arrived")
    finally:
        reader.close()
    return list(found.values())


def each(records: Records) -> list[tuple[bytes, tuple[str, tuple[tuple[str, bytes], ...]]]]:
    values = [json.loads(value or b"") for value in records.values]
    assert {value["identifier"] for value in values} == {"load"}
    assert set(records.keys) == {b"load"}
    return [
        (dict(headers)["ce_id"], (value["status"], tuple(headers)))
        for value, headers in zip(values, records.headers, strict=True)
    ]
