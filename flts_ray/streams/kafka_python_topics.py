"""Writing to topics and administering them through kafka-python.

Design choices: all replicas acknowledge, and a repeated write is not doubled unless the
configuration gives that up; topics are never made by mentioning them; what waits for an answer is
limited here, because the library's own buffer is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import (
    ANSWER_S,
    Login,
    login,
    missing_topic,
    refused,
    unacknowledged,
)
from flts_ray.streams.kafka_python_access import ANSWER_MS, reaching, said, settings
from flts_ray.streams.records import Headers

_UNACKNOWLEDGED = 50_000


class KafkaPythonProducer:
    """`records.Producer` on kafka-python."""

    def __init__(self, stream: StreamConfig, brokers: str, login: Login | None) -> None:
        self._brokers = brokers
        self._sent = self._answered = 0
        self._failed: list[str] = []
        with reaching(brokers):
            self._client = KafkaProducer(
                **settings(stream, brokers, login),
                acks="all",
                enable_idempotence=stream.idempotence,
                linger_ms=5,
                batch_size=2**17,
                max_request_size=2**26,
                max_block_ms=ANSWER_MS,
                metrics_enabled=False,
            )

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        if self._sent - self._answered >= _UNACKNOWLEDGED:
            self.flush(ANSWER_S * 6)
        with reaching(self._brokers):
            future = self._client.send(
                topic, value, key, list(headers), partition=partition, timestamp_ms=timestamp_ms
            )
        self._sent += 1
        future.add_callback(self._on_success)
        future.add_errback(self._on_failure)

    def flush(self, timeout_s: float) -> None:
        with suppress(errors.KafkaTimeoutError):  # the counts tell what is missing
            self._client.flush(timeout=timeout_s)
        failed, self._failed = self._failed, []
        waiting = self._sent - self._answered
        if failed or waiting:
            raise unacknowledged(self._brokers, waiting + len(failed), timeout_s, failed)

    def close(self) -> None:
        self._client.close(timeout=5)

    def _on_success(self, _: Any) -> None:
        self._answered += 1

    def _on_failure(self, error: BaseException) -> None:
        self._answered += 1
        self._failed.append(said(error))


class KafkaPythonAdmin:
    """`records.Admin` on kafka-python."""

    def __init__(self, stream: StreamConfig, brokers: str, login: Login | None) -> None:
        self._brokers = brokers
        with reaching(brokers):
            self._client = KafkaAdminClient(**settings(stream, brokers, login))

    def topic_identity(self, topic: str) -> tuple[str, str]:
        found = self._described(topic)
        if found is None:
            raise missing_topic(self._brokers, topic)
        # `describe_cluster` fails on brokers that leave optional fields out; every client has
        # read the id with its first metadata.
        cluster = self._client._manager.cluster.cluster_id or ""
        return cluster, str(found["topic_id"] or "").replace("-", "")

    def create_topic(self, topic: str, partitions: int) -> bool:
        options = {"num_partitions": partitions, "replication_factor": -1}
        with reaching(self._brokers):
            try:
                self._client.create_topics({topic: options}, wait_for_metadata=True)
            except errors.TopicAlreadyExistsError:
                return False
        return True

    def delete_topic(self, topic: str) -> None:
        with reaching(self._brokers), suppress(errors.UnknownTopicOrPartitionError):
            self._client.delete_topics([topic])

    def partitions(self, topic: str) -> int:
        found = self._described(topic)
        return 0 if found is None else len(found["partitions"])

    def topics(self) -> list[str]:
        with reaching(self._brokers):
            return sorted(name for name in self._client.list_topics() if name[:2] != "__")

    def delete_records(self, topic: str, before: Mapping[int, int]) -> bool:
        named = {TopicPartition(topic, p): offset for p, offset in before.items()}
        try:
            self._client.delete_records(named, timeout_ms=ANSWER_MS)
        except (errors.UnsupportedVersionError, errors.KafkaConnectionError):
            self._described(topic)  # raises where the broker itself is away
            return False
        except errors.KafkaError as error:
            raise refused(self._brokers, said(error)) from None
        return True

    def close(self) -> None:
        self._client.close()

    def _described(self, topic: str) -> Mapping[str, Any] | None:
        with reaching(self._brokers):
            found = self._client.describe_topics([topic])[0]
        if found["error_code"] == errors.UnknownTopicOrPartitionError.errno:
            return None
        if found["error_code"]:
            raise refused(self._brokers, errors.for_code(found["error_code"]).__name__)
        return dict(found)


def answers(stream: StreamConfig, brokers: str, timeout_s: float = ANSWER_S) -> bool:
    """Whether a broker tells its topics within `timeout_s` seconds."""
    timeouts = {"bootstrap_timeout_ms": int(timeout_s * 1000)}
    try:
        client = KafkaAdminClient(**{**settings(stream, brokers, login(stream)), **timeouts})
    except (errors.KafkaError, OSError):
        return False
    try:
        client.list_topics()
    except errors.KafkaError:
        return False
    finally:
        client.close()
    return True
