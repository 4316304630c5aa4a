"""Writing to topics and administering them through confluent-kafka.

Design choices: as in the default client; keys go to the partitions that other Kafka clients choose
for them (murmur2); topics are looked up in the list of all, since naming one in a question makes it
on brokers that make topics by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import (
    ANSWER_S,
    Login,
    missing_topic,
    refused,
    silent,
    unacknowledged,
)
from flts_ray.streams.confluent_access import reaching, said, settings
from flts_ray.streams.records import Headers

_UNACKNOWLEDGED = 50_000


class ConfluentProducer:
    """`records.Producer` on confluent-kafka."""

    def __init__(self, stream: StreamConfig, brokers: str, login: Login | None) -> None:
        self._brokers = brokers
        self._failed: list[str] = []
        self._known: set[str] = set()
        with reaching(brokers):
            self._client = Producer(
                {
                    **settings(stream, brokers, login),
                    "acks": "all",
                    "enable.idempotence": stream.idempotence,
                    "linger.ms": 5,
                    "message.max.bytes": 2**26,
                    "message.timeout.ms": 120_000,
                    "queue.buffering.max.messages": _UNACKNOWLEDGED,
                    "partitioner": "murmur2_random",
                }
            )
            self._known.update(self._client.list_topics(timeout=ANSWER_S).topics)

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        self._look_up(topic)
        options: dict[str, Any] = {"headers": list(headers), "on_delivery": self._on_delivery}
        if partition is not None:
            options["partition"] = partition
        if timestamp_ms is not None:
            options["timestamp"] = timestamp_ms
        limit = time.monotonic() + ANSWER_S * 6
        while True:
            try:
                self._client.produce(topic, value, key, **options)
            except BufferError:
                if time.monotonic() > limit:
                    raise silent(self._brokers, "the queue of messages stays full") from None
                self._client.poll(0.1)
            except KafkaException as exception:
                raise refused(self._brokers, said(exception.args[0])) from None
            else:
                break
        self._client.poll(0)

    def flush(self, timeout_s: float) -> None:
        waiting = self._client.flush(timeout_s)
        failed, self._failed = self._failed, []
        if failed or waiting:
            raise unacknowledged(self._brokers, waiting + len(failed), timeout_s, failed)

    def close(self) -> None:
        self._client.flush(5)

    def _look_up(self, topic: str) -> None:
        if topic not in self._known:
            with reaching(self._brokers):
                self._known.update(self._client.list_topics(timeout=ANSWER_S).topics)
            if topic not in self._known:
                raise missing_topic(self._brokers, topic)

    def _on_delivery(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed.append(said(error))


class ConfluentAdmin:
    """`records.Admin` on confluent-kafka."""

    def __init__(self, stream: StreamConfig, brokers: str, login: Login | None) -> None:
        self._brokers = brokers
        with reaching(brokers):
            self._client = AdminClient(settings(stream, brokers, login))
            self._client.list_topics(timeout=ANSWER_S)

    def topic_identity(self, topic: str) -> tuple[str, str]:
        if not self.partitions(topic):
            raise missing_topic(self._brokers, topic)
        with reaching(self._brokers):
            cluster = self._client.list_topics(timeout=ANSWER_S).cluster_id or ""
            asked = self._client.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_S)
            found = asked[topic].result().topic_id
        halves = (found.get_most_significant_bits(), found.get_least_significant_bits())
        digits = "".join(f"{half & (2**64 - 1):016x}" for half in halves)
        return cluster, digits if any(halves) else ""

    def create_topic(self, topic: str, partitions: int) -> bool:
        wanted = NewTopic(topic, partitions, -1)
        with reaching(self._brokers):
            try:
                self._client.create_topics([wanted], request_timeout=ANSWER_S)[topic].result()
            except KafkaException as exception:
                if exception.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                return False
        limit = time.monotonic() + ANSWER_S
        while self.partitions(topic) < partitions:
            if time.monotonic() > limit:
                raise silent(self._brokers, f"topic {topic} was made but does not appear")
            time.sleep(0.05)
        return True

    def delete_topic(self, topic: str) -> None:
        with reaching(self._brokers):
            try:
                self._client.delete_topics([topic], request_timeout=ANSWER_S)[topic].result()
            except KafkaException as exception:
                if exception.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

    def partitions(self, topic: str) -> int:
        with reaching(self._brokers):
            found = self._client.list_topics(timeout=ANSWER_S).topics.get(topic)
        return 0 if found is None else len(found.partitions)

    def topics(self) -> list[str]:
        with reaching(self._brokers):
            found = self._client.list_topics(timeout=ANSWER_S).topics
        return sorted(name for name in found if name[:2] != "__")

    def delete_records(self, topic: str, before: Mapping[int, int]) -> bool:
        named = [TopicPartition(topic, p, offset) for p, offset in before.items()]
        asked = self._client.delete_records(named, request_timeout=ANSWER_S / 2)
        try:
            for answer in asked.values():
                answer.result()
        except KafkaException as exception:
            if exception.args[0].code() not in _CANNOT:
                raise refused(self._brokers, said(exception.args[0])) from None
            self.partitions(topic)  # raises where the broker itself is away
            return False
        return True

    def close(self) -> None:
        """The library closes with its last reference."""


_CANNOT = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
