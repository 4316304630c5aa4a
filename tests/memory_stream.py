"""A broker, a store and sinks over them, in memory: every fault is a method.

Design choices: a world is driven by anything that calls its rules with whole numbers, so that a
shrinking search and a plain random loop use the same ones; answers of the store arrive when a rule
says so, even after their owner has died; `check` looks at everything and is called after each rule.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flts_ray.ingest.held import Limits
from flts_ray.ingest.partition import Partition
from flts_ray.ingest.sink import step
from flts_ray.ingest.sink_actions import (
    Action,
    Commit,
    Drained,
    Fail,
    Halt,
    Lost,
    Pause,
    Put,
    Recover,
    Resume,
    Rewound,
    Seek,
)
from flts_ray.ingest.sink_events import (
    Assigned,
    Bounds,
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
from flts_ray.ingest.sink_state import Sink

Message = tuple[int, int]
"""Offset and a number that no other message has."""
Step = Callable[[Sink, Event], tuple[Sink, list[Action]]]
LIMITS = Limits(
    segment_rows=12, segment_bytes=150, segment_age_s=5.0, buffer_bytes=400, store_patience_s=1e9
)
LARGEST_POLL = 8


@dataclass(frozen=True)
class Pieces:
    """Messages of [begin, end), ten bytes each; every seventh one is bad."""

    begin: int
    end: int
    messages: tuple[Message, ...]

    @property
    def bad_rows(self) -> int:
        return sum(1 for _, number in self.messages if number % 7 == 0)

    @property
    def rows(self) -> int:
        return len(self.messages) - self.bad_rows

    @property
    def nbytes(self) -> int:
        return 10 * len(self.messages)

    def after(self, offset: int) -> Pieces | None:
        if offset >= self.end:
            return None
        kept = tuple(m for m in self.messages if m[0] >= offset)
        return Pieces(max(self.begin, offset), self.end, kept)


@dataclass
class Log:
    """One partition at the broker. Offsets without a message were skipped by it."""

    start: int = 0
    end: int = 0
    messages: dict[int, int] = field(default_factory=dict)
    committed: tuple[int, int] | None = None

    def read(self, position: int, count: int) -> tuple[Message, ...]:
        found: list[Message] = []
        for offset in range(position, self.end):
            if offset in self.messages:
                found.append((offset, self.messages[offset]))
                if len(found) == count:
                    break
        return tuple(found)


@dataclass(frozen=True)
class Segment:
    begin: int
    end: int
    lost: int
    writer: str
    messages: tuple[Message, ...]

    @property
    def checksum(self) -> str:
        return str(self.messages)


@dataclass
class Owner:
    """One incarnation of a worker: a sink, its client's positions, its unanswered requests."""

    sink: Sink
    positions: dict[int, int] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    puts: deque[Put] = field(default_factory=deque)
    recoveries: deque[Recover] = field(default_factory=deque)
    drained: bool = False


