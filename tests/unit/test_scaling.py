from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config_serve import KEEP_INTERVALS, AheadConfig
from flts_ray.serve.scaling import (
    LATENCY,
    LEAST,
    MOST_GROWTH,
    ONGOING,
    RATE,
    Ahead,
    Demand,
    forecast_counts,
    reactive,
    wanted_replicas,
)
from flts_ray.serve.scaling_policy import ScalingPolicy


def test_replicas_follow_the_requests_in_the_system() -> None:
    assert wanted_replicas(Demand(1, ongoing=33), 0.0, 8, None) == 5
    assert wanted_replicas(Demand(4, ongoing=0), 0.0, 8, None) == 1


@pytest.mark.parametrize(
    ("p95_ms", "wanted"),
    [
        (10, 1.0),  # fast: queue length alone
        (60, 3.0),  # near the target: nobody is taken away
        (150, 4.5),
        (10_000, 6.0),  # at most twice as many
    ],
)
def test_latency_above_its_target_adds_replicas(p95_ms: float, wanted: float) -> None:
    demand = Demand(replicas=3, ongoing=8, p95_ms=p95_ms)
    assert reactive(demand, 8, 100) == pytest.approx(wanted)


def test_latency_of_nobody_is_no_reason() -> None:
    assert reactive(Demand(3, ongoing=0, p95_ms=900), 8, 100) == 0


def test_a_wave_is_continued() -> None:
    t = np.arange(400)
    counts = 100 + 80 * np.sin(2 * np.pi * t / 100)
    made = forecast_counts(counts[:390], 4)
    np.testing.assert_allclose(made, counts[390:394], atol=2)


def test_a_jump_that_comes_every_season_is_foreseen() -> None:
    counts = np.tile(np.r_[np.full(90, 10.0), np.full(10, 200.0)], 6)
    made = forecast_counts(counts[:588], 4, season=100)
    assert made[:2].max() < 30
    assert made[2:].min() > 150


@given(
    st.lists(st.floats(0, 1e6), max_size=3 * LEAST),
    st.integers(1, 6),
    st.sampled_from([None, 5, 50]),
)
def test_a_forecast_is_finite_and_bounded(
    counts: list[float], horizon: int, season: int | None
) -> None:
    made = forecast_counts(np.array(counts), horizon, season)
    assert made.shape == (horizon,)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    assert (made <= MOST_GROWTH * max(counts, default=0.0) + 1e-9).all()


def rising(policy: Ahead, intervals: int) -> float:
    """Requests that take a tenth of a second, one a second more in each interval."""
    for i in range(intervals):
        policy.look(Demand(1, ongoing=0.1 * i, per_s=float(i)), now=10.0 * i)
    return policy.concurrency


def test_concurrency_is_forecast_from_rate_and_time_in_the_system() -> None:
    assert rising(Ahead(10.0, horizon=5, season=30), 80) == pytest.approx(0.1 * 83, rel=0.1)


def test_before_two_seasons_nothing_is_forecast() -> None:
    assert rising(Ahead(10.0, horizon=5, season=30), 65) == 0.0


def test_noise_is_not_believed() -> None:
    rng = np.random.default_rng(3)
    ahead, most = Ahead(1.0, horizon=5, season=30), 0.0
    for i in range(400):
        rate = float(rng.exponential(10.0) if i % 97 else 300.0)
        ahead.look(Demand(1, ongoing=0.1 * rate, per_s=rate), now=float(i))
        if i > 200:
            most = max(most, ahead.concurrency)
    assert most <= 30.0 + 1e-9


def test_a_daily_peak_is_foreseen_with_the_time_that_requests_took_then() -> None:
    ahead = Ahead(1.0, horizon=5, season=50)
    for i in range(3 * 50 - 14):
        busy = i % 50 >= 40
        # A request takes 0.1 s, and 0.5 s where many come.
        demand = Demand(1, ongoing=40.0 if busy else 1.0, per_s=80.0 if busy else 10.0)
        ahead.look(demand, now=float(i))
    assert ahead.concurrency < 3
    for i in range(3 * 50 - 14, 3 * 50 - 12):
        ahead.look(Demand(1, ongoing=1.0, per_s=10.0), now=float(i))
    assert ahead.concurrency > 25


