"""A topic in memory and the consumer of it that a worker needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence

from flts_ray.errors import Unavailable
from flts_ray.streams.records import Records


def sample(number: int, series: str = "a") -> bytes:
    """One good message; its load is `number`."""
    stamp = 1_700_000_000 + 60 * number
    return json.dumps({"unique_id": series, "ds": stamp, "y": float(number)}).encode()


class MemoryTopic:
    """Messages by partition; several consumers may read it. `starts`: what retention left."""

    def __init__(self, partitions: int = 1) -> None:
        self.messages: list[list[bytes | None]] = [[] for _ in range(partitions)]
        self.starts = [0] * partitions
        self.committed: dict[int, tuple[int, str]] = {}
        self.lock = threading.Lock()

    def add(self, partition: int, count: int) -> None:
        """More good messages, numbered on."""
        rows = self.messages[partition]
        rows += [sample(n) for n in range(len(rows), len(rows) + count)]


class MemoryConsumer:
    """`records.Consumer` of a `MemoryTopic`. `away`: the broker cannot be asked."""

    def __init__(self, topic: MemoryTopic) -> None:
        self.topic = topic
        self.positions: dict[int, int] = {}
        self.paused: set[int] = set()
        self.seeks: list[tuple[int, int]] = []
        self.rebalances = 0
        self.commit_failures = 0
        self.away_since: float | None = None
        self.away = False
        self.closed = False
        self._callbacks: list[tuple[Callable[[list[int]], None], list[int]]] = []
        self._on_revoked: Callable[[list[int]], None] | None = None

    def partitions(self) -> list[int]:
        return list(range(len(self.topic.messages)))

    def assign(self, partitions: Sequence[int]) -> None:
        self.positions = dict.fromkeys(partitions, 0)
        self.paused = set()

    def subscribe(
        self,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        self._on_revoked = on_revoked
        self._callbacks.append((on_assigned, self.partitions()))

    def revoke(self, partitions: list[int]) -> None:
        """The group takes them away at the next poll."""
        assert self._on_revoked is not None
        self._callbacks.append((self._on_revoked, partitions))

    def seek(self, partition: int, offset: int) -> None:
        self.seeks.append((partition, offset))
        self.positions[partition] = offset

    def position(self, partition: int) -> int:
        return self.positions[partition]

    def poll(self, timeout_s: float, max_records: int) -> list[Records]:
        while self._callbacks:
            callback, partitions = self._callbacks.pop(0)
            self.rebalances += 1
            for partition in partitions:
                self.positions.setdefault(partition, 0)
            callback(partitions)
        with self.topic.lock:
            found = [self._records(p, max_records) for p in self.positions if p not in self.paused]
        records = [one for one in found if one is not None]
        if not records:
            threading.Event().wait(min(timeout_s, 0.002))
        return records

    def _records(self, partition: int, count: int) -> Records | None:
        rows, start = self.topic.messages[partition], self.topic.starts[partition]
        if not start <= self.positions[partition] <= len(rows):
            self.positions[partition] = start
        begin = self.positions[partition]
        values = rows[begin : begin + count]
        if not values:
            return None
        self.positions[partition] = begin + len(values)
        return Records(
            partition=partition,
            offsets=range(begin, begin + len(values)),
            values=values,
            timestamps_ms=[0] * len(values),
            headers=(),
            keys=[None] * len(values),
            nbytes=sum(len(value or b"") for value in values),
        )

    def pause(self, partitions: Sequence[int]) -> None:
        assert set(partitions) <= set(self.positions), "only what is assigned can be paused"
        self.paused |= set(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self.paused -= set(partitions)

    def commit(self, offsets: Mapping[int, int], metadata: Mapping[int, str]) -> None:
        for partition, offset in offsets.items():
            self.topic.committed[partition] = (offset, metadata[partition])

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int, str] | None]:
        self._reach()
        return {p: self.topic.committed.get(p) for p in partitions}

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        self._reach()
        with self.topic.lock:
            return {p: (self.topic.starts[p], len(self.topic.messages[p])) for p in partitions}

    def close(self) -> None:
        self.closed = True

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("the broker does not answer")