class World:
    """`partitions` logs, a store that one conditional PUT decides on, and several owners."""

    def __init__(self, partitions: int = 2, owners: int = 2, step: Step = step) -> None:
        self.logs = [Log() for _ in range(partitions)]
        self.store: list[dict[int, Segment]] = [{} for _ in range(partitions)]
        self.away = False
        self.now = 1000.0
        self.serial = 0
        self.step = step
        self.seen: Counter[str] = Counter()
        self.late: deque[tuple[Owner, Put]] = deque()
        self.crash_after: int | None = None
        self.owners = [self._fresh() for _ in range(owners)]
        for owner in self.owners:
            self.feed(owner, Assigned(tuple(range(partitions))))

    def _fresh(self) -> Owner:
        self.serial += 1
        return Owner(Sink(LIMITS, f"w{self.serial}"))

    # What an owner is told, and what it does.

    def feed(self, owner: Owner, event: Event) -> None:
        owner.sink, actions = self.step(owner.sink, event)
        self.seen[type(event).__name__] += 1
        for done, action in enumerate(actions):
            if self.crash_after is not None and done >= self.crash_after:
                self.crash_after = None
                self.seen["half a step"] += 1
                self.crash(self.owners.index(owner))
                return
            self._do(owner, action)
        if isinstance(event, Tick):
            total = owner.sink.buffered_bytes
            bound = LIMITS.buffer_bytes + 10 * LARGEST_POLL * len(self.logs)
            assert total <= bound, f"{total} bytes held"

    def _do(self, owner: Owner, action: Action) -> None:
        match action:
            case Seek(partition, offset):
                owner.positions[partition] = offset
            case Pause(partitions):
                owner.paused |= set(partitions)
            case Resume(partitions):
                owner.paused -= set(partitions)
            case Put():
                assert all(p.partition != action.partition for p in owner.puts), "two PUTs at once"
                owner.puts.append(action)
            case Recover():
                owner.recoveries.append(action)
            case Commit(partition, offset, begin):
                self.logs[partition].committed = (offset, begin)
            case Lost():
                self.seen["Lost"] += 1
            case Drained():
                owner.drained = True
            case Halt() | Fail() | Rewound():
                raise AssertionError(f"no reason to give up: {action}")

    # Rules. Numbers choose among what is possible; impossible rules do nothing.

    def produce(self, partition: int, count: int) -> None:
        log = self.logs[partition]
        for _ in range(count):
            self.serial += 1
            log.messages[log.end] = self.serial
            log.end += 1

    def skip(self, partition: int, count: int) -> None:
        """Offsets that no message ever gets, as a transaction's end does."""
        self.logs[partition].end += count

    def truncate(self, partition: int, count: int) -> None:
        """Retention deletes the oldest messages, read or not."""
        log = self.logs[partition]
        log.start = min(log.end, log.start + count)

    def poll(self, who: int, partition: int, count: int) -> None:
        """As a worker does: what was read, then a tick."""
        owner = self.owners[who]
        batch = self._fetched(owner, partition, count)
        if batch is not None:
            self.feed(owner, Polled(partition, batch, self.logs[partition].start))
            self.tick(who, 0)

    def undecoded(self, who: int, partition: int) -> None:
        owner = self.owners[who]
        if self._fetched(owner, partition, 3) is not None:
            self.feed(owner, Undecoded(partition, "a claimed object cannot be read now"))

    def _fetched(self, owner: Owner, partition: int, count: int) -> Pieces | None:
        if partition in owner.paused or partition not in owner.sink.partitions:
            return None
        log = self.logs[partition]
        position = owner.positions.get(partition, 0)
        if not log.start <= position <= log.end:
            position = owner.positions[partition] = log.start
        messages = log.read(position, count)
        if not messages:
            return None
        owner.positions[partition] = messages[-1][0] + 1
        return Pieces(messages[0][0], messages[-1][0] + 1, messages)

    def look(self, who: int, partition: int) -> None:
        """The worker asks how long the log is."""
        log = self.logs[partition]
        self.feed(self.owners[who], Bounds(partition, log.start, log.end))

    def redeliver(self, who: int, partition: int, back: int) -> None:
        """The client goes back on its own."""
        owner = self.owners[who]
        if partition in owner.positions:
            owner.positions[partition] = max(0, owner.positions[partition] - back)

    def stray(self, who: int, partition: int, ahead: int) -> None:
        """The client delivers once from beyond the position, as after a late seek."""
        owner = self.owners[who]
        state = owner.sink.partitions.get(partition)
        if state and state.position is not None and state.gap_at != state.position:
            owner.positions[partition] = state.position + ahead
            self.poll(who, partition, LARGEST_POLL)
            owner.positions[partition] = owner.sink.partitions[partition].position or 0

    def tick(self, who: int, tenths: int) -> None:
        """Time passes; a negative number is a clock that was set back."""
        self.now += tenths / 10
        self.feed(self.owners[who], Tick(self.now))

    def answer_put(self, who: int, outcome: int) -> None:
        """0-3: the store's answer arrives; 4: stored, told as failed; 5: failed."""
        owner = self.owners[who]
        if not owner.puts:
            return
        put = owner.puts.popleft()
        if self.away or outcome == 5:
            self.feed(owner, PutFailed(put.partition, put.token, "503"))
        elif outcome == 4:
            self._store(owner.sink.writer, put)
            self.feed(owner, PutFailed(put.partition, put.token, "the answer got lost"))
        else:
            self.feed(owner, self._store(owner.sink.writer, put))

    def answer_late(self) -> None:
        """A PUT reaches the store whose owner is dead or gave the partition away."""
        if not self.late:
            return
        self.seen["late PUT"] += 1
        owner, put = self.late.popleft()
        answer = self._store(owner.sink.writer, put)
        if any(owner is other for other in self.owners):
            self.feed(owner, answer)

    def _store(self, writer: str, put: Put) -> PutCreated | PutExists:
        pieces = [piece for piece in put.batches if isinstance(piece, Pieces)]
        messages = tuple(m for piece in pieces for m in piece.messages)
        segment = Segment(put.begin, put.end, put.lost, writer, messages)
        found = self.store[put.partition].setdefault(put.begin, segment)
        if found is segment:
            return PutCreated(put.partition, put.token, segment.checksum)
        return PutExists(
            put.partition, put.token, found.end, found.writer, found.checksum, segment.checksum
        )

    def answer_recovery(self, who: int, fails: int) -> None:
        owner = self.owners[who]
        if not owner.recoveries:
            return
        asked = owner.recoveries.popleft()
        if self.away or fails == 0:
            self.feed(owner, RecoverFailed(asked.partition, asked.token, "503"))
            return
        log = self.logs[asked.partition]
        frontier, last = self.chain(asked.partition, asked.hint or log.committed)
        committed = log.committed[0] if log.committed else None
        self.feed(owner, Recovered(
            asked.partition, asked.token, frontier, last, log.start, log.end, committed
        ))  # fmt: skip

    def chain(self, partition: int, hint: tuple[int, int] | None = None) -> tuple[int, int | None]:
        """End and last begin of the chain, followed from the hint."""
        segments = self.store[partition]
        end, last = (0, None) if hint is None else hint
        while end in segments:
            end, last = segments[end].end, segments[end].begin
        return end, last

    def lose_commit(self, partition: int) -> None:
        """The newest commit never arrived; the one before it counts."""
        log = self.logs[partition]
        before = [s for s in self.store[partition].values() if s.end < (log.committed or (0, 0))[0]]
        newest = max(before, key=lambda s: s.begin, default=None)
        log.committed = None if newest is None else (newest.end, newest.begin)

    def crash(self, who: int) -> None:
        """Killed; its PUTs may still land. The next incarnation starts at once."""
        owner = self.owners[who]
        self.seen["crash"] += 1
        self.late.extend((owner, put) for put in owner.puts)
        self.owners[who] = self._fresh()
        self.feed(self.owners[who], Assigned(tuple(range(len(self.logs)))))

    def crash_within(self, actions: int) -> None:
        """The next step that wants more than so many actions is killed between two of them."""
        self.crash_after = actions

    def reassign(self, who: int, partition: int) -> None:
        """A partition is taken away, or given back."""
        owner = self.owners[who]
        if partition in owner.sink.partitions:
            self.feed(owner, Revoked((partition,)))
            self.late.extend((owner, put) for put in owner.puts if put.partition == partition)
            owner.puts = deque(put for put in owner.puts if put.partition != partition)
        else:
            self.feed(owner, Assigned((partition,)))

    def switch_store(self) -> None:
        self.away = not self.away

    # What must hold.

    def check(self) -> None:
        """Every invariant of the store, the commits and the sinks."""
        for number, log in enumerate(self.logs):
            frontier = self._check_chain(number)
            assert (log.committed or (0, 0))[0] <= frontier, "committed beyond the frontier"
            for owner in self.owners:
                state = owner.sink.partitions.get(number)
                if state is not None:
                    self._check_state(state, frontier)

    def _check_chain(self, number: int) -> int:
        log, end = self.logs[number], 0
        for begin, segment in sorted(self.store[number].items()):
            assert begin == end < segment.end, f"{begin} does not follow {end}"
            expected = {o: log.messages[o] for o in range(begin, segment.end) if o in log.messages}
            stored = dict(segment.messages)
            assert len(stored) == len(segment.messages), "an offset twice"
            missing = expected.keys() - stored.keys()
            assert stored.items() <= expected.items(), "wrong content"
            assert all(o < log.start for o in missing), f"skipped {missing}"
            unread = range(begin, min(segment.end, log.start))
            most = sum(1 for offset in unread if offset not in stored)
            assert len(missing) <= segment.lost <= most, "lost offsets are miscounted"
            end = segment.end
        return end

    def _check_state(self, state: Partition, frontier: int) -> None:
        if state.frontier is None or state.position is None:
            assert not state.held and state.flight is None
            return
        assert state.frontier <= frontier, "believes in more than is stored"
        end = state.frontier
        for item in (*(state.flight.held if state.flight else ()), *state.held):
            assert item.begin == end < item.end == item.batch.end, "a hole in what is held"
            end = item.end
        assert end <= state.position

    def settle(self) -> None:
        """All faults end; everything is drained; then all that was produced is stored once."""
        self.away, self.crash_after = False, None
        while self.late:
            self.answer_late()
        for owner in self.owners:
            self.feed(owner, Assigned(tuple(range(len(self.logs)))))
        for _ in range(10_000):
            if self._round():
                break
        else:
            raise AssertionError("the sinks never finish")
        self._finish()

    def _round(self) -> bool:
        for who in range(len(self.owners)):
            self.answer_recovery(who, 1)
            self.answer_put(who, 0)
            self.tick(who, 10)
            for partition in range(len(self.logs)):
                self.poll(who, partition, LARGEST_POLL)
            self.check()
        return all(self._caught_up(owner) for owner in self.owners)

    def _caught_up(self, owner: Owner) -> bool:
        busy = owner.puts or owner.recoveries
        return not busy and all(
            p.position is not None and not log.read(max(p.position, log.start), 1)
            for p, log in zip(
                (owner.sink.partitions[n] for n in range(len(self.logs))), self.logs, strict=True
            )
        )

    def _finish(self) -> None:
        for who, owner in enumerate(self.owners):
            self.feed(owner, Drain())
            for _ in range(1000):
                self.tick(who, 10)
                self.answer_put(who, 0)
                self.answer_recovery(who, 1)
                if owner.drained:
                    break
            assert owner.drained, "the drain never ends"
        self.check()
        for number, log in enumerate(self.logs):
            frontier, _ = self.chain(number)
            left = [o for o in log.messages if o >= max(frontier, log.start)]
            assert not left, f"never stored: {left}"
