"""The state of a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flts_ray.ingest.held import Limits
from flts_ray.ingest.partition import Partition, Totals


@dataclass(frozen=True, slots=True)
class Sink:
    """State of one worker's partitions. `clock`: seconds of forward ticks so far."""

    limits: Limits
    writer: str
    partitions: Mapping[int, Partition] = field(default_factory=dict)
    clock: float = 0.0
    now: float | None = None
    serial: int = 0
    full: bool = False
    draining: bool = False
    drained: bool = False
    given_away: Totals = field(default_factory=Totals)
    """Of partitions that were revoked."""

    @property
    def totals(self) -> Totals:
        return sum((p.totals for p in self.partitions.values()), self.given_away)

    @property
    def buffered_bytes(self) -> int:
        return sum(p.held_bytes + p.flight_bytes for p in self.partitions.values())


def with_partition(sink: Sink, partition: Partition) -> Sink:
    """The sink with this state of a partition; tokens only grow."""
    serial = sink.serial
    for token in (partition.flight, partition.recovery):
        serial = max(serial, token.token if token else 0)
    return replace(sink, partitions={**sink.partitions, partition.number: partition}, serial=serial)
