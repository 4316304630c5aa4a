"""The sink: a state machine that turns polled batches into a chain of create-once segments.

Design choices: pure, `step(state, event) -> state, actions`; it knows neither Kafka nor Ray, store
or clock, so that every interleaving can be tested. The store is the truth: a segment is durable
when its conditional PUT says created, or exists as ours; whoever loses that race drops what the
winner covered and goes on behind it. One PUT is under way per partition; a failure of any kind is
repeated with the same range until the store answers or patience ends. Whether a partition is
paused follows from the state at each tick. Time passes only in ticks, and never backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flts_ray.ingest.moves import (
    Action,
    Assigned,
    Bounds,
    Broken,
    Commit,
    Drain,
    Drained,
    Event,
    Fail,
    Halt,
    Lost,
    Pause,
    Polled,
    Put,
    PutCreated,
    PutExists,
    PutFailed,
    Recover,
    Recovered,
    RecoverFailed,
    Resume,
    Revoked,
    Rewound,
    Seek,
    Tick,
    Undecoded,
)
from flts_ray.ingest.partition import (
    Flight,
    Held,
    Limits,
    Partition,
    Recovery,
    Retry,
    Totals,
    covered,
    prefix,
)

LONGEST_TICK_S = 60.0
"""A process that slept for longer has not tried the store all that time."""


Step = tuple["Sink", list[Action]]


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
    changed, actions = _concerned(sink, partition, event)
    return _with(sink, changed), actions


def _concerned(
    sink: Sink,
    p: Partition,
    event: Recovered | RecoverFailed | Polled | Undecoded | Bounds
    | PutCreated | PutExists | PutFailed | Broken,
) -> tuple[Partition, list[Action]]:  # fmt: skip
    match event:
        case Polled():
            return _polled(sink, p, event)
        case Bounds():
            return _bounds(p, event)
        case Undecoded():
            return _undecoded(sink, p, event.reason)
        case Broken():
            return _halt(p, event.reason)
        case Recovered() | RecoverFailed():
            if p.recovery is None or p.recovery.token != event.token:
                return p, []
            if isinstance(event, Recovered):
                return _recovered(p, event)
            return _recover_failed(sink, p, p.recovery, event.reason)
    if p.flight is None or p.flight.token != event.token:
        return p, []
    match event:
        case PutCreated():
            return _durable(p, p.flight)
        case PutExists():
            return _exists(sink, p, p.flight, event)
        case PutFailed():
            return _put_failed(sink, p, p.flight, event.reason)


def _with(sink: Sink, partition: Partition) -> Sink:
    serial = sink.serial
    for token in (partition.flight, partition.recovery):
        serial = max(serial, token.token if token else 0)
    return replace(sink, partitions={**sink.partitions, partition.number: partition}, serial=serial)


def _assigned(sink: Sink, numbers: tuple[int, ...]) -> Step:
    fresh = tuple(n for n in numbers if n not in sink.partitions)
    actions: list[Action] = [Pause(fresh)] if fresh else []
    for number in fresh:
        token = sink.serial + 1
        sink = _with(sink, Partition(number, recovery=Recovery(token)))
        actions.append(Recover(number, token, None))
    return sink, actions


def _revoked(sink: Sink, numbers: set[int]) -> Sink:
    kept = {n: p for n, p in sink.partitions.items() if n not in numbers}
    gone = (p.totals for n, p in sink.partitions.items() if n in numbers)
    return replace(sink, partitions=kept, given_away=sum(gone, sink.given_away))


def _recovered(p: Partition, event: Recovered) -> tuple[Partition, list[Action]]:
    frontier, last = event.frontier, event.last
    if p.frontier is not None and p.frontier > frontier:
        frontier, last = p.frontier, p.last
    if event.end < frontier:
        return _halt(p, _behind(p.number, event.end, frontier))
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


def _recover_failed(
    sink: Sink, p: Partition, recovery: Recovery, reason: str
) -> tuple[Partition, list[Action]]:
    retry = recovery.retry.failed(sink.clock, sink.limits)
    return replace(p, recovery=replace(recovery, retry=retry)), _patience(sink, retry, reason)


def _patience(sink: Sink, retry: Retry, reason: str) -> list[Action]:
    return [Fail(reason)] if retry.hopeless(sink.clock, sink.limits) else []


def _polled(sink: Sink, p: Partition, event: Polled) -> tuple[Partition, list[Action]]:
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
    read = replace(p, held=(*p.held, held), position=batch.end, stall=None, gap_at=None)
    lost = Lost(p.number, position, reached, first=p.last is None and begin == 0)
    return read, [lost] if reached > position else []


def _undecoded(sink: Sink, p: Partition, reason: str) -> tuple[Partition, list[Action]]:
    if p.position is None:
        return p, []
    retry = (p.stall or Retry()).failed(sink.clock, sink.limits)
    back: list[Action] = [Seek(p.number, p.position), Pause((p.number,))]
    return replace(p, stall=retry, paused=True), back + _patience(sink, retry, reason)


def _bounds(p: Partition, event: Bounds) -> tuple[Partition, list[Action]]:
    p = replace(p, log_end=event.end)
    if p.frontier is None or p.position is None:
        return p, []
    if event.end < p.frontier:
        return _halt(p, _behind(p.number, event.end, p.frontier))
    if event.end < p.position and p.flight is None:
        rewound = replace(p, held=(), position=p.frontier)
        return rewound, [Rewound(p.number, p.position, event.end), Seek(p.number, p.frontier)]
    if event.start == event.end > p.position:
        if p.idle_at != p.position:
            return replace(p, idle_at=p.position), []
        lost = Lost(p.number, p.position, event.start, first=p.last is None and p.chain_end == 0)
        return replace(p, position=event.start), [lost, Seek(p.number, event.start)]
    return p, []


def _behind(number: int, end: int, frontier: int) -> str:
    return (
        f"partition {number}: the broker's log ends at {end}, but offsets up to {frontier} are "
        "stored; the topic was made anew or the broker lost data: raise stream.generation to "
        "take it in from its beginning, beside what is stored"
    )


def _halt(p: Partition, reason: str) -> tuple[Partition, list[Action]]:
    stopped = replace(
        p, held=(), flight=None, recovery=None, stall=None, halted=reason, paused=True
    )
    return stopped, [Pause((p.number,)), Halt(p.number, reason)]


def _durable(p: Partition, flight: Flight) -> tuple[Partition, list[Action]]:
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


def _exists(
    sink: Sink, p: Partition, flight: Flight, found: PutExists
) -> tuple[Partition, list[Action]]:
    if found.writer == sink.writer and found.checksum == found.sent and found.end == flight.end:
        return _durable(p, flight)
    if found.end <= flight.begin:
        return _halt(
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


def _put_failed(
    sink: Sink, p: Partition, flight: Flight, reason: str
) -> tuple[Partition, list[Action]]:
    retry = flight.retry.failed(sink.clock, sink.limits)
    totals = replace(p.totals, put_failures=p.totals.put_failures + 1)
    waiting = replace(p, flight=replace(flight, retry=retry), totals=totals)
    return waiting, _patience(sink, retry, reason)


def _tick(sink: Sink, now: float) -> Step:
    passed = 0.0 if sink.now is None else min(max(now - sink.now, 0.0), LONGEST_TICK_S)
    sink = replace(sink, clock=sink.clock + passed, now=now)
    actions: list[Action] = []
    for number in sorted(sink.partitions):
        sink = _repeat(sink, sink.partitions[number], actions)
        p = sink.partitions[number]
        if p.can_cut() and (sink.draining or p.due(sink.clock, sink.limits)):
            sink = _cut(sink, p, actions)
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
        actions.append(_put(p.number, p.flight))
    elif p.stall and p.stall.due(sink.clock):
        p = replace(p, stall=p.stall.again())
    else:
        return sink
    return _with(sink, p)


def _put(number: int, flight: Flight | None) -> Put:
    assert flight is not None
    batches = tuple(item.batch for item in flight.held)
    lost = sum(item.lost for item in flight.held)
    return Put(number, flight.token, flight.begin, flight.end, batches, lost)


def _cut(sink: Sink, p: Partition, actions: list[Action]) -> Sink:
    """Close the next segment and send it."""
    count = prefix(p.held, sink.limits)
    flight = Flight(sink.serial + 1, p.held[:count])
    actions.append(_put(p.number, flight))
    return _with(sink, replace(p, flight=flight, held=p.held[count:]))


def _relieve(sink: Sink, total: int, actions: list[Action]) -> Sink:
    """A full buffer closes its largest segments early, until half of it is on its way."""
    flying = sum(p.flight_bytes for p in sink.partitions.values())
    ready = [p for p in sink.partitions.values() if p.can_cut()]
    for p in sorted(ready, key=lambda p: (-p.held_bytes, p.number)):
        if 2 * flying >= total:
            break
        sink = _cut(sink, p, actions)
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
