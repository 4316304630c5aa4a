"""What a sink is told.

Design choices: plain frozen values, so that a list of events replays a fault; tokens tie an answer
to its question, so that answers which come too late are recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

from flts_ray.ingest.held import Piece


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are ours to read."""

    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Revoked:
    """These are no longer; what is held of them will be read by somebody else."""

    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The chain ends at `frontier` with the segment that begins at `last`. The log's bounds
    [start, end) were asked for after the chain was followed."""

    partition: int
    token: int
    frontier: int
    last: int | None
    start: int
    end: int
    committed: int | None


@dataclass(frozen=True, slots=True)
class RecoverFailed:
    partition: int
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Polled:
    """A batch was read. `start`: the log start, asked for after the poll; needed only where the
    batch does not begin at the position."""

    partition: int
    batch: Piece
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Undecoded:
    """What was polled cannot be decoded now, because a store it points to is away."""

    partition: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """The broker's log is [start, end); asked for after every event before this one."""

    partition: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Seconds of any clock; only differences count, and only forward ones."""

    now: float


@dataclass(frozen=True, slots=True)
class PutCreated:
    partition: int
    token: int
    checksum: str


@dataclass(frozen=True, slots=True)
class PutExists:
    """The key was taken by a segment that ends at `end`; `sent` is the checksum of ours."""

    partition: int
    token: int
    end: int
    writer: str
    checksum: str
    sent: str


@dataclass(frozen=True, slots=True)
class PutFailed:
    """It may be stored or not."""

    partition: int
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """What is stored of the partition cannot be understood; others are not concerned."""

    partition: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Read no more, make durable what is held."""


Event = (
    Assigned | Revoked | Recovered | RecoverFailed | Polled | Undecoded | Bounds | Tick
    | PutCreated | PutExists | PutFailed | Broken | Drain
)  # fmt: skip
