from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.serve.load import RECENT_S, Load, Reading


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(0, 40))
def test_the_rate_is_that_of_the_last_whole_seconds(per_s: int) -> None:
    clock = Clock()
    load = Load(clock)
    for _ in range(RECENT_S + 3):
        for _ in range(per_s):
            load.arrived()
        clock.now += 1
    for _ in range(7):
        load.arrived()  # of the second that is not over
    assert load.reading().per_s == per_s
    assert load.requests == per_s * (RECENT_S + 3) + 7


def test_the_latency_is_the_one_that_few_exceed() -> None:
    clock = Clock()
    load = Load(clock)
    for ms in range(1, 101):
        arrived = load.arrived()
        clock.now += ms / 1e3
        load.answered(arrived)
        clock.now = arrived
    assert load.reading().p95_ms == pytest.approx(96)


def test_the_past_is_forgotten() -> None:
    clock = Clock()
    load = Load(clock)
    load.answered(load.arrived())
    clock.now += RECENT_S + 2
    assert load.reading() == Reading(0.0, 0.0)
