from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flts_ray.config_serve import KEEP_INTERVALS
from flts_ray.serve import scaling_policy
from flts_ray.serve.scaling import RATE, Ahead, Counted, Demand
from flts_ray.serve.scaling_memory import (
    MOST_BYTES,
    SAVE_INTERVALS,
    SAVE_S,
    ScalingMemory,
    memory_name,
    save_s,
)
from flts_ray.serve.scaling_policy import ScalingPolicy

FILE = memory_name("demo", "s3://bucket")
CLOCK: dict[str, Any] = {"interval_s": 1.0, "ahead_s": 5.0, "season_s": 40.0}


class Killed(BaseException):
    """What nobody catches."""


def counted(count: int = 3, until: float = 5.0) -> Counted:
    return Counted(15.0, until, np.arange(count) + 0.5, np.arange(count) / 3, (1.0, 2.0))


def same(found: Counted | None, wanted: Counted) -> bool:
    assert found is not None
    np.testing.assert_array_equal(found.counts, wanted.counts)
    np.testing.assert_array_equal(found.ongoing, wanted.ongoing)
    apart = (found.interval_s, found.until, found.missed)
    return apart == (wanted.interval_s, wanted.until, wanted.missed)


@pytest.mark.parametrize("count", [1, 7, KEEP_INTERVALS])
def test_what_was_kept_is_read_and_bounded(tmp_path: Path, count: int) -> None:
    ScalingMemory(FILE, tmp_path / "new").keep(counted(count), now=0.0)
    assert same(ScalingMemory(FILE, tmp_path / "new").read(), counted(count))
    assert (tmp_path / "new" / FILE).stat().st_size <= MOST_BYTES


def test_configurations_have_their_own() -> None:
    assert len({FILE, memory_name("other", "s3://bucket"), memory_name("demo", "s3://b")}) == 3


def test_without_a_file_it_begins_empty_and_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert ScalingMemory(FILE, tmp_path).read() is None
    assert [(one["event"], one["log_level"]) for one in logs] == [("scaling_memory_empty", "info")]


@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("kept")
    ScalingMemory(FILE, folder).keep(counted(), now=0.0)
    raw = (folder / FILE).read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    bad = bytes([raw[at] ^ data.draw(st.integers(1, 255))])
    cut = data.draw(st.integers(0, len(raw) - 1))
    for damaged in (raw[:at] + bad + raw[at + 1 :], raw[:cut], raw + b"x" * MOST_BYTES):
        (folder / FILE).write_bytes(damaged)
        with capture_logs() as logs:
            assert ScalingMemory(FILE, folder).read() is None
        assert [one["event"] for one in logs] == ["scaling_memory_unreadable"]


