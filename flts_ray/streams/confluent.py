"""Reading the stream through confluent-kafka (librdkafka), about four times cheaper a message.

Design choices: the same settings as the default client; a seek gives the partition back and takes
it at the new offset, because the library refuses to seek before a fetch has begun; the end of a
partition is an event, so that a position also passes what is never delivered (the marks of
transactions); the log end is the high-water mark of a fetch, as some brokers answer the query for
the latest offset wrongly; the library gives either all headers of a message or none, so a message
with one whose name is no UTF-8 comes without headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import ANSWER_S, Login, missing_topic, refused, silent
from flts_ray.streams.confluent_access import is_final, reaching, said, settings
from flts_ray.streams.outage import Outage
from flts_ray.streams.rebalance import Rebalances
from flts_ray.streams.records import Headers, Records, message_sizes

# Where a name is no UTF-8 the library returns a broken list with an error pending. The interpreter
# checks for that in a call from its own code, but not in one from a loop that it has sped up.
_HEADERS = methodcaller("headers")


class ConfluentConsumer:
    """`records.Consumer` on confluent-kafka."""

    def __init__(
        self, stream: StreamConfig, brokers: str, login: Login | None, group: str, member: str = ""
    ) -> None:
        self.commit_failures = 0
        self._topic = stream.topic
        self._brokers = brokers
        self._settings = {**settings(stream, brokers, login), **_reading(), "group.id": group}
        self._rebalances: Rebalances | None = None
        self._outage = Outage(brokers, self._answers)
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        membership = {"group.instance.id": member} if member else {}
        with reaching(brokers):
            self._client = Consumer(
                {
                    **self._settings,
                    **membership,
                    "partition.assignment.strategy": "cooperative-sticky",
                    "session.timeout.ms": 15_000,
                    "enable.partition.eof": True,
                    "on_commit": self._on_commit,
                }
            )
            self._client.list_topics(self._topic, timeout=ANSWER_S)

    @property
    def rebalances(self) -> int:
        return 0 if self._rebalances is None else self._rebalances.count

    @property
    def away_since(self) -> float | None:
        return self._outage.away_since

    def partitions(self) -> list[int]:
        with reaching(self._brokers):
            topic = self._client.list_topics(self._topic, timeout=ANSWER_S).topics[self._topic]
        if topic.error is not None and is_final(topic.error):
            raise refused(self._brokers, said(topic.error))
        if not topic.partitions:
            raise missing_topic(self._brokers, self._topic)
        return sorted(topic.partitions)

    def assign(self, partitions: Sequence[int]) -> None:
        self._next.clear()
        self._paused.clear()
        self._client.assign(self._named(partitions))

    def subscribe(
        self,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        self._rebalances = Rebalances(on_assigned, on_revoked)
        revoked = self._noting("revoked")
        self._client.subscribe(
            [self._topic],
            on_assign=self._noting("assigned"),
            on_revoke=revoked,
            on_lost=revoked,
        )

    def seek(self, partition: int, offset: int) -> None:
        self._client.incremental_unassign(self._named([partition]))
        self._client.incremental_assign([TopicPartition(self._topic, partition, offset)])
        self._next[partition] = offset
        if partition in self._paused:
            self._client.pause(self._named([partition]))

    def position(self, partition: int) -> int:
        if partition not in self._next:
            stored = self.committed([partition])[partition]
            start = self.bounds([partition])[partition][0] if stored is None else stored[0]
            self._next[partition] = start
        return self._next[partition]

    def poll(self, timeout_s: float, max_records: int) -> list[Records]:
        try:
            messages = self._client.consume(1, timeout_s)
            if messages and max_records > 1:
                messages += self._client.consume(max_records - 1, 0)
        except KafkaException as exception:
            self._trouble(exception.args[0])
            return []
        delivered = [message for message in messages if message.error() is None]
        if len(delivered) < len(messages):
            self._look_at(message for message in messages if message.error() is not None)
        if delivered:
            self._outage.heard()
        else:
            self._outage.quiet()
        records = self._by_partition(delivered)
        return records if self._rebalances is None else self._rebalances.settle(records, self.seek)

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused.update(partitions)
        self._client.pause(self._named(partitions))

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused.difference_update(partitions)
        self._client.resume(self._named(partitions))

    def commit(self, offsets: Mapping[int, int], metadata: Mapping[int, str]) -> None:
        named = [
            TopicPartition(self._topic, p, offset, metadata.get(p, ""))
            for p, offset in offsets.items()
        ]
        try:
            self._client.commit(offsets=named, asynchronous=True)
        except KafkaException as exception:
            self._on_commit(exception.args[0], named)

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int, str] | None]:
        with reaching(self._brokers):
            stored = self._client.committed(self._named(partitions), timeout=ANSWER_S)
        return {
            at.partition: (at.offset, at.metadata or "") if at.offset >= 0 else None
            for at in stored
        }

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        with reaching(self._brokers):
            asked = {
                at.partition: self._client.get_watermark_offsets(at, timeout=ANSWER_S)
                for at in self._named(partitions)
            }
            marks = {p: _highwater(self._client, self._topic, p) for p in partitions}
            unknown = {p: asked[p][1] for p, mark in marks.items() if mark is None}
            marks |= self._watermarks(unknown)
        return {p: (low, max(high, marks[p] or 0)) for p, (low, high) in asked.items()}

    def close(self) -> None:
        self._client.close()

    def _named(self, partitions: Sequence[int]) -> list[Any]:
        return [TopicPartition(self._topic, p) for p in partitions]

    def _noting(self, change: str) -> Callable[[Any, Sequence[Any]], None]:
        def note(_: Any, partitions: Sequence[Any]) -> None:
            changed = [at.partition for at in partitions]
            for partition in changed:
                self._next.pop(partition, None)
                self._paused.discard(partition)
            if self._rebalances is not None:
                self._rebalances.note(change, changed)

        return note

    def _by_partition(self, messages: Sequence[Any]) -> list[Records]:
        rows: dict[int, list[Any]] = {}
        for message in messages:
            rows.setdefault(message.partition(), []).append(message)
        records = [_columns(partition, found) for partition, found in rows.items()]
        self._next |= {found.partition: found.offsets[-1] + 1 for found in records}
        return records

    def _look_at(self, messages: Any) -> None:
        """Messages that are events of the client."""
        for message in messages:
            if message.error().code() == KafkaError._PARTITION_EOF:
                self._next[message.partition()] = message.offset()
            else:
                self._trouble(message.error())

    def _trouble(self, error: Any) -> None:
        if is_final(error):
            raise refused(self._brokers, said(error))
        self._outage.lost(said(error))

    def _watermarks(self, ends: Mapping[int, int]) -> dict[int, int]:
        """High-water marks from a fetch at what the broker calls the ends."""
        if not ends:
            return {}
        reader = Consumer({**self._settings, "fetch.wait.max.ms": 20})
        try:
            reader.assign([TopicPartition(self._topic, p, end) for p, end in ends.items()])
            limit = time.monotonic() + ANSWER_S
            while time.monotonic() < limit:
                reader.consume(10_000, 0.02)
                marks = {p: _highwater(reader, self._topic, p) for p in ends}
                found = {p: mark for p, mark in marks.items() if mark is not None}
                if len(found) == len(ends):
                    return found
        finally:
            reader.close()
        raise silent(self._brokers, "no fetch was answered")

    def _answers(self) -> bool:
        try:
            topics = self._client.list_topics(self._topic, timeout=1.0).topics
        except KafkaException:
            return False
        return topics[self._topic].error is None

    def _on_commit(self, error: Any, partitions: Sequence[Any]) -> None:
        failed = [error] if error is not None else [at.error for at in partitions if at.error]
        if failed:
            self.commit_failures += 1
            structlog.get_logger().warning(
                "commit_failed",
                topic=self._topic,
                partitions=len(partitions),
                error=said(failed[0]),
            )


def _reading() -> dict[str, Any]:
    """What readers share."""
    return {
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
        "isolation.level": "read_committed",
        "check.crcs": True,
        "fetch.max.bytes": 2**25,
        "max.partition.fetch.bytes": 2**22,
        "fetch.queue.backoff.ms": 10,
    }


def _highwater(client: Any, topic: str, partition: int) -> int | None:
    """What the last fetch of an assigned partition said; None before the first."""
    mark = client.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
    return None if mark is None or mark[1] < 0 else int(mark[1])


def _columns(partition: int, rows: Sequence[Any]) -> Records:
    """One poll's messages of a partition, column by column."""
    found = [_headers(partition, row) for row in rows]
    values, keys = [row.value() for row in rows], [row.key() for row in rows]
    headers = found if any(found) else ()
    return Records(
        partition=partition,
        offsets=[row.offset() for row in rows],
        values=values,
        timestamps_ms=[row.timestamp()[1] for row in rows],
        headers=headers,
        keys=keys,
        nbytes=sum(message_sizes(values, keys, headers)),
    )


def _headers(partition: int, row: Any) -> Headers:
    """Headers of a message; none where the library cannot give them (a name is no UTF-8)."""
    try:
        return _HEADERS(row) or ()
    except (SystemError, ValueError) as error:
        structlog.get_logger().warning(
            "headers_unreadable", partition=partition, offset=row.offset(), error=str(error)
        )
        return ()
