"""What every client of the stream can do: read, write, administer.

Design choices: one poll gives columns, not messages, so that a hundred thousand messages a second
cost a few list operations; a client keeps its topic, since an actor reads one; what is asked of
the broker raises Unavailable after ten seconds without an answer, but `poll` and `commit` never do,
because a broker that restarts is an ordinary event in the middle of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Records:
    """Messages of one partition from one poll, in the order of their offsets.

    All columns have the same length, except `headers`, which is empty where no message has any.
    `timestamps_ms`: milliseconds since 1970, -1 where the broker gives none. `nbytes`: bytes of
    values, keys and headers.
    """

    partition: int
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    timestamps_ms: Sequence[int]
    headers: Sequence[Headers]
    keys: Sequence[bytes | None]
    nbytes: int

    def part(self, begin: int, end: int) -> Records:
        """Messages `begin` to `end` (exclusive), by their places here."""
        values, keys = self.values[begin:end], self.keys[begin:end]
        headers = self.headers[begin:end]
        return Records(
            partition=self.partition,
            offsets=self.offsets[begin:end],
            values=values,
            timestamps_ms=self.timestamps_ms[begin:end],
            headers=headers,
            keys=keys,
            nbytes=sum(message_sizes(values, keys, headers)),
        )


def message_sizes(
    values: Sequence[bytes | None], keys: Sequence[bytes | None], headers: Sequence[Headers]
) -> list[int]:
    """Bytes of each message: value, key, names and values of headers."""
    sizes = [0 if value is None else len(value) for value in values]
    if any(keys):
        sizes = [size + len(key or b"") for size, key in zip(sizes, keys, strict=True)]
    if any(headers):
        sizes = [size + _headers_size(held) for size, held in zip(sizes, headers, strict=True)]
    return sizes


def _headers_size(headers: Headers) -> int:
    return sum(len(name.encode(errors="replace")) + len(value or b"") for name, value in headers)


class Consumer(Protocol):
    """Reads one topic."""

    @property
    def rebalances(self) -> int:
        """How often the group protocol changed what is assigned here."""

    @property
    def commit_failures(self) -> int:
        """Commits that the broker refused or never answered."""

    @property
    def away_since(self) -> float | None:
        """`time.monotonic()` of the last sign of the broker; None while it answers."""

    def partitions(self) -> list[int]:
        """Partitions of the topic. Raises Unavailable if it does not exist."""

    def assign(self, partitions: Sequence[int]) -> None:
        """Read these partitions, from where they were committed, else from their start."""

    def subscribe(
        self,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        """Let the group protocol assign partitions: cooperative-sticky, static member id.

        Both are called from `poll`, with the partitions that came or went; `on_assigned` may
        seek, and no message of its partitions is returned before.
        """

    def seek(self, partition: int, offset: int) -> None:
        """Go on reading an assigned partition at `offset`."""

    def position(self, partition: int) -> int:
        """Offset of the next message that `poll` would return."""

    def poll(self, timeout_s: float, max_records: int) -> list[Records]:
        """What has arrived, at most `max_records`; waits `timeout_s` for the first of them.

        [] while the broker is away. Raises Unavailable where waiting cannot help (rights, another
        member with the same id).
        """

    def pause(self, partitions: Sequence[int]) -> None:
        """Return nothing of these partitions until `resume`; the position stays."""

    def resume(self, partitions: Sequence[int]) -> None: ...

    def commit(self, offsets: Mapping[int, int], metadata: Mapping[int, str]) -> None:
        """Store next offsets for the group, without waiting; failures are counted and logged."""

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int, str] | None]:
        """Offset and metadata that were committed last, by any member of the group."""

    def bounds(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """First offset that the broker still has, and the one that comes after its last."""

    def close(self) -> None: ...


class Producer(Protocol):
    """Writes to any topic; a message counts once all replicas have it."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue one message. Raises Unavailable where the queue stays full."""

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged. Raises Unavailable with the number that is not."""

    def close(self) -> None: ...


class Admin(Protocol):
    """Topics of the broker."""

    def topic_identity(self, topic: str) -> tuple[str, str]:
        """Cluster id and topic id (32 hex digits); "" for what the broker does not give."""

    def create_topic(self, topic: str, partitions: int) -> bool:
        """Whether it was made now; False: it was there."""

    def delete_topic(self, topic: str) -> None:
        """Remove a topic; nothing if it is not there."""

    def partitions(self, topic: str) -> int:
        """How many partitions; 0 if there is no such topic."""

    def topics(self) -> list[str]:
        """Names of all topics but the broker's own, sorted."""

    def delete_records(self, topic: str, before: Mapping[int, int]) -> bool:
        """Drop what lies before these offsets; False: the broker cannot do so."""

    def close(self) -> None: ...
