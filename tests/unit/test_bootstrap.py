from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.evaluate.bootstrap import (
    block_length,
    cluster_by_instant,
    overlap,
    paired_block_bootstrap,
)

HOUR_US = 3_600_000_000


def test_equal_models_have_even_odds() -> None:
    found = paired_block_bootstrap(np.zeros(50), 4)
    assert found.p_value == pytest.approx(0.5)
    assert (found.mean, found.lower, found.upper, found.n) == (0.0, 0.0, 0.0, 50)


@pytest.mark.parametrize("block", [1, 3, 10])
def test_a_clear_difference_has_a_tiny_p(block: int) -> None:
    noise = np.random.default_rng(0).standard_normal(100)
    better = paired_block_bootstrap(noise - 2.0, block)
    assert better.p_value < 0.001 and better.upper < 0
    worse = paired_block_bootstrap(noise + 2.0, block)
    assert worse.p_value > 0.999 and worse.lower > 0


def test_p_values_are_about_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(7)
    p = [paired_block_bootstrap(rng.standard_normal(60), 4, 200, s).p_value for s in range(400)]
    assert 0.42 < np.mean(p) < 0.58
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.10
    assert 0.15 < np.mean(np.array(p) > 0.75) < 0.35


def test_blocks_keep_the_null_where_windows_overlap() -> None:
    def rejected(block: int) -> float:
        rng = np.random.default_rng(3)
        rows = [np.convolve(rng.standard_normal(211), np.ones(12), "valid") for _ in range(300)]
        p = [paired_block_bootstrap(row, block, 200, s).p_value for s, row in enumerate(rows)]
        return float(np.mean(np.array(p) < 0.05))

    assert rejected(1) > 0.25
    assert rejected(24) < 0.13


@given(st.integers(0, 1000), st.floats(-1, 1))
def test_the_interval_and_the_p_value_agree(seed: int, shift: float) -> None:
    difference = np.random.default_rng(seed).standard_normal(40) * 2 + shift
    found = paired_block_bootstrap(difference, 3, 500, seed)
    assert found.lower <= found.mean <= found.upper
    if abs(found.p_value - 0.05) > 0.005:
        assert (found.upper < 0) == (found.p_value < 0.05)


def test_the_seed_decides_the_result() -> None:
    difference = np.random.default_rng(1).standard_normal(40)
    one, again, other = (paired_block_bootstrap(difference, 3, 500, s) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_weights_make_the_mean_over_windows() -> None:
    difference, weights = np.array([1.0, -1.0] * 10), np.array([1.0, 3.0] * 10)
    assert paired_block_bootstrap(difference, 2, weights=weights).mean == pytest.approx(-0.5)


@pytest.mark.parametrize("block", [0, 6])
def test_a_block_must_fit_twice(block: int) -> None:
    with pytest.raises(DataError, match="does not fit twice into 11"):
        paired_block_bootstrap(np.zeros(11), block)


def test_differences_must_be_finite() -> None:
    with pytest.raises(DataError, match="1 of 11 differences"):
        paired_block_bootstrap(np.array([np.nan] + [0.0] * 10), 2)


def test_windows_of_one_instant_are_one_observation() -> None:
    cluster = cluster_by_instant(np.array([7, 3, 7]), np.array([1.0, 5.0, 2.0]))
    assert cluster.instants.tolist() == [3, 7]
    assert cluster.values.tolist() == [5.0, 1.5]
    assert cluster.weights.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("stride", "expected"), [(24, 1), (30, 1), (12, 2), (7, 4), (1, 24)])
def test_overlap_counts_origins_within_a_horizon(stride: int, expected: int) -> None:
    assert overlap(np.arange(60) * stride * HOUR_US, 24, HOUR_US) == expected


def test_a_day_of_23_hours_is_no_overlap() -> None:
    hours = np.array([0, 24, 47, 71])
    assert overlap(hours * HOUR_US, 1, 24 * HOUR_US) == 1


def test_blocks_span_two_horizons_where_windows_overlap() -> None:
    assert block_length(np.arange(64) * 24 * HOUR_US, 24, HOUR_US) == 4
    assert block_length(np.arange(64) * 6 * HOUR_US, 24, HOUR_US) == 8
    assert block_length(np.arange(1000) * 24 * HOUR_US, 24, HOUR_US) == 10
