from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flts_ray.ingest.restarts import (
    LONGEST_S,
    WINDOW_S,
    delay_s,
    forget,
    note_failure,
    note_start,
    read_starts,
    starts_key,
)
from flts_ray.store import Store

KEY = starts_key("load", "demo", 0)


def test_one_restart_is_free_and_every_further_one_waits_twice_as_long() -> None:
    waits = [delay_s([0.0] * earlier, 1.0) for earlier in range(9)]
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60]


@given(st.lists(st.floats(0, 1e10), max_size=2000), st.floats(0, 1e10))
def test_the_wait_is_bounded_whatever_the_clocks_say(earlier: list[float], now: float) -> None:
    assert 0 <= delay_s(earlier, now) <= LONGEST_S


def test_starts_long_ago_are_forgotten(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    for second in range(5):
        note_start(store, KEY, float(second))
    starts, wait_s = note_start(store, KEY, 4.0 + WINDOW_S)
    assert (starts.at, wait_s) == ((4.0 + WINDOW_S,), 0.0)


def test_the_last_failure_is_kept_over_the_next_start_until_the_actor_ends_well(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path))
    note_start(store, KEY, 1.0)
    note_failure(store, KEY, "no broker")
    starts, wait_s = note_start(store, KEY, 2.0)
    assert (starts.at, starts.error, wait_s) == ((1.0, 2.0), "no broker", 0.0)
    assert note_start(store, KEY, 3.0)[1] == 1.0
    forget(store, KEY)
    assert read_starts(store, KEY).at == ()


def test_a_damaged_list_is_an_empty_one(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    for content in (b"{", b"[]", b'{"at": 1, "error": ""}', b'{"at": ["x"], "error": ""}', b"\xff"):
        store.put(KEY, content)
        assert read_starts(store, KEY).at == ()
