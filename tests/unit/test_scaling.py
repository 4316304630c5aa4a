from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.serve.scaling import (
    LATENCY,
    LEAST,
    MOST_GROWTH,
    RATE,
    Ahead,
    Demand,
    forecast_counts,
    reactive,
    wanted_replicas,
)
from flts_ray.serve.scaling_policy import INTERVAL_S, ScalingPolicy


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
    return policy.concurrency()


def test_concurrency_is_forecast_from_rate_and_time_in_the_system() -> None:
    coming = rising(Ahead(10.0, horizon=5), 80)
    assert coming == pytest.approx(0.1 * 83, rel=0.1)


def test_without_requests_nothing_is_forecast() -> None:
    policy = Ahead(10.0, horizon=5)
    policy.look(Demand(1, 0.0), 0.0)
    policy.look(Demand(1, 0.0), 20.0)
    assert policy.concurrency() == 0.0


@given(st.floats(0, 500), st.floats(0, 500), st.floats(1, 20))
def test_the_forecast_only_adds_replicas(ongoing: float, ahead: float, target: float) -> None:
    demand = Demand(1, ongoing)
    now = wanted_replicas(demand, 0.0, target, None)
    assert wanted_replicas(demand, ahead, target, None) >= now


def context(**about: Any) -> Any:
    """What Serve hands to a policy."""
    plain = {
        "current_num_replicas": 1,
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


def test_the_policy_scales_ahead_of_a_rise() -> None:
    ahead, plain = ScalingPolicy(1, None, True), ScalingPolicy(1, None, False)
    made = []
    for i in range(80):
        reported = {RATE: {"a": float(i)}}
        asked = context(
            total_num_requests=0.5 * i, aggregated_metrics=reported, current_time=INTERVAL_S * i
        )
        made.append((ahead(asked)[0], plain(asked)[0]))
    assert all(mine >= other for mine, other in made)
    assert made[-1][0] > made[-1][1]
