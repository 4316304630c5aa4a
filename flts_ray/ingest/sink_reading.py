"""What a partition does on news of its log: where the chain ends, what was read, how long it is.

Design choices: every function takes a partition and gives the next one with what is to be done; a
position is never trusted to the client, each batch is laid against it.
"""

from __future__ import annotations

from dataclasses import replace

from flts_ray.ingest.held import Held, covered
from flts_ray.ingest.partition import Partition, Recovery, Retry
from flts_ray.ingest.sink_actions import Action, Commit, Fail, Halt, Lost, Pause, Rewound, Seek
from flts_ray.ingest.sink_events import Bounds, Polled, Recovered
from flts_ray.ingest.sink_state import Sink


def recovered(p: Partition, event: Recovered) -> tuple[Partition, list[Action]]:
    """The chain was followed: go on where it ends."""
    frontier, last = event.frontier, event.last
    if p.frontier is not None and p.frontier > frontier:
        frontier, last = p.frontier, p.last
    if event.end < frontier:
        return halted(p, _behind(p.number, event.end, frontier))
    actions: list[Action] = []
    position = p.position
    if position is None or position < frontier:
        position = max(frontier, event.start)
        actions.append(Seek(p.number, position))
        if position > frontier:
            actions.append(Lost(p.number, frontier, position, first=last is None))
    if last is not None and event.committed != frontier:
        actions.append(Commit(p.number, frontier, last))
    known = replace(
        p, frontier=frontier, last=last, position=position, log_end=event.end, recovery=None,
        held=covered(p.held, frontier), committed=frontier if last is not None else p.committed,
    )  # fmt: skip
    return known, actions


def recover_failed(
    sink: Sink, p: Partition, recovery: Recovery, reason: str
) -> tuple[Partition, list[Action]]:
    """Nobody knows yet where the chain ends."""
    retry = recovery.retry.failed(sink.clock, sink.limits)
    return replace(p, recovery=replace(recovery, retry=retry)), patience(sink, retry, reason)


def polled(sink: Sink, p: Partition, event: Polled) -> tuple[Partition, list[Action]]:
    """Hold what is new of a batch, and send the client back where it is not where it should be."""
    batch, position = event.batch, p.position
    if position is None or sink.draining:
        return p, []
    left = batch.after(position) if batch.begin < position else batch
    if left is None or batch.end <= position:
        return p, [Seek(p.number, position)]
    if left.begin > position and p.gap_at != position:
        # A client that sought in vain looks the same as a log with a hole: read once more.
        return replace(p, gap_at=position), [Seek(p.number, position)]
    gone = min(event.start or 0, left.begin)
    reached = max(position, gone)
    begin = p.chain_end
    held = Held.of(begin, reached - begin, left, sink.clock)
    read = replace(p, held=(*p.held, held), position=batch.end, stall=None, waits="", gap_at=None)
    lost = Lost(p.number, position, reached, first=p.last is None and begin == 0)
    return read, [lost] if reached > position else []


def undecoded(sink: Sink, p: Partition, reason: str) -> tuple[Partition, list[Action]]:
    """Read the same again, after a while, however long that goes on: the others need not wait."""
    if p.position is None:
        return p, []
    retry = (p.stall or Retry()).failed(sink.clock, sink.limits)
    back: list[Action] = [Seek(p.number, p.position), Pause((p.number,))]
    return replace(p, stall=retry, waits=reason, paused=True), back


def bounds_known(p: Partition, event: Bounds) -> tuple[Partition, list[Action]]:
    """Compare the log with what is stored and read of it."""
    p = replace(p, log_end=event.end)
    if p.frontier is None or p.position is None:
        return p, []
    if event.end < p.frontier:
        return halted(p, _behind(p.number, event.end, p.frontier))
    if event.end < p.position and p.flight is None:
        rewound = replace(p, held=(), position=p.frontier)
        return rewound, [Rewound(p.number, p.position, event.end), Seek(p.number, p.frontier)]
    if event.start == event.end > p.position:
        if p.idle_at != p.position:
            return replace(p, idle_at=p.position), []
        lost = Lost(p.number, p.position, event.start, first=p.last is None and p.chain_end == 0)
        return replace(p, position=event.start), [lost, Seek(p.number, event.start)]
    return p, []


def halted(p: Partition, reason: str) -> tuple[Partition, list[Action]]:
    """Hold nothing, do nothing, until a person comes."""
    stopped = replace(
        p, held=(), flight=None, recovery=None, stall=None, waits="", halted=reason, paused=True
    )
    return stopped, [Pause((p.number,)), Halt(p.number, reason)]


def patience(sink: Sink, retry: Retry, reason: str) -> list[Action]:
    """Give up what failed for too long."""
    return [Fail(reason)] if retry.hopeless(sink.clock, sink.limits) else []


def _behind(number: int, end: int, frontier: int) -> str:
    return (
        f"partition {number}: the broker's log ends at {end}, but offsets up to {frontier} are "
        "stored; the topic was made anew or the broker lost data: raise stream.generation to "
        "take it in from its beginning, beside what is stored"
    )