def test_intervals_keep_to_the_clock_however_late_a_look_comes() -> None:
    ahead = Ahead(1.0, horizon=1, season=9)
    for i in range(500):
        ahead.look(Demand(1, ongoing=1.0, per_s=10.0), now=1.3 * i)
    assert len(ahead._counts) == int(1.3 * 499)
    ahead.look(Demand(1, 0.0), now=1e12)
    assert len(ahead._counts) == KEEP_INTERVALS


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ({"interval_s": 1}, "raise interval_s to 8.44"),
        ({"ahead_s": 1}, "at least one"),
        ({"season_s": 1}, "at least one"),
    ],
)
def test_a_clock_that_forgets_is_refused(about: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        AheadConfig(**about)
    assert AheadConfig(interval_s=60, season_s=7 * 86_400).ahead_s == 60


def test_without_requests_nothing_is_forecast() -> None:
    policy = Ahead(10.0, horizon=5, season=9)
    policy.look(Demand(1, 0.0), 0.0)
    policy.look(Demand(1, 0.0), 20.0)
    assert policy.concurrency == 0.0


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 20))
def test_the_forecast_only_adds_replicas(ongoing: float, ahead: float, target: float) -> None:
    demand = Demand(1, ongoing)
    now = wanted_replicas(demand, 0.0, target, None)
    assert wanted_replicas(demand, ahead, target, None) >= now


def context(**about: Any) -> Any:
    """What Serve hands to a policy."""
    plain = {
        "current_num_replicas": 1,
        "target_num_replicas": 1,
        "total_num_requests": 0.0,
        "aggregated_metrics": {},
        "current_time": 0.0,
    }
    return SimpleNamespace(**plain | about)


def test_the_policy_reads_what_replicas_report() -> None:
    reported = {RATE: {"a": 5.0, "b": 7.0}, LATENCY: {"a": 300.0, "b": 10.0}}
    asked = context(current_num_replicas=2, total_num_requests=9.0, aggregated_metrics=reported)
    assert ScalingPolicy(8, None, False)(asked) == (2, {})
    assert ScalingPolicy(8, 100.0, False)(asked) == (4, {})


@pytest.mark.parametrize(
    ("running", "reported", "wanted"),
    [
        (0, {}, 3),  # a controller that has just begun knows nobody
        (3, {}, 3),
        (3, {"a": 1.0, "b": 1.0}, 3),
        (3, {"a": 1.0, "b": 1.0, "c": 1.0}, 1),
    ],
)
def test_no_replica_is_stopped_before_all_have_reported(
    running: int, reported: dict[str, float], wanted: int
) -> None:
    asked = context(
        current_num_replicas=running, target_num_replicas=3, aggregated_metrics={RATE: reported}
    )
    assert ScalingPolicy(8, None, False)(asked) == (wanted, {})


def test_requests_that_serve_does_not_see_count_too() -> None:
    reported = {ONGOING: {"a": 20.0, "b": 12.0}}
    asked = context(current_num_replicas=2, total_num_requests=1.0, aggregated_metrics=reported)
    assert ScalingPolicy(8, None, False)(asked) == (4, {})


def test_the_policy_scales_ahead_of_a_rise() -> None:
    clock: dict[str, Any] = {"interval_s": 1.0, "ahead_s": 5.0, "season_s": 40.0}
    ahead, plain = ScalingPolicy(1, None, True, **clock), ScalingPolicy(1, None, False)
    made = []
    for i in range(160):
        rate = 40.0 if i % 40 >= 30 else 4.0
        asked = context(
            total_num_requests=0.1 * rate,
            aggregated_metrics={RATE: {"a": rate}},
            current_time=float(i),
        )
        made.append((ahead(asked)[0], plain(asked)[0]))
    assert all(mine >= other for mine, other in made)
    assert made[:80] == [(n, n) for _, n in made[:80]]
    assert [mine for mine, _ in made[3 * 40 + 20 : 3 * 40 + 30]] == [1] * 6 + [4] * 4
