"""What was read and is not durable yet.

Design choices: everything is held as a gapless run of half-open ranges that starts where the
durable chain ends, so the next segment is always a prefix of it; offsets the broker skips
(compaction, transaction markers) lie inside a range, offsets it had already deleted lie at the
beginning of one and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from flts_ray.config_stream import IngestConfig


class Piece(Protocol):
    """Decoded messages of the offsets [begin, end): what the sink must know of a batch."""

    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def bad_rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def after(self, offset: int) -> Self | None:
        """What lies at `offset` and above; None only if `end` is not beyond it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a segment is closed, when reading stops, how long a failing store is tried."""

    segment_rows: int
    segment_bytes: int
    segment_age_s: float
    buffer_bytes: int
    store_patience_s: float
    retry_base_s: float = 0.2
    retry_cap_s: float = 15.0

    @staticmethod
    def of(ingest: IngestConfig) -> Limits:
        """As configured."""
        return Limits(
            segment_rows=ingest.segment_rows,
            segment_bytes=ingest.segment_bytes,
            segment_age_s=ingest.segment_age_s,
            buffer_bytes=ingest.buffer_bytes,
            store_patience_s=ingest.store_patience_s,
        )


@dataclass(frozen=True, slots=True)
class Held:
    """A batch and its place in the chain: [begin, end), of which the first `lost` offsets were
    deleted by the broker before they were read. `at`: the sink's clock when it came; the counts
    are the batch's, taken once."""

    begin: int
    end: int
    lost: int
    batch: Piece
    at: float
    rows: int
    bad_rows: int
    nbytes: int

    @staticmethod
    def of(begin: int, lost: int, batch: Piece, at: float) -> Held:
        """`batch` with all offsets from `begin` on."""
        return Held(begin, batch.end, lost, batch, at, batch.rows, batch.bad_rows, batch.nbytes)

    def after(self, offset: int) -> Held | None:
        """What is left above `offset`."""
        if offset <= self.begin:
            return self
        lost = max(0, self.begin + self.lost - offset)
        if offset <= self.batch.begin:
            return replace(self, begin=offset, lost=lost)
        batch = self.batch.after(offset)
        return None if batch is None else Held.of(offset, lost, batch, self.at)


def covered(held: tuple[Held, ...], offset: int) -> tuple[Held, ...]:
    """What is left of a run of ranges above `offset`."""
    kept = (item.after(offset) for item in held)
    return tuple(item for item in kept if item is not None)


def prefix(held: tuple[Held, ...], limits: Limits) -> int:
    """How many of the held batches make the next segment: until one of the limits is reached."""
    rows = size = 0
    for count, item in enumerate(held, start=1):
        rows += item.rows + item.bad_rows
        size += item.nbytes
        if rows >= limits.segment_rows or size >= limits.segment_bytes:
            return count
    return len(held)
