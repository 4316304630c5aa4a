"""The sink: a state machine that turns polled batches into a chain of create-once segments.

Design choices: pure, `step(state, event) -> state, actions`; it knows neither Kafka nor Ray, store
or clock, so that every interleaving can be tested. The store is the truth: a segment is durable
when its conditional PUT says created, or exists as ours; whoever loses that race drops what the
winner covered and goes on behind it. One PUT is under way per partition; a failure of any kind is
repeated with the same range until the store answers or patience ends. What cannot be decoded is
read again for ever, and only its partition waits. Whether a partition is paused follows from the
state at each tick. Time passes only in ticks, and never backwards.
"""

from __future__ import annotations

from dataclasses import replace

from flts_ray.ingest.partition import Partition, Recovery
from flts_ray.ingest.sink_actions import Action, Drained, Pause, Recover, Resume
from flts_ray.ingest.sink_events import (
    Assigned,
    Bounds,
    Broken,
    Drain,
    Event,
    Polled,
    PutCreated,
    PutExists,
    PutFailed,
    Recovered,
    RecoverFailed,
    Revoked,
    Tick,
    Undecoded,
)
from flts_ray.ingest.sink_reading import (
    bounds_known,
    halted,
    polled,
    recover_failed,
    recovered,
    undecoded,
)
from flts_ray.ingest.sink_state import Sink, with_partition
from flts_ray.ingest.sink_storing import cut, durable, put_failed, put_of, taken

LONGEST_TICK_S = 60.0
"""A process that slept for longer has not tried the store all that time."""

Step = tuple["Sink", list[Action]]


def step(sink: Sink, event: Event) -> Step:
    """The next state, and what is to be done, in this order."""
    match event:
        case Tick():
            return _tick(sink, event.now)
        case Assigned():
            return _assigned(sink, event.partitions)
        case Revoked():
            return _revoked(sink, set(event.partitions)), []
        case Drain():
            return replace(sink, draining=True), []
    partition = sink.partitions.get(event.partition)
    if partition is None or partition.halted:
        return sink, []
    news, actions = _concerned(sink, partition, event)
    return with_partition(sink, news), actions


def _concerned(
    sink: Sink,
    p: Partition,
    event: Recovered | RecoverFailed | Polled | Undecoded | Bounds
    | PutCreated | PutExists | PutFailed | Broken,
) -> tuple[Partition, list[Action]]:  # fmt: skip
    match event:
        case Polled():
            return polled(sink, p, event)
        case Bounds():
            return bounds_known(p, event)
        case Undecoded():
            return undecoded(sink, p, event.reason)
        case Broken():
            return halted(p, event.reason)
        case Recovered() | RecoverFailed():
            if p.recovery is None or p.recovery.token != event.token:
                return p, []
            if isinstance(event, Recovered):
                return recovered(p, event)
            return recover_failed(sink, p, p.recovery, event.reason)
    if p.flight is None or p.flight.token != event.token:
        return p, []
    match event:
        case PutCreated():
            return durable(p, p.flight)
        case PutExists():
            return taken(sink, p, p.flight, event)
        case PutFailed():
            return put_failed(sink, p, p.flight, event.reason)


def _assigned(sink: Sink, numbers: tuple[int, ...]) -> Step:
    fresh = tuple(n for n in numbers if n not in sink.partitions)
    actions: list[Action] = [Pause(fresh)] if fresh else []
    for number in fresh:
        token = sink.serial + 1
        sink = with_partition(sink, Partition(number, recovery=Recovery(token)))
        actions.append(Recover(number, token, None))
    return sink, actions


def _revoked(sink: Sink, numbers: set[int]) -> Sink:
    kept = {n: p for n, p in sink.partitions.items() if n not in numbers}
    gone = (p.totals for n, p in sink.partitions.items() if n in numbers)
    return replace(sink, partitions=kept, given_away=sum(gone, sink.given_away))


def _tick(sink: Sink, now: float) -> Step:
    passed = 0.0 if sink.now is None else min(max(now - sink.now, 0.0), LONGEST_TICK_S)
    sink = replace(sink, clock=sink.clock + passed, now=now)
    actions: list[Action] = []
    for number in sorted(sink.partitions):
        sink = _repeat(sink, sink.partitions[number], actions)
        p = sink.partitions[number]
        if p.can_cut() and (sink.draining or p.due(sink.clock, sink.limits)):
            sink = cut(sink, p, actions)
    total, limit = sink.buffered_bytes, sink.limits.buffer_bytes
    sink = replace(sink, full=total > limit // 2 if sink.full else total >= limit)
    if sink.full:
        sink = _relieve(sink, total, actions)
    sink = _reconcile(sink, actions)
    if sink.draining and not sink.drained and all(p.flushed for p in sink.partitions.values()):
        sink = replace(sink, drained=True)
        actions.append(Drained())
    return sink, actions


def _repeat(sink: Sink, p: Partition, actions: list[Action]) -> Sink:
    """Whatever failed and has waited long enough."""
    if p.recovery and p.recovery.retry.due(sink.clock):
        actions.append(Recover(p.number, p.recovery.token, p.recovery.hint))
        p = replace(p, recovery=replace(p.recovery, retry=p.recovery.retry.again()))
    elif p.flight and p.flight.retry.due(sink.clock):
        p = replace(p, flight=replace(p.flight, retry=p.flight.retry.again()))
        actions.append(put_of(p.number, p.flight))
    elif p.stall and p.stall.due(sink.clock):
        p = replace(p, stall=p.stall.again())
    else:
        return sink
    return with_partition(sink, p)


def _relieve(sink: Sink, total: int, actions: list[Action]) -> Sink:
    """A full buffer closes its largest segments early, until half of it is on its way."""
    flying = sum(p.flight_bytes for p in sink.partitions.values())
    ready = [p for p in sink.partitions.values() if p.can_cut()]
    for p in sorted(ready, key=lambda p: (-p.held_bytes, p.number)):
        if 2 * flying >= total:
            break
        sink = cut(sink, p, actions)
        flying += sink.partitions[p.number].flight_bytes
    return sink


def _reconcile(sink: Sink, actions: list[Action]) -> Sink:
    """Pause and resume what should be."""
    reading = not sink.full and not sink.draining
    stop: list[int] = []
    go: list[int] = []
    for number, p in sorted(sink.partitions.items()):
        wanted = reading and p.readable
        if wanted == p.paused:
            (go if wanted else stop).append(number)
    if not stop and not go:
        return sink
    if stop:
        actions.append(Pause(tuple(stop)))
    if go:
        actions.append(Resume(tuple(go)))
    changed = {n: replace(sink.partitions[n], paused=n in stop) for n in (*stop, *go)}
    return replace(sink, partitions={**sink.partitions, **changed})
