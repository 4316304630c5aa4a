"""A challenger gets its share of the series, and goes when it is worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config import parse_config
from flts_ray.config_serve import CanaryConfig
from flts_ray.errors import ConfigError
from flts_ray.serve.challenge import Standing, belongs_to_challenger, why_dropped

RULES = CanaryConfig(share=0.1, max_error_ratio=1.2, max_latency_ratio=3.0, min_windows=50)


def standing(errors: Iterable[float], seconds: Sequence[float] = ()) -> Standing:
    found = Standing()
    for error in errors:
        found.error.add(error)
    for one in seconds:
        found.latency.add(one)
    return found


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_series_keeps_its_side_while_the_share_grows(name: str, one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert not belongs_to_challenger(name, 0.0)
    assert belongs_to_challenger(name, 1.0)
    assert belongs_to_challenger(name, low) <= belongs_to_challenger(name, high)


def test_the_share_is_the_share() -> None:
    hits = sum(belongs_to_challenger(f"cell-{i}", 0.05) for i in range(20_000))
    assert hits == pytest.approx(1000, abs=4 * np.sqrt(950))


def test_a_worse_challenger_is_dropped_and_says_why() -> None:
    rng = np.random.default_rng(0)
    champion, worse = rng.uniform(0.5, 1.5, 200), rng.uniform(1.0, 2.5, 200)
    reason = why_dropped(standing(champion), standing(worse), RULES)
    assert reason is not None and "1.2 times" in reason
    assert why_dropped(standing(champion), standing(champion), RULES) is None
    assert why_dropped(standing(worse), standing(champion), RULES) is None


def test_a_few_or_doubtful_windows_drop_nobody() -> None:
    rng = np.random.default_rng(1)
    champion = rng.uniform(0.5, 1.5, 200)
    assert why_dropped(standing(champion), standing([9.0] * 49), RULES) is None
    wild = [0.1] * 58 + [40.0] * 2  # twice the champion's mean, by two windows alone
    assert why_dropped(standing(champion), standing(wild), RULES) is None


def test_a_slow_challenger_is_dropped() -> None:
    quick, slow = standing([], [0.01] * 60), standing([], [0.05] * 60)
    reason = why_dropped(quick, slow, RULES)
    assert reason is not None and "50.0 ms" in reason
    assert why_dropped(slow, quick, RULES) is None
    assert why_dropped(quick, standing([], [0.05] * 10), RULES) is None


def test_one_answer_that_was_held_up_drops_nobody() -> None:
    quick, held_up = standing([], [0.002] * 60), standing([], [0.002] * 59 + [0.5])
    assert held_up.latency.mean > 3 * quick.latency.mean
    assert why_dropped(quick, held_up, RULES) is None


def test_held_up_answers_of_the_champion_hide_no_slow_challenger() -> None:
    champion, slow = standing([], [0.004] * 59 + [0.5]), standing([], [0.02] * 60)
    assert slow.latency.mean < 3 * champion.latency.mean
    reason = why_dropped(champion, slow, RULES)
    assert reason is not None and "typically take 20.0 ms, the champion's 4.3 ms" in reason
    assert why_dropped(slow, champion, RULES) is None


def test_a_challenger_that_is_often_held_up_is_dropped() -> None:
    """Three of four answers are as quick as the champion's; their typical time is near its own."""
    champion, uneven = standing([], [0.004] * 100), standing([], [0.004, 0.004, 0.004, 0.1] * 25)
    assert uneven.latency.typical < 3 * champion.latency.typical
    reason = why_dropped(champion, uneven, RULES)
    assert reason is not None and "take 28.0 ms" in reason


def test_share_and_shadow_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"either `share` .* or `shadow`"):
        parse_config(
            {
                "name": "x",
                "data": {"path": "x"},
                "serve": {"canary": {"share": 0.1, "shadow": True}},
            }
        )
