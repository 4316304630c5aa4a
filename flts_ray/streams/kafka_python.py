"""Reading the stream through kafka-python, the default client.

Design choices: no deserialisers and no automatic commits, so that one bad byte or one crash costs
nothing; check sums stay on; fetches are large, because each costs a round trip and a decoder start;
the log end is what a fetch says (the high-water mark), as some brokers answer the query for the
latest offset wrongly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition, errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import ANSWER_S, Login, missing_topic, refused, silent, unreadable
from flts_ray.streams.kafka_python_access import ANSWER_MS, reaching, said, settings
from flts_ray.streams.kafka_python_records import read_odd_names
from flts_ray.streams.outage import Outage
from flts_ray.streams.rebalance import Rebalances
from flts_ray.streams.records import Records

_OFFSET, _TIMESTAMP, _KEY, _VALUE, _HEADERS = map(itemgetter, (3, 4, 6, 7, 8))
_SIZES = tuple(map(itemgetter, (10, 11, 12)))


class KafkaPythonConsumer:
    """`records.Consumer` on kafka-python. Not to be shared between threads."""

    def __init__(
        self, stream: StreamConfig, brokers: str, login: Login | None, group: str, member: str = ""
    ) -> None:
        self.commit_failures = 0
        self._topic = stream.topic
        self._brokers = brokers
        self._settings = settings(stream, brokers, login)
        self._rebalances: Rebalances | None = None
        self._outage = Outage(brokers, self._answers)
        with reaching(brokers):
            self._client = KafkaConsumer(
                **self._settings,
                **_reading(),
                group_id=group,
                group_instance_id=member or None,
                partition_assignment_strategy=(CooperativeStickyAssignor,),
                session_timeout_ms=15_000,
            )
        read_odd_names(self._client)

    @property
    def rebalances(self) -> int:
        return 0 if self._rebalances is None else self._rebalances.count

    @property
    def away_since(self) -> float | None:
        return self._outage.away_since

    def partitions(self) -> list[int]:
        with reaching(self._brokers):
            found = self._client.partitions_for_topic(self._topic)
        if not found:
            raise missing_topic(self._brokers, self._topic)
        return sorted(found)

    def assign(self, partitions: Sequence[int]) -> None:
        self._client.assign(self._named(partitions))

    def subscribe(
        self,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        self._rebalances = Rebalances(on_assigned, on_revoked)
        self._client.subscribe([self._topic], listener=_Listener(self._rebalances))

    def seek(self, partition: int, offset: int) -> None:
        self._client.seek(TopicPartition(self._topic, partition), offset)

    def position(self, partition: int) -> int:
        with reaching(self._brokers):
            found = self._client.position(
                TopicPartition(self._topic, partition), timeout_ms=ANSWER_MS
            )
        if found is None:
            raise silent(self._brokers, "the position is not known yet")
        return int(found)

    def poll(self, timeout_s: float, max_records: int) -> list[Records]:
        self._drop_parked()
        try:
            found = self._client.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        except errors.RetriableError as error:
            self._outage.lost(said(error))
            time.sleep(min(timeout_s, 0.2))
            return []
        except (errors.CorruptRecordError, errors.UnsupportedCodecError) as error:
            raise unreadable(self._brokers, said(error)) from None
        except errors.KafkaError as error:
            raise refused(self._brokers, said(error)) from None
        records = [_columns(named.partition, rows) for named, rows in found.items()]
        if records:
            self._outage.heard()
        else:
            self._outage.quiet()
        return records if self._rebalances is None else self._rebalances.settle(records, self.seek)

    def pause(self, partitions: Sequence[int]) -> None:
        self._client.pause(*self._named(partitions))

    def resume(self, partitions: Sequence[int]) -> None:
        self._client.resume(*self._named(partitions))

    def commit(self, offsets: Mapping[int, int], metadata: Mapping[int, str]) -> None:
        named = {
            TopicPartition(self._topic, p): OffsetAndMetadata(offset, metadata.get(p, ""), -1)
            for p, offset in offsets.items()
        }
        try:
            self._client.commit_async(named, callback=self._on_commit)
        except errors.KafkaError as error:
            self._on_commit(named, error)

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int, str] | None]:
        found: dict[int, tuple[int, str] | None] = {}
        for named in self._named(partitions):
            with reaching(self._brokers):
                stored = self._client.committed(named, metadata=True, timeout_ms=ANSWER_MS)
            known = stored is not None and stored.offset >= 0
            found[named.partition] = (stored.offset, stored.metadata or "") if known else None
        return found

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        named = self._named(partitions)
        with reaching(self._brokers):
            starts = self._client.beginning_offsets(named, timeout_ms=ANSWER_MS)
            ends = self._client.end_offsets(named, timeout_ms=ANSWER_MS)
            marks = {tp: self._client.highwater(tp) for tp in self._client.assignment()}
            unknown = [tp for tp in named if marks.get(tp) is None]
            marks |= self._watermarks({tp: ends[tp] for tp in unknown})
        return {tp.partition: (starts[tp], max(ends[tp], marks[tp] or 0)) for tp in named}

    def close(self) -> None:
        self._client.close(autocommit=False, timeout_ms=2000)

    def _drop_parked(self) -> None:
        """Forget what was read of partitions that paused and go on: it is fetched again.

        The library keeps decoded messages of a paused partition aside, but takes them up again
        only by chance, and fetches nothing of the partition until then.
        """
        parked = self._client._fetcher._paused_partition_records
        for named in parked.keys() - self._client.paused() if parked else ():
            parked.pop(named).drain()

    def _named(self, partitions: Sequence[int]) -> list[Any]:
        return [TopicPartition(self._topic, p) for p in partitions]

    def _watermarks(self, ends: Mapping[Any, int]) -> dict[Any, int]:
        """High-water marks from a fetch at what the broker calls the ends."""
        if not ends:
            return {}
        reader = KafkaConsumer(**self._settings, **_reading(), group_id=None, fetch_max_wait_ms=20)
        try:
            reader.assign(list(ends))
            for named, end in ends.items():
                reader.seek(named, end)
            limit = time.monotonic() + ANSWER_S
            while any(reader.highwater(named) is None for named in ends):
                if time.monotonic() > limit:
                    raise errors.KafkaTimeoutError("no fetch was answered")
                reader.poll(timeout_ms=50, max_records=10_000)
            return {named: reader.highwater(named) for named in ends}
        finally:
            reader.close(timeout_ms=1000)

    def _answers(self) -> bool:
        try:
            self._client.beginning_offsets([TopicPartition(self._topic, 0)], timeout_ms=1000)
        except errors.KafkaError:
            return False
        return True

    def _on_commit(self, offsets: Mapping[Any, Any], answer: Any) -> None:
        if isinstance(answer, Exception):
            self.commit_failures += 1
            structlog.get_logger().warning(
                "commit_failed", topic=self._topic, partitions=len(offsets), error=said(answer)
            )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the library's own thread."""

    def __init__(self, rebalances: Rebalances) -> None:
        self._rebalances = rebalances

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._rebalances.note("assigned", (named.partition for named in assigned))

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._rebalances.note("revoked", (named.partition for named in revoked))


def _reading() -> dict[str, Any]:
    """What readers share."""
    return {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "fetch_max_bytes": 2**25,
        "max_partition_fetch_bytes": 2**22,
        "isolation_level": "read_committed",
        "metrics_enabled": False,
    }


def _columns(partition: int, rows: Sequence[Any]) -> Records:
    """One poll's messages of a partition, column by column, without a Python call a message."""
    headers = list(map(_HEADERS, rows))
    sizes = [list(map(size, rows)) for size in _SIZES]  # -1 for a part that is not there
    return Records(
        partition=partition,
        offsets=list(map(_OFFSET, rows)),
        values=list(map(_VALUE, rows)),
        timestamps_ms=list(map(_TIMESTAMP, rows)),
        headers=headers if any(headers) else (),
        keys=list(map(_KEY, rows)),
        nbytes=sum(sum(of) + of.count(-1) for of in sizes),
    )
