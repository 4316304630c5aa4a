"""What a sink wants done: plain frozen values, carried out in order by whoever feeds it."""

from __future__ import annotations

from dataclasses import dataclass

from flts_ray.ingest.held import Piece


@dataclass(frozen=True, slots=True)
class Recover:
    """Follow the chain; without a hint from the committed offset."""

    partition: int
    token: int
    hint: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Seek:
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Pause:
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Put:
    """Store the segment [begin, end) under its own key if nobody has. Repeated with one token,
    it is the same segment."""

    partition: int
    token: int
    begin: int
    end: int
    batches: tuple[Piece, ...]
    lost: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Tell the broker; `begin` is that of the last segment. Nothing depends on it."""

    partition: int
    offset: int
    begin: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The broker deleted [begin, end) unread; at the `first` segment there was no chain yet."""

    partition: int
    begin: int
    end: int
    first: bool


@dataclass(frozen=True, slots=True)
class Rewound:
    """The broker forgot messages that were read but not yet durable; they are dropped."""

    partition: int
    position: int
    end: int


@dataclass(frozen=True, slots=True)
class Halt:
    """The partition cannot go on without a person; the others do."""

    partition: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Give up: something has been away for longer than the patience."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """All that was held is durable."""


Action = (
    Recover | Seek | Pause | Resume | Put | Commit | Lost | Rewound | Halt | Fail | Drained
)  # fmt: skip
