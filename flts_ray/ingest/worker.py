"""A worker: reads partitions of the topic and does what the sink says.

Design choices: thin, every decision is the sink's; one loop polls, decodes and commits, one
background thread encodes and stores, so that neither waits for the other; all state that must
survive lies in the store, so a worker may be killed anywhere; others look at it through an
immutable state that is replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Protocol

import structlog

from flts_ray.config import Config
from flts_ray.errors import Conflict, Unavailable
from flts_ray.ingest.errands import Answer, Errands, Followed, Place, Stored
from flts_ray.ingest.faults import NO_FAULTS, Faults
from flts_ray.ingest.held import Limits
from flts_ray.ingest.segment import Batch
from flts_ray.ingest.sink import step
from flts_ray.ingest.sink_actions import (
    Action,
    Commit,
    Drained,
    Fail,
    Halt,
    Lost,
    Pause,
    Put,
    Recover,
    Resume,
    Rewound,
    Seek,
)
from flts_ray.ingest.sink_events import (
    Assigned,
    Bounds,
    Broken,
    Drain,
    Event,
    Polled,
    PutFailed,
    Recovered,
    RecoverFailed,
    Revoked,
    Tick,
    Undecoded,
)
from flts_ray.ingest.sink_state import Sink
from flts_ray.ingest.topic_watch import TopicWatch
from flts_ray.ingest.worker_status import (
    WorkerStatus,
    left_over,
    partitions_of,
    status_key,
    totals_of,
)
from flts_ray.store import Store
from flts_ray.streams.records import Consumer, Records

IDLE_POLL_S = 0.2
BUSY_POLL_S = 0.05
"""While the store is asked something, its answer is not kept waiting."""


class Decodes(Protocol):
    def decode(self, records: Records) -> Batch:
        """At least the first message; what the batch leaves over is read again.

        Raises Unavailable where a claimed object's store is away, and nothing else.
        """


class Worker:
    """Worker `index` of `of`. `epoch` is this life of the topic, `writer` this process's own name.

    `epoch_now` asks the broker for it again, now and then. `run` once, in one thread;
    `snapshot` from any. `close` ends the consumer.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        consumer: Consumer,
        decoder: Decodes,
        *,
        epoch: str,
        writer: str,
        index: int = 0,
        of: int = 1,
        epoch_now: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self._config, self._consumer, self._decoder = config, consumer, decoder
        self._index, self._of = index, of
        self._clock, self._faults = clock, faults
        self._watch = TopicWatch(config.stream.topic, epoch, epoch_now, clock)
        self._place = Place(config.stream.topic, epoch, writer)
        self._errands = Errands(store, self._place, faults)
        self._sink = Sink(Limits.of(config.ingest), writer)
        self._mine: list[int] = []
        self._ends: dict[int, int] = {}
        self._counted: Counter[str] = Counter()
        self._told = float("-inf")
        self._over = False
        self._started = self._seen = datetime.now(UTC)
        self._log = structlog.get_logger("flts_ray.ingest").bind(
            topic=config.stream.topic, epoch=epoch, index=index, writer=writer
        )

    def run(self, stop: threading.Event, until_end: bool = False) -> None:
        """Ingest until `stop` is set, or to the ends that the logs have now; then drain.

        Raises Unavailable when the store stays away for longer than the patience or the topic
        was made anew, Conflict when no partition can go on, or one could not with `until_end`;
        with it Stuck where the store of a claimed object stays away for longer than the patience.
        """
        self._log.info("ingest_worker_started", of=self._of, until_end=until_end)
        try:
            self._begin()
            while not self._over:
                self._turn()
                if stop.is_set() or (until_end and self._at_the_end()):
                    self._drain()
            self._say_farewell(until_end)
        finally:
            self._errands.close()

    def snapshot(self) -> WorkerStatus:
        """How it is now; may be called from any thread."""
        sink = self._sink
        counted = {
            "messages": self._counted["messages"],
            "bytes": self._counted["bytes"],
            "rebalances": self._consumer.rebalances,
            "commit_failures": self._consumer.commit_failures,
        }
        return WorkerStatus(
            writer=self._place.writer, topic=self._place.topic, epoch=self._place.epoch,
            index=self._index, of=self._of,
            partitions=partitions_of(sink), totals=totals_of(sink, counted),
            full=sink.full, draining=sink.draining,
            started_at=self._started.isoformat(), updated_at=self._seen.isoformat(),
            ended=self._over,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    # One turn of the loop.

    def _turn(self) -> None:
        for answer in self._errands.answers():
            self._answered(answer)
        self._feed(Tick(self._clock()))
        if self._over:
            return
        wait_s = BUSY_POLL_S if self._errands.busy else IDLE_POLL_S
        if not self._mine and self._config.ingest.ownership == "assign":
            time.sleep(wait_s)
        else:
            found = self._consumer.poll(wait_s, self._config.ingest.poll_records)
            doubt = self._watch.look(self._consumer.away_since is not None)
            for records in found:
                self._read(records, doubt)
        if self._clock() - self._told >= self._config.ingest.status_s:
            self._look_around()

    def _begin(self) -> None:
        if self._config.ingest.ownership == "assign":
            self._take_partitions(self._consumer.partitions())
            return
        self._consumer.subscribe(lambda added: self._feed(Assigned(tuple(added))), self._given_away)

    def _take_partitions(self, partitions: list[int]) -> None:
        found = [p for p in partitions if p % self._of == self._index]
        if found == self._mine:
            return
        self._mine = found
        self._consumer.assign(found)
        for number, p in self._sink.partitions.items():
            if p.position is not None:
                self._consumer.seek(number, p.position)
            if p.paused:
                self._consumer.pause([number])
        self._feed(Assigned(tuple(found)))

    def _given_away(self, partitions: list[int]) -> None:
        self._feed(Revoked(tuple(partitions)))
        for partition in partitions:
            self._errands.forget(partition)
            self._ends.pop(partition, None)

    def _read(self, records: Records, doubt: str) -> None:
        self._faults.at("polled")
        partition = records.partition
        state = self._sink.partitions.get(partition)
        if state is None or state.position is None or not records.offsets:
            return
        try:
            if doubt:
                raise Unavailable(doubt)
            start = None
            if records.offsets[0] != state.position:
                start, end = self._consumer.bounds([partition])[partition]
                self._feed(Bounds(partition, start, end))
            batch = self._decoder.decode(records)
        except Unavailable as error:
            self._log.warning("messages_wait", partition=partition, reason=str(error))
            self._feed(Undecoded(partition, str(error)))
            return
        self._faults.at("decoded")
        self._feed(Polled(partition, batch, start))
        count = bisect_left(records.offsets, batch.end)
        if count < len(records.offsets):
            records = records.part(0, count)
            position = self._sink.partitions[partition].position
            self._consumer.seek(partition, batch.end if position is None else position)
        self._counted["messages"] += count
        self._counted["bytes"] += records.nbytes

    def _look_around(self) -> None:
        """Every few seconds: how long the logs are, and how this worker is."""
        self._told = self._clock()
        self._seen = datetime.now(UTC)
        if self._consumer.away_since is None:
            self._look_at_the_logs()
        self._report()

    def _look_at_the_logs(self) -> None:
        known = [n for n, p in self._sink.partitions.items() if p.position is not None]
        partitions = None
        try:
            if self._config.ingest.ownership == "assign":
                partitions = self._consumer.partitions()  # a topic may get more of them
            bounds = self._consumer.bounds(known) if known else {}
        except Unavailable as error:
            self._log.warning("log_ends_unknown", reason=str(error))
            self._watch.doubt(str(error))
            return
        for number, (start, end) in bounds.items():
            self._feed(Bounds(number, start, end))
        if partitions is not None:
            self._take_partitions(partitions)

    def _report(self) -> None:
        status = self.snapshot()
        key = status_key(status.topic, status.epoch, self._index)
        self._errands.overwrite(
            key,
            status.as_json(),
            lambda error: self._log.warning("status_not_stored", reason=str(error)),
        )

    def _drain(self) -> None:
        if not self._sink.draining:
            self._log.info("ingest_draining", buffered_bytes=self._sink.buffered_bytes)
            self._feed(Drain())

    def _at_the_end(self) -> bool:
        if self._config.ingest.ownership == "subscribe" and not self._consumer.rebalances:
            return False
        return all(
            p.halted
            or p.stuck(self._sink.clock, self._sink.limits)
            or (p.position is not None and self._reached(n))
            for n, p in self._sink.partitions.items()
        )

    def _reached(self, partition: int) -> bool:
        # The client's position passes offsets without a message, which end many logs.
        try:
            return self._consumer.position(partition) >= self._ends[partition]
        except Unavailable:
            return False

    def _say_farewell(self, until_end: bool) -> None:
        self._consumer.poll(BUSY_POLL_S, 1)  # sends the last commits
        self._seen = datetime.now(UTC)
        self._report()
        self._errands.finish()
        self._log.info("ingest_worker_ended", **self.snapshot().totals)
        left = left_over(self._sink) if until_end else None
        if left is not None:
            raise left

    # What the store answered.

    def _answered(self, answer: Answer) -> None:
        match answer:
            case Stored(event, info):
                self._faults.at("put_done")
                mine = info.writer == self._place.writer
                self._log.info(
                    "segment_stored" if mine else "segment_taken",
                    partition=info.partition, begin=info.begin, end=info.end, rows=info.rows,
                    bad_rows=info.bad_rows, lost=info.lost, size=info.size, by=info.writer,
                )  # fmt: skip
                self._feed(event)
            case Followed():
                self._faults.at("recovering")
                self._feed(self._recovered(answer))
            case PutFailed() | RecoverFailed():
                self._log.warning("store_failed", partition=answer.partition, reason=answer.reason)
                self._feed(answer)
            case Broken():
                self._feed(answer)

    def _recovered(self, answer: Followed) -> Recovered | RecoverFailed:
        partition, found = answer.partition, answer.found
        try:
            start, end = self._consumer.bounds([partition])[partition]
        except Unavailable as error:
            return RecoverFailed(partition, answer.token, str(error))
        self._ends.setdefault(partition, end)
        self._log.info(
            "partition_recovered", partition=partition, frontier=found.offset, start=start,
            end=end, committed=answer.committed,
        )  # fmt: skip
        return Recovered(
            partition, answer.token, found.offset, found.last_begin, start, end, answer.committed
        )

    # What the sink wants.

    def _feed(self, event: Event) -> None:
        self._sink, actions = step(self._sink, event)
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        consumer = self._consumer
        match action:
            case Put():
                self._errands.put(action)
            case Seek(partition, offset):
                consumer.seek(partition, offset)
            case Pause(partitions):
                consumer.pause(partitions)
            case Resume(partitions):
                consumer.resume(partitions)
            case Commit(partition, offset, begin):
                consumer.commit({partition: offset}, {partition: str(begin)})
                self._faults.at("committed")
            case Recover():
                self._follow(action)
            case Drained():
                self._over = True
            case Fail(reason):
                raise Unavailable(
                    f"away for longer than ingest.store_patience_s "
                    f"({self._sink.limits.store_patience_s:g} s): {reason}"
                )
            case Lost() | Rewound() | Halt():
                self._tell(action)

    def _follow(self, action: Recover) -> None:
        hint: tuple[int, str] | None = None
        try:
            if action.hint is not None:
                hint = (action.hint[0], str(action.hint[1]))
            else:
                hint = self._consumer.committed([action.partition])[action.partition]
        except Unavailable as error:
            self._feed(RecoverFailed(action.partition, action.token, str(error)))
        else:
            self._errands.recover(action, hint)

    def _tell(self, action: Lost | Rewound | Halt) -> None:
        facts = asdict(action)
        match action:
            case Lost(first=True):
                self._log.info("log_begins_later", **facts)
            case Lost():
                self._log.error("offsets_lost", **facts)
            case Rewound():
                self._log.error("broker_forgot_messages", **facts)
                self._watch.ask()
            case Halt():
                self._log.error("partition_halted", **facts)
                self._watch.ask()
                halted = [p.halted for p in self._sink.partitions.values()]
                if all(halted):
                    raise Conflict("\n".join(halted))
