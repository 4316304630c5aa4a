"""Any interleaving of faults: every offset in the store once, in order, with the right content.

A hypothesis machine finds and shrinks; a seeded loop over the same rules adds the many steps that
its bookkeeping would make slow.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flts_ray.ingest.sink import step
from flts_ray.ingest.sink_actions import Action, Commit, Put, Seek
from flts_ray.ingest.sink_events import (
    Event,
    Polled,
    PutCreated,
    PutExists,
    PutFailed,
    Recovered,
    Revoked,
    Tick,
)
from flts_ray.ingest.sink_state import Sink
from tests.memory_stream import LARGEST_POLL, Step, World

PARTITIONS, OWNERS = 2, 2
HYPOTHESIS_STEPS = 112_000
"""Some runs end early; nine tenths of these are done."""
RANDOM_STEPS = 100_000
STEPS_A_WORLD = 250

owners = st.integers(0, OWNERS - 1)
partitions = st.integers(0, PARTITIONS - 1)


class SinkMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(PARTITIONS, OWNERS)

    @rule(p=partitions, count=st.integers(1, 20))
    def produce(self, p: int, count: int) -> None:
        self.world.produce(p, count)

    @rule(p=partitions, count=st.integers(1, 3))
    def skip(self, p: int, count: int) -> None:
        self.world.skip(p, count)

    @rule(p=partitions, count=st.integers(1, 30))
    def truncate(self, p: int, count: int) -> None:
        self.world.truncate(p, count)

    @rule(who=owners, p=partitions, count=st.integers(1, LARGEST_POLL))
    def poll(self, who: int, p: int, count: int) -> None:
        self.world.poll(who, p, count)

    @rule(who=owners, p=partitions)
    def undecoded(self, who: int, p: int) -> None:
        self.world.undecoded(who, p)

    @rule(who=owners, p=partitions)
    def look(self, who: int, p: int) -> None:
        self.world.look(who, p)

    @rule(who=owners, p=partitions, back=st.integers(1, 30))
    def redeliver(self, who: int, p: int, back: int) -> None:
        self.world.redeliver(who, p, back)

    @rule(who=owners, p=partitions, ahead=st.integers(1, 10))
    def stray(self, who: int, p: int, ahead: int) -> None:
        self.world.stray(who, p, ahead)

    @rule(who=owners, tenths=st.integers(-1000, 100))
    def tick(self, who: int, tenths: int) -> None:
        self.world.tick(who, tenths)

    @rule(who=owners, outcome=st.integers(0, 5))
    def answer_put(self, who: int, outcome: int) -> None:
        self.world.answer_put(who, outcome)

    @rule(who=owners, fails=st.integers(0, 3))
    def answer_recovery(self, who: int, fails: int) -> None:
        self.world.answer_recovery(who, fails)

    @rule()
    def answer_late(self) -> None:
        self.world.answer_late()

    @rule(p=partitions)
    def lose_commit(self, p: int) -> None:
        self.world.lose_commit(p)

    @rule(who=owners)
    def crash(self, who: int) -> None:
        self.world.crash(who)

    @rule(actions=st.integers(0, 3))
    def crash_within(self, actions: int) -> None:
        self.world.crash_within(actions)

    @rule(who=owners, p=partitions)
    def reassign(self, who: int, p: int) -> None:
        self.world.reassign(who, p)

    @rule()
    def switch_store(self) -> None:
        self.world.switch_store()

    @invariant()
    def everything_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


TestSinkMachine = SinkMachine.TestCase
TestSinkMachine.settings = settings(
    max_examples=HYPOTHESIS_STEPS // 100,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def random_rule(world: World, rng: random.Random) -> None:
    """One rule, the usual work far more often than faults."""
    who, p = rng.randrange(OWNERS), rng.randrange(PARTITIONS)
    usual: list[Callable[[], None]] = [
        lambda: world.produce(p, rng.randint(1, 12)),
        lambda: world.poll(who, p, rng.randint(1, LARGEST_POLL)),
        lambda: world.poll(who, p, LARGEST_POLL),
        lambda: world.tick(who, rng.randint(0, 30)),
        lambda: world.answer_put(who, rng.randint(0, 5)),
        lambda: world.answer_recovery(who, rng.randint(0, 4)),
        lambda: world.answer_late() if rng.random() < 0.2 else None,
    ]
    faults: list[Callable[[], None]] = [
        lambda: world.skip(p, rng.randint(1, 3)),
        lambda: world.truncate(p, rng.randint(1, 20)),
        lambda: world.undecoded(who, p),
        lambda: world.look(who, p),
        lambda: world.redeliver(who, p, rng.randint(1, 30)),
        lambda: world.stray(who, p, rng.randint(1, 10)),
        lambda: world.tick(who, rng.randint(-10_000, 10_000)),
        lambda: world.lose_commit(p),
        lambda: world.crash(who),
        lambda: taken_and_given_back(world, who, p),
        lambda: world.crash_within(rng.randint(0, 3)),
        lambda: world.reassign(who, p),
        lambda: world.switch_store() if world.away or rng.random() < 0.3 else None,
    ]
    rng.choice(faults if rng.random() < 0.1 else usual)()


def taken_and_given_back(world: World, who: int, partition: int) -> None:
    """A rebalance that changes nothing, but for what was in memory and under way."""
    world.reassign(who, partition)
    world.reassign(who, partition)


def drive(steps: int, seed: int, step: Step = step) -> Counter[str]:
    """Worlds of random rules, each settled at its end; returns how often what happened."""
    rng, seen = random.Random(seed), Counter[str]()
    for _ in range(steps // STEPS_A_WORLD):
        world = World(PARTITIONS, OWNERS, step)
        for _ in range(STEPS_A_WORLD):
            random_rule(world, rng)
            world.check()
        world.settle()
        seen += world.seen
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_random_faults_lose_and_repeat_nothing(seed: int) -> None:
    seen = drive(RANDOM_STEPS // 4, seed)
    # A world in which little happens proves little.
    for event in ("PutCreated", "PutExists", "PutFailed", "RecoverFailed", "Lost", "Undecoded"):
        assert seen[event] > 50, seen
    assert seen["crash"] > 100 and seen["half a step"] > 20 and seen["late PUT"] > 20, seen


def believes_every_put(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """Takes a lost race for a stored segment."""
    if isinstance(event, PutExists):
        event = PutCreated(event.partition, event.token, event.sent)
    return step(sink, event)


def takes_failure_for_success(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    if isinstance(event, PutFailed):
        event = PutCreated(event.partition, event.token, "")
    return step(sink, event)


def commits_before_it_stores(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    sink, actions = step(sink, event)
    early = [Commit(a.partition, a.end, a.begin) for a in actions if isinstance(a, Put)]
    return sink, [*actions, *early]


def trusts_the_commit(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """Restarts where the broker says, without following the chain."""
    if isinstance(event, Recovered):
        event = replace(event, frontier=event.committed or 0)
    return step(sink, event)


def begins_at_the_log_start(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """A first segment has whatever key the retention of the moment gives it."""
    if isinstance(event, Recovered) and event.last is None:
        event = replace(event, frontier=event.start)
    return step(sink, event)


def forgets_to_seek(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    sink, actions = step(sink, event)
    if isinstance(event, PutExists):
        actions = [action for action in actions if not isinstance(action, Seek)]
    return sink, actions


def keeps_what_is_covered(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """Behind a lost race it goes on with all that it held, covered or not."""
    before = sink.partitions.get(getattr(event, "partition", -1))
    sink, actions = step(sink, event)
    if isinstance(event, PutExists) and before and before.held and before.flight:
        p = sink.partitions[event.partition]
        if p.recovery is not None and event.end < before.held[-1].end:
            kept = replace(p, held=before.held)
            sink = replace(sink, partitions={**sink.partitions, event.partition: kept})
    return sink, actions


def swallows_a_gap(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """Takes every jump of the client for a hole in the log."""
    if isinstance(event, Polled) and (p := sink.partitions.get(event.partition)):
        sink = replace(
            sink, partitions={**sink.partitions, p.number: replace(p, gap_at=p.position)}
        )
    return step(sink, event)


def repeats_with_more(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """A failed segment is sent again with all that came since, and its answer believed."""
    if isinstance(event, Tick):
        for p in sink.partitions.values():
            if p.flight and p.flight.retry.failures and p.flight.retry.at is not None and p.held:
                flight = replace(p.flight, held=p.flight.held + p.held)
                grown = replace(p, flight=flight, held=())
                sink = replace(sink, partitions={**sink.partitions, p.number: grown})
    elif isinstance(event, PutExists) and event.writer == sink.writer:
        event = PutCreated(event.partition, event.token, event.sent)
    return step(sink, event)


def drops_what_was_revoked_only_from_memory(sink: Sink, event: Event) -> tuple[Sink, list[Action]]:
    """Goes on from the old position when a partition comes back."""
    if isinstance(event, Revoked):
        return replace(
            sink,
            partitions={
                n: replace(p, held=(), flight=None) if n in event.partitions else p
                for n, p in sink.partitions.items()
            },
        ), []
    return step(sink, event)


BROKEN = (
    believes_every_put,
    takes_failure_for_success,
    commits_before_it_stores,
    begins_at_the_log_start,
    keeps_what_is_covered,
    swallows_a_gap,
    repeats_with_more,
    drops_what_was_revoked_only_from_memory,
)


@pytest.mark.parametrize("broken", BROKEN)
def test_the_same_faults_find_a_broken_protocol(broken: Step) -> None:
    with pytest.raises(AssertionError):
        drive(10 * STEPS_A_WORLD, 0, broken)


@pytest.mark.parametrize("careless", [trusts_the_commit, forgets_to_seek])
def test_a_conditional_put_and_a_second_look_heal_careless_readers(careless: Step) -> None:
    assert drive(20 * STEPS_A_WORLD, 0, careless)["PutCreated"] > 0
