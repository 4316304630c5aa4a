"""What is put down of the model's calls, and for how long it was busy."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.serve.model_calls import MOST, ModelCall, ModelCalls, busy_s

MOMENTS = st.integers(0, 60)


@given(st.lists(st.tuples(MOMENTS, MOMENTS)), MOMENTS, MOMENTS)
def test_the_busy_time_counts_every_moment_once(
    spans: list[tuple[int, int]], since: int, until: int
) -> None:
    lasting = {t for begin, end in spans for t in range(begin, end)}
    assert busy_s(spans, since, until) == len(lasting & set(range(since, until)))


def test_calls_are_taken_once_and_in_their_order() -> None:
    calls = ModelCalls()
    calls.wanted = True
    for at in (1.0, 1.0, 2.0):
        calls.begin(at)
    calls.end(ModelCall(1.0, 3.0, [0.5]))
    assert calls.running() == [1.0, 2.0]
    calls.end(ModelCall(2.0, 4.0, [0.5, 0.7]))
    assert [call.ended for call in calls.take()] == [3.0, 4.0]
    assert calls.take() == []
    assert calls.running() == [1.0]


def test_nothing_is_kept_that_nobody_takes_and_never_without_a_bound() -> None:
    calls = ModelCalls()
    for wanted, kept in ((False, 0), (True, MOST)):
        calls.wanted = wanted
        for at in range(MOST + 5):
            calls.begin(at)
            calls.end(ModelCall(at, at, [at]))
        assert len(calls.take()) == kept


@pytest.mark.parametrize("callers", [1, 4])
def test_no_call_is_lost_or_taken_twice_while_others_end(callers: int) -> None:
    calls, each = ModelCalls(), 2_000
    found: list[ModelCall] = []
    calls.wanted = True

    def work(first: int) -> None:
        for at in range(first, first + each):
            calls.begin(at)
            calls.end(ModelCall(at, at, [at]))

    threads = [threading.Thread(target=work, args=(k * each,)) for k in range(callers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found += calls.take()
    found += calls.take()
    assert sorted(call.began for call in found) == list(range(callers * each))
    assert calls.running() == []
