"""Embedded brokers and topics for tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from flts_ray.config_stream import StreamConfig
from flts_ray.local.broker import Broker, NoidaBroker, TansuBroker
from flts_ray.local.s3 import S3Server
from flts_ray.streams import connect
from flts_ray.streams.records import Consumer, Records

BrokerKind = Literal["noida", "tansu"]
ClientKind = Literal["kafka-python", "confluent"]
BROKERS: tuple[BrokerKind, ...] = ("noida", "tansu")
CLIENTS: tuple[ClientKind, ...] = ("kafka-python", "confluent")


@contextmanager
def embedded_broker(kind: BrokerKind, folder: Path) -> Iterator[Broker]:
    """A running broker; Tansu with an S3 server of its own."""
    if kind == "noida":
        with NoidaBroker(folder / "noida") as broker:
            yield broker
        return
    with (
        S3Server(folder / "s3", "tansu") as s3,
        TansuBroker(folder / "tansu", s3.environment(), s3.bucket) as broker,
    ):
        yield broker


def new_topic(
    brokers: str, client: ClientKind = "kafka-python", partitions: int = 2
) -> StreamConfig:
    """Configuration for a topic of its own, which is there."""
    stream = StreamConfig(
        brokers=brokers, topic=f"load-{uuid.uuid4().hex[:8]}", client=client, partitions=partitions
    )
    admin = connect.admin(stream, brokers)
    assert admin.create_topic(stream.topic, partitions)
    admin.close()
    return stream


def send(
    stream: StreamConfig,
    brokers: str,
    messages: Sequence[tuple[int, bytes | None]],
    timeout_s: float = 30,
) -> None:
    """Write (partition, value) pairs and wait until they are acknowledged."""
    producer = connect.producer(stream, brokers)
    try:
        for partition, value in messages:
            producer.send(stream.topic, value, partition=partition)
        producer.flush(timeout_s)
    finally:
        producer.close()


def read(
    consumer: Consumer, enough: Callable[[dict[int, list[int]]], bool], polls: int = 60
) -> tuple[dict[int, list[int]], list[Records]]:
    """Poll until `enough` of the offsets by partition; fails after `polls` half seconds."""
    offsets: dict[int, list[int]] = {}
    found: list[Records] = []
    for _ in range(polls):
        for records in consumer.poll(0.5, 1000):
            offsets.setdefault(records.partition, []).extend(records.offsets)
            found.append(records)
        if enough(offsets):
            return offsets, found
    raise AssertionError(
        f"not enough after {polls} polls: { {p: len(o) for p, o in offsets.items()} }"
    )