def test_a_kill_before_the_rename_leaves_the_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    memory = ScalingMemory(FILE, tmp_path)
    memory.keep(counted(3), now=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        for _ in range(3):
            with pytest.raises(Killed):
                ScalingMemory(FILE, tmp_path).keep(counted(9), now=100.0)
    assert len(os.listdir(tmp_path)) == 2  # kills leave one draft, however many they are
    assert same(ScalingMemory(FILE, tmp_path).read(), counted(3))
    memory.keep(counted(4), now=200.0)
    assert same(memory.read(), counted(4))
    assert os.listdir(tmp_path) == [FILE]


def test_a_disk_that_refuses_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    memory = ScalingMemory(FILE, tmp_path / "file")
    with capture_logs() as logs:
        for now in (0.0, 100.0):
            memory.keep(counted(), now)
    assert [one["event"] for one in logs] == ["scaling_memory_not_kept"]


def test_nothing_is_written_before_there_is_something_nor_too_often(tmp_path: Path) -> None:
    memory = ScalingMemory(FILE, tmp_path)
    memory.keep(None, now=0.0)
    assert memory.due(0.0)
    memory.keep(counted(), now=0.0)
    assert not memory.due(SAVE_S - 1)
    assert memory.due(SAVE_S)
    assert memory.due(-5.0)  # a clock that was set back


def test_a_kill_costs_a_minute_or_a_few_short_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (save_s(0.5), save_s(3600.0)) == (SAVE_INTERVALS * 0.5, SAVE_S)
    monkeypatch.setattr(scaling_policy, "ScalingMemory", partial(ScalingMemory, folder=tmp_path))
    policy = ScalingPolicy(1, None, True, **CLOCK, memory=FILE)
    for i in range(50):
        policy(asked_at(i, rate=7.0))
        kept = ScalingMemory(FILE, tmp_path).read()
        assert (0 if kept is None else len(kept.counts)) >= i - SAVE_INTERVALS


def asked_at(second: int, rate: float) -> Any:
    """What Serve hands to a policy."""
    return SimpleNamespace(
        current_num_replicas=1,
        total_num_requests=0.1 * rate,
        aggregated_metrics={RATE: {"a": rate}},
        current_time=float(second),
    )


def look(ahead: Ahead, times: range) -> None:
    for i in times:
        busy = i % 50 >= 40
        demand = Demand(1, ongoing=40.0 if busy else 1.0, per_s=80.0 if busy else 10.0)
        ahead.look(demand, now=float(i))


def test_scaling_ahead_goes_on_from_what_was_counted() -> None:
    whole, first, second = (Ahead(1.0, horizon=5, season=50) for _ in range(3))
    look(whole, range(138))
    look(first, range(130))
    kept = first.counted()
    assert kept is not None
    assert second.resume(kept, now=132.4)
    look(second, range(133, 138))
    assert whole.concurrency > 25
    assert second.concurrency == pytest.approx(whole.concurrency, rel=0.2)
    assert len(second._counts) == len(whole._counts)


def test_what_nobody_saw_is_as_a_season_ago() -> None:
    first, second = (Ahead(1.0, horizon=5, season=50) for _ in range(2))
    look(first, range(101))
    kept = first.counted()
    assert kept is not None
    assert second.resume(kept, now=150.0)
    look(second, range(151, 153))
    np.testing.assert_array_equal(list(second._counts)[101:150], kept.counts[51:100])


def test_silence_after_a_kill_is_no_load_of_zero() -> None:
    ahead = Ahead(15.0, horizon=2, season=3)
    ahead.look(Demand(0, ongoing=0.0, told=False), now=0.0)
    assert ahead.counted() is None
    assert ahead.resume(counted(3, until=5.0), now=2.0)
    for now in np.arange(3.0, 7.0):
        ahead.look(Demand(1, ongoing=0.0, told=False), float(now))
    for now in (7.0, 19.0):
        ahead.look(Demand(1, ongoing=6.0, per_s=2.0), now)
    for now in (20.0, 35.0):
        ahead.look(Demand(1, ongoing=0.0, told=False), now)
    found = ahead.counted()
    assert found is not None
    # One that nobody saw, one of which a part was seen, one that nobody saw.
    np.testing.assert_array_equal(found.counts, [0.5, 1.5, 2.5, 0.5, 30.0, 2.5])
    np.testing.assert_allclose(found.ongoing, [0.0, 1 / 3, 2 / 3, 0.0, 6.0, 2 / 3])
    assert found.until == 50.0


@pytest.mark.parametrize(("interval_s", "now"), [(10.0, 100.0), (15.0, -11.0)])
def test_another_clock_is_no_memory(interval_s: float, now: float) -> None:
    ahead = Ahead(interval_s, horizon=5, season=50)
    assert not ahead.resume(counted(), now)
    assert ahead.counted() is None


def test_a_new_controller_foresees_what_the_last_one_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_policy, "ScalingMemory", partial(ScalingMemory, folder=tmp_path))

    def answers(policy: ScalingPolicy, times: range) -> list[int]:
        found = []
        for i in times:
            rate = 40.0 if i % 40 >= 30 else 4.0
            found.append(policy(asked_at(i, rate))[0])
        return found

    answers(ScalingPolicy(1, None, True, **CLOCK, memory=FILE), range(122))
    foreseen = answers(ScalingPolicy(1, None, True, **CLOCK, memory=FILE), range(124, 150))
    assert foreseen[124 - 124 : 144 - 124] == [1] * 20
    assert foreseen[148 - 124 :] == [4, 4]
    forgotten = answers(ScalingPolicy(1, None, True, **CLOCK), range(124, 150))
    assert set(forgotten) == {1}
    for bad in (b"", b"x" * 100):
        (tmp_path / FILE).write_bytes(bad)
        assert set(
            answers(ScalingPolicy(1, None, True, **CLOCK, memory=FILE), range(124, 150))
        ) == {1}
