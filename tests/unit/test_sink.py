"""What the sink wants done, event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flts_ray.ingest.held import Limits
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
from flts_ray.ingest.sink_state import Sink
from tests.memory_stream import Pieces

LIMITS = Limits(
    segment_rows=10,
    segment_bytes=1000,
    segment_age_s=5.0,
    buffer_bytes=400,
    store_patience_s=60.0,
    retry_base_s=1.0,
    retry_cap_s=8.0,
)


class Run:
    """A sink that is fed; `say` returns what it wants done."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 1000.0
        self.sink, _ = step(Sink(limits, "me"), Tick(self.now))

    def say(self, *events: Event) -> list[Action]:
        wanted: list[Action] = []
        for event in events:
            self.sink, actions = step(self.sink, event)
            wanted += actions
        return wanted

    def after(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.say(Tick(self.now))

    def reading(
        self, partition: int = 0, frontier: int = 0, start: int = 0, end: int = 1000
    ) -> list[Action]:
        """Assigned and recovered; what the recovery wanted, and the resume."""
        recover = self.say(Assigned((partition,)))[-1]
        assert isinstance(recover, Recover)
        last = frontier - 1 if frontier else None
        known = Recovered(partition, recover.token, frontier, last, start, end, None)
        return [*self.say(known), *self.after(0)]

    def poll(
        self, begin: int, end: int, partition: int = 0, start: int | None = None
    ) -> list[Action]:
        return self.say(Polled(partition, pieces(begin, end), start))


def pieces(begin: int, end: int) -> Pieces:
    return Pieces(begin, end, tuple((offset, 7 * offset + 1) for offset in range(begin, end)))


def only_put(actions: list[Action]) -> Put:
    puts = [action for action in actions if isinstance(action, Put)]
    assert len(puts) == 1, actions
    return puts[0]


def created(put: Put) -> PutCreated:
    return PutCreated(put.partition, put.token, "sum")


def foreign(put: Put, end: int) -> PutExists:
    return PutExists(put.partition, put.token, end, "other", "theirs", "mine")


def test_reading_starts_at_the_frontier_after_the_chain_was_followed() -> None:
    run = Run()
    assert run.say(Assigned((3,))) == [Pause((3,)), Recover(3, 1, None)]
    wanted = run.say(Recovered(3, 1, 50, 40, 0, 80, 40))
    assert wanted == [Seek(3, 50), Commit(3, 50, 40)]
    assert run.after(0) == [Resume((3,))]


def test_a_right_commit_is_not_repeated() -> None:
    run = Run()
    run.say(Assigned((3,)))
    assert run.say(Recovered(3, 1, 50, 40, 0, 80, 50)) == [Seek(3, 50)]


def test_what_is_polled_before_the_recovery_is_ignored() -> None:
    run = Run()
    run.say(Assigned((0,)))
    assert run.poll(0, 5) == []
    assert run.sink.buffered_bytes == 0


def test_a_segment_is_closed_by_rows_then_committed() -> None:
    run = Run()
    run.reading()
    assert run.poll(0, 6) == [] and run.after(1) == []
    run.poll(6, 12)
    put = only_put(run.after(0))
    assert (put.begin, put.end, put.lost) == (0, 12, 0)
    assert put.batches == (pieces(0, 6), pieces(6, 12))
    assert run.say(created(put)) == [Commit(0, 12, 0)]
    assert run.sink.totals.segments == 1 and run.sink.totals.rows == 12


def test_a_segment_is_closed_by_bytes() -> None:
    run = Run(replace(LIMITS, segment_bytes=30))
    run.reading()
    run.poll(0, 2)
    assert run.after(0) == []
    run.poll(2, 3)
    assert only_put(run.after(0)).end == 3


def test_an_idle_stream_closes_its_last_segment() -> None:
    run = Run()
    run.reading()
    run.poll(0, 1)
    assert run.after(4.9) == []
    assert only_put(run.after(0.2)).end == 1


def test_age_counts_from_the_first_message_that_is_held() -> None:
    run = Run()
    run.reading()
    run.after(100)
    run.poll(0, 1)
    run.after(3)
    run.poll(1, 2)
    assert only_put(run.after(3)).end == 2


def test_a_clock_that_is_set_back_neither_hurries_nor_stops_anything() -> None:
    run = Run()
    run.reading()
    run.after(1000)
    run.poll(0, 1)
    assert run.after(-900) == []
    assert run.after(4.9) == []
    assert only_put(run.after(0.2)).begin == 0


def test_reading_goes_on_during_a_put_and_the_next_segment_waits_for_it() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    first = only_put(run.after(0))
    run.poll(10, 20)
    assert run.after(1) == []
    run.say(created(first))
    second = only_put(run.after(0))
    assert (second.begin, second.end) == (10, 20)


def test_a_full_buffer_pauses_all_partitions_and_half_resumes_them() -> None:
    run = Run(replace(LIMITS, segment_rows=15))
    run.reading(0)
    run.reading(1)
    run.poll(0, 15)
    first = only_put(run.after(0))
    run.poll(0, 20, partition=1)
    second = only_put(run.after(0))
    run.poll(15, 20)
    assert run.after(0) == [Pause((0, 1))]
    run.say(created(first))
    assert Resume((0, 1)) not in run.after(0)
    run.say(created(second))
    assert Resume((0, 1)) in run.after(0)


def test_a_buffer_that_is_full_of_small_parts_closes_the_largest_early() -> None:
    run = Run(replace(LIMITS, segment_rows=1000))
    for partition, size in enumerate((5, 20, 15)):
        run.reading(partition)
        run.poll(0, size, partition=partition)
    put, pause = run.after(0)
    assert isinstance(put, Put) and put.partition == 1
    assert pause == Pause((0, 1, 2))


def test_whoever_loses_the_race_keeps_what_the_winner_left() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    run.poll(10, 14)
    wanted = run.say(foreign(put, 7))
    assert wanted == [Recover(0, put.token + 1, (7, 0))]
    assert run.after(0) == []
    run.say(Recovered(0, put.token + 1, 7, 0, 0, 100, None))
    run.after(10)
    flight = run.sink.partitions[0].flight
    assert flight is not None and (flight.begin, flight.end) == (7, 14)
    assert flight.held[0].batch == pieces(7, 10)


def test_whoever_is_far_behind_goes_on_where_the_chain_ends() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    run.poll(10, 14)
    assert run.say(foreign(put, 30))[0] == Seek(0, 30)
    wanted = run.say(Recovered(0, put.token + 1, 90, 80, 0, 100, None))
    assert wanted == [Seek(0, 90), Commit(0, 90, 80)]
    assert run.sink.buffered_bytes == 0 and run.sink.totals.conflicts == 1


def test_an_own_segment_that_exists_already_is_a_success() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    run.say(PutFailed(0, put.token, "timeout"))
    again = only_put(run.after(1))
    assert again == put
    mine = PutExists(0, put.token, 10, "me", "sum", "sum")
    assert run.say(mine) == [Commit(0, 10, 0)]
    assert run.sink.totals.conflicts == 0 and run.sink.totals.segments == 1


def test_a_failed_put_is_repeated_ever_more_slowly_with_the_same_segment() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    run.poll(10, 15)
    for wait in (1, 2, 4, 8, 8):
        assert run.say(PutFailed(0, put.token, "503")) == []
        assert run.after(wait - 0.1) == []
        assert run.after(0.1) == [put]
    assert run.sink.totals.put_failures == 5


def test_patience_ends() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    run.say(PutFailed(0, put.token, "503"))
    for _ in range(7):
        assert put in run.after(8)
        assert run.say(PutFailed(0, put.token, "503")) == []
    assert put in run.after(8)
    assert run.say(PutFailed(0, put.token, "503")) == [Fail("503")]


def test_a_success_ends_the_count_of_failures() -> None:
    run = Run()
    run.reading()
    for begin in (0, 10):
        run.poll(begin, begin + 10)
        put = only_put(run.after(0))
        run.say(PutFailed(0, put.token, "503"))
        run.after(50)
        assert run.say(PutFailed(0, put.token, "503")) == []
        assert put in run.after(8)
        run.say(created(put))


def test_a_recovery_that_fails_is_repeated_and_given_up() -> None:
    run = Run()
    recover = run.say(Assigned((0,)))[-1]
    assert run.say(RecoverFailed(0, 1, "503")) == []
    assert run.after(1) == [recover]
    run.after(60)
    assert run.say(RecoverFailed(0, 1, "503")) == [Fail("503")]


def test_holes_of_the_broker_lie_inside_the_range() -> None:
    run = Run()
    run.reading()
    run.poll(0, 4)
    assert run.poll(6, 9, start=0) == [Seek(0, 4)]
    assert run.poll(6, 9, start=0) == []
    put = only_put(run.after(10))
    assert (put.begin, put.end, put.lost) == (0, 9, 0)


def test_a_client_that_jumps_once_is_sent_back() -> None:
    run = Run()
    run.reading()
    run.poll(0, 4)
    assert run.poll(6, 9, start=0) == [Seek(0, 4)]
    assert run.poll(4, 9) == []
    assert only_put(run.after(10)).batches == (pieces(0, 4), pieces(4, 9))


def test_offsets_lost_by_retention_are_counted_and_told() -> None:
    run = Run()
    run.reading(frontier=10)
    run.poll(10, 12)
    run.poll(20, 25, start=18)
    assert run.poll(20, 25, start=18) == [Lost(0, 12, 18, first=False)]
    put = only_put(run.after(10))
    assert (put.begin, put.end, put.lost) == (10, 25, 6)


def test_a_chain_begins_at_0_whatever_the_log_still_has() -> None:
    run = Run()
    wanted = run.reading(start=40)
    assert wanted[:2] == [Seek(0, 40), Lost(0, 0, 40, first=True)]
    run.poll(40, 45)
    put = only_put(run.after(10))
    assert (put.begin, put.end, put.lost) == (0, 45, 40)


def test_what_was_read_before_retention_deleted_it_is_not_lost() -> None:
    run = Run()
    run.reading()
    run.poll(0, 5, start=30)
    assert only_put(run.after(10)).lost == 0


def test_a_log_that_retention_emptied_is_lost_up_to_its_end() -> None:
    run = Run()
    run.reading(frontier=10)
    assert run.say(Bounds(0, 30, 30)) == []
    assert run.say(Bounds(0, 30, 30)) == [Lost(0, 10, 30, first=False), Seek(0, 30)]
    run.poll(30, 31)
    put = only_put(run.after(10))
    assert (put.begin, put.end, put.lost) == (10, 31, 20)


def test_a_log_that_ends_before_the_frontier_halts_its_partition_alone() -> None:
    run = Run()
    run.reading(0, frontier=50)
    run.reading(1)
    pause, halt = run.say(Bounds(0, 0, 20))
    assert pause == Pause((0,))
    assert isinstance(halt, Halt) and "generation" in halt.reason and "50" in halt.reason
    assert run.poll(50, 60) == [] and run.say(Bounds(0, 0, 99)) == []
    run.poll(0, 10, partition=1)
    assert only_put(run.after(0)).partition == 1
    assert run.say(Drain()) == []


def test_a_topic_made_anew_halts_at_the_start() -> None:
    run = Run()
    wanted = run.reading(frontier=50, end=20)
    assert [type(action) for action in wanted] == [Pause, Halt]


def test_what_the_broker_forgot_before_it_was_durable_is_read_again() -> None:
    run = Run()
    run.reading(frontier=10)
    run.poll(10, 15)
    assert run.say(Bounds(0, 0, 12)) == [Rewound(0, 15, 12), Seek(0, 10)]
    run.poll(10, 13)
    put = only_put(run.after(10))
    assert (put.begin, put.end) == (10, 13)


def test_repeated_deliveries_are_dropped() -> None:
    run = Run()
    run.reading()
    run.poll(0, 5)
    assert run.poll(1, 4) == [Seek(0, 5)]
    assert run.poll(3, 8) == []
    assert only_put(run.after(10)).batches == (pieces(0, 5), pieces(5, 8))


def test_a_drain_closes_everything_and_reads_no_more() -> None:
    run = Run()
    run.reading(0)
    run.reading(1)
    run.poll(0, 3)
    run.say(Drain())
    put, pause = run.after(0)
    assert isinstance(put, Put) and pause == Pause((0, 1))
    assert run.poll(3, 5) == []
    run.say(created(put))
    assert run.after(0) == [Drained()]
    assert run.after(1) == []


def test_a_drain_waits_for_a_store_that_is_away() -> None:
    run = Run()
    run.reading()
    run.poll(0, 3)
    run.say(Drain())
    put = run.after(0)[0]
    assert isinstance(put, Put)
    run.say(PutFailed(0, put.token, "503"))
    assert run.after(1) == [put]
    run.say(created(put))
    assert run.after(0) == [Drained()]


def test_a_revoked_partition_is_forgotten_and_its_late_answers_too() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    put = only_put(run.after(0))
    assert run.say(Revoked((0,))) == []
    assert run.sink.buffered_bytes == 0
    wanted = run.say(Assigned((0,)))
    assert run.say(created(put)) == []
    assert isinstance(wanted[-1], Recover) and wanted[-1].token > put.token


def test_counts_of_revoked_partitions_stay() -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    run.say(created(only_put(run.after(0))), Revoked((0,)))
    assert run.sink.totals.rows == 10


def test_a_partition_that_is_assigned_again_goes_on_undisturbed() -> None:
    run = Run()
    run.reading(0)
    run.poll(0, 3)
    assert run.say(Assigned((0, 1))) == [Pause((1,)), Recover(1, 2, None)]
    assert run.sink.partitions[0].held


def test_what_cannot_be_decoded_now_is_read_again_later() -> None:
    run = Run()
    run.reading()
    assert run.say(Undecoded(0, "claims away")) == [Seek(0, 0), Pause((0,))]
    assert run.after(0.9) == []
    assert run.after(0.1) == [Resume((0,))]
    run.say(Undecoded(0, "claims away"))
    assert run.after(1.9) == [] and run.after(0.1) == [Resume((0,))]
    assert run.sink.partitions[0].waits == "claims away"
    run.poll(0, 3)
    assert run.sink.partitions[0].stall is None
    assert run.sink.partitions[0].waits == ""


def test_what_can_never_be_decoded_stops_nothing_but_its_partition() -> None:
    run = Run()
    run.reading(0)
    run.reading(1)
    run.poll(0, 4)
    for _ in range(100):
        assert run.say(Undecoded(0, "claims away")) == [Seek(0, 4), Pause((0,))]
        assert Resume((0,)) in run.after(LIMITS.retry_cap_s)
    assert run.sink.clock > 10 * LIMITS.store_patience_s
    waiting, other = run.sink.partitions[0], run.sink.partitions[1]
    assert waiting.stuck(run.sink.clock, LIMITS) and waiting.frontier == 0
    assert not other.stuck(run.sink.clock, LIMITS) and not other.paused
    run.poll(0, 10, partition=1)
    assert only_put(run.after(0)).partition == 1


def test_a_stored_object_that_makes_no_sense_halts_its_partition() -> None:
    run = Run()
    run.reading(frontier=5)
    run.poll(5, 15)
    put = only_put(run.after(0))
    wanted = run.say(foreign(put, 5))
    assert isinstance(wanted[-1], Halt) and "damaged" in wanted[-1].reason


def test_what_cannot_be_read_of_the_chain_halts_its_partition() -> None:
    run = Run()
    run.say(Assigned((0, 1)))
    assert run.say(Broken(0, "footer is gone")) == [Pause((0,)), Halt(0, "footer is gone")]
    assert not run.sink.partitions[1].halted


@pytest.mark.parametrize("token", [0, 99])
def test_answers_to_other_questions_are_ignored(token: int) -> None:
    run = Run()
    run.reading()
    run.poll(0, 10)
    run.after(0)
    before = run.sink
    for event in (
        PutCreated(0, token, "x"),
        PutFailed(0, token, "x"),
        PutExists(0, token, 99, "o", "x", "y"),
        Recovered(0, token, 99, 98, 0, 100, None),
        RecoverFailed(0, token, "x"),
    ):
        assert run.say(event) == []
    assert run.sink.partitions == before.partitions
