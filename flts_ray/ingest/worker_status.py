"""What a worker says of itself.

Design choices: counts of what this process did since it started, so that they only grow; durable
rows and segments are counted when the store has answered, messages and bytes when they are read;
plain values that become JSON as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from flts_ray.errors import Conflict, Unavailable
from flts_ray.ingest.partition import Partition
from flts_ray.ingest.sink_state import Sink

COUNTS = (
    "messages", "rows", "bad_rows", "bytes", "segments", "put_failures", "conflicts", "lost",
    "rebalances", "commit_failures",
)  # fmt: skip


@dataclass(frozen=True)
class PartitionStatus:
    """`position`: next offset to read; `frontier`: next one to become durable; `end`: of the
    broker's log; `lag`: messages of the log that are not durable. None: not known yet. `waits`: why
    its next messages cannot be decoded now."""

    position: int | None
    frontier: int | None
    committed: int | None
    end: int | None
    lag: int | None
    buffered_rows: int
    buffered_bytes: int
    paused: bool
    halted: str
    waits: str = ""


@dataclass(frozen=True)
class WorkerStatus:
    """`totals` holds `COUNTS`; times are ISO 8601."""

    writer: str
    topic: str
    epoch: str
    index: int
    of: int
    partitions: Mapping[int, PartitionStatus]
    totals: Mapping[str, int]
    full: bool
    draining: bool
    started_at: str
    updated_at: str
    ended: bool = False
    """It said farewell, and will say no more."""

    def as_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


def status_key(topic: str, epoch: str, index: int) -> str:
    """Where a worker leaves its status, overwritten every few seconds."""
    return f"ingest/{topic}/{epoch}/status/{index}.json"


class Stuck(Unavailable):
    """What is left cannot be decoded, and was tried for so long that a new start will not help."""


def left_over(sink: Sink) -> Conflict | Stuck | None:
    """Why not everything up to the end could be stored, if anything is left."""
    partitions = sink.partitions.values()
    patience_s = sink.limits.store_patience_s
    halted = [p.halted for p in partitions if p.halted]
    stuck = [
        f"partition {p.number}: the message at offset {p.position} could not be decoded for "
        f"longer than ingest.store_patience_s ({patience_s:g} s): {p.waits}"
        for p in partitions
        if p.stuck(sink.clock, sink.limits)
    ]
    if halted:
        return Conflict("\n".join([*halted, *stuck]))
    return Stuck("\n".join(stuck)) if stuck else None


def partitions_of(sink: Sink) -> dict[int, PartitionStatus]:
    return {number: _partition(p) for number, p in sorted(sink.partitions.items())}


def totals_of(sink: Sink, counted: Mapping[str, int]) -> dict[str, int]:
    """All `COUNTS`: the sink's own, and those its worker counted."""
    durable = asdict(sink.totals)
    return {name: counted.get(name, durable.get(name, 0)) for name in COUNTS}


def _partition(p: Partition) -> PartitionStatus:
    known = p.frontier is not None
    return PartitionStatus(
        position=p.position,
        frontier=p.frontier,
        committed=p.committed,
        end=p.log_end if known else None,
        lag=max(0, p.log_end - (p.frontier or 0)) if known else None,
        buffered_rows=p.held_rows + p.flight_rows,
        buffered_bytes=p.held_bytes + p.flight_bytes,
        paused=p.paused,
        halted=p.halted,
        waits=p.waits,
    )
