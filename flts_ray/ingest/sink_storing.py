"""How a partition's segments get into the store.

Design choices: one PUT is under way per partition; a failure of any kind is repeated with the same
range until the store answers or patience ends; whoever loses the race for a key drops what the
winner covered and goes on behind it.
"""

from __future__ import annotations

from dataclasses import replace

from flts_ray.ingest.held import covered, prefix
from flts_ray.ingest.partition import Flight, Partition, Recovery, Totals
from flts_ray.ingest.sink_actions import Action, Commit, Put, Recover, Seek
from flts_ray.ingest.sink_events import PutExists
from flts_ray.ingest.sink_reading import halted, patience
from flts_ray.ingest.sink_state import Sink, with_partition


def durable(p: Partition, flight: Flight) -> tuple[Partition, list[Action]]:
    """The segment is stored: the chain is longer now."""
    added = Totals(
        segments=1,
        rows=sum(item.rows for item in flight.held),
        bad_rows=sum(item.bad_rows for item in flight.held),
        lost=sum(item.lost for item in flight.held),
    )
    stored = replace(
        p, frontier=flight.end, last=flight.begin, flight=None, committed=flight.end,
        totals=p.totals + added,
    )  # fmt: skip
    return stored, [Commit(p.number, flight.end, flight.begin)]


def taken(
    sink: Sink, p: Partition, flight: Flight, found: PutExists
) -> tuple[Partition, list[Action]]:
    """The key was taken, by ourselves or by another owner."""
    if found.writer == sink.writer and found.checksum == found.sent and found.end == flight.end:
        return durable(p, flight)
    if found.end <= flight.begin:
        return halted(
            p, f"partition {p.number}: the segment at {flight.begin} says that it ends at "
            f"{found.end}; the stored object is damaged: restore it, then start again",
        )  # fmt: skip
    position = max(p.position or 0, found.end)
    recovery = Recovery(sink.serial + 1, (found.end, flight.begin))
    behind = replace(
        p, frontier=found.end, last=flight.begin, position=position, flight=None,
        held=covered(flight.held + p.held, found.end), recovery=recovery,
        totals=replace(p.totals, conflicts=p.totals.conflicts + 1),
    )  # fmt: skip
    sought: list[Action] = [Seek(p.number, position)] if position != p.position else []
    return behind, [*sought, Recover(p.number, recovery.token, recovery.hint)]


def put_failed(
    sink: Sink, p: Partition, flight: Flight, reason: str
) -> tuple[Partition, list[Action]]:
    """It may be stored or not: ask again."""
    retry = flight.retry.failed(sink.clock, sink.limits)
    totals = replace(p.totals, put_failures=p.totals.put_failures + 1)
    waiting = replace(p, flight=replace(flight, retry=retry), totals=totals)
    return waiting, patience(sink, retry, reason)


def put_of(number: int, flight: Flight | None) -> Put:
    """The request for a segment under way."""
    assert flight is not None
    batches = tuple(item.batch for item in flight.held)
    lost = sum(item.lost for item in flight.held)
    return Put(number, flight.token, flight.begin, flight.end, batches, lost)


def cut(sink: Sink, p: Partition, actions: list[Action]) -> Sink:
    """Close the next segment and send it."""
    count = prefix(p.held, sink.limits)
    flight = Flight(sink.serial + 1, p.held[:count])
    actions.append(put_of(p.number, flight))
    return with_partition(sink, replace(p, flight=flight, held=p.held[count:]))
