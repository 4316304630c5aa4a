from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.serve.load import NOW_S, RECENT_S, Load, Reading


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answered(load: Load, seconds: float) -> None:
    load.began()
    load.ended(seconds)


@given(st.integers(0, 40))
def test_the_rate_is_that_of_the_last_whole_seconds(per_s: int) -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(RECENT_S + 3):
        for _ in range(per_s):
            answered(load, 0.01)
        clock.now += 1
    for _ in range(7):
        answered(load, 0.01)  # of the second that is not over
    assert load.reading().per_s == per_s


def test_the_latency_is_the_one_that_few_exceed() -> None:
    load = Load(Clock())
    for ms in range(1, 101):
        answered(load, ms / 1e3)
    assert load.reading().p95_ms == pytest.approx(96)


@given(st.integers(1, 50), st.floats(0.001, 2.0))
def test_requests_in_the_system_are_their_rate_times_their_time_in_it(
    per_s: int, seconds: float
) -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(NOW_S + 1):
        for _ in range(per_s):
            answered(load, seconds)
        clock.now += 1
    assert load.reading().inside == pytest.approx(per_s * seconds)


def test_long_work_is_load_but_no_latency() -> None:
    clock = Clock()
    load = Load(clock)
    load.began()
    load.ended(8.0, long=True)
    answered(load, 0.001)
    clock.now += 1
    reading = load.reading()
    assert reading.p95_ms == pytest.approx(1.0)
    assert reading.inside == pytest.approx(8.001 / NOW_S)


def test_a_replica_that_answers_nobody_is_busy() -> None:
    load = Load(Clock())
    for _ in range(3):
        load.began()
    assert load.reading() == Reading(0.0, 0.0, 3.0)


def test_the_past_is_forgotten() -> None:
    clock = Clock()
    load = Load(clock)
    answered(load, 0.5)
    clock.now += RECENT_S + 2
    assert load.reading() == Reading(0.0, 0.0, 0.0)
