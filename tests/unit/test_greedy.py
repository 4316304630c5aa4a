"""Weights are never worse than the best single model where they are learned."""

from __future__ import annotations

from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.config import Score
from flts_ray.evaluate.bench import Errors
from flts_ray.evaluate.greedy import Reads, greedy, learn
from tests.unit.test_bench import noisy_bench


@settings(max_examples=40, deadline=None)
@given(
    noise=st.lists(st.floats(0.2, 3.0), min_size=2, max_size=5),
    score=st.sampled_from(get_args(Score)),
    most=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_a_bag_is_never_worse_than_the_best_single_model(
    noise: list[float], score: Score, most: int, seed: int
) -> None:
    bench = noisy_bench(np.array(noise)[:, None].repeat(2, 1), n=15, seed=seed)
    errors = Errors.of(bench, score)
    group = bench.origins.series
    found = greedy(errors, group, 2, np.arange(len(noise)), most)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert ((found > 0).sum(axis=1) <= most).all()
    alone = np.min([errors.loss(one, group, 2) for one in errors.values], axis=0)
    rows = found[group].T[:, :, None, None].astype(np.float32)
    mixed = errors.loss((rows * errors.values).sum(axis=0), group, 2)
    assert (mixed <= alone * (1 + 1e-5)).all()


def test_independent_misses_share_the_weight_and_a_bad_model_gets_none() -> None:
    bench = noisy_bench(np.array([[1.0], [1.0], [1.0], [9.0]]), n=400)
    errors = Errors.of(bench, "rmse")
    weights = greedy(errors, np.zeros(400, np.int64), 1, np.arange(4), 4)[0]
    np.testing.assert_allclose(weights[:3], 1 / 3, atol=0.08)
    assert weights[3] < 0.03


def test_only_the_pool_is_drawn_from() -> None:
    bench = noisy_bench(np.array([[0.1], [1.0], [1.0]]))
    errors = Errors.of(bench, "mae")
    weights = greedy(errors, np.zeros(60, np.int64), 1, np.array([1, 2]), 4)[0]
    assert weights[0] == 0
    assert (weights[1:] > 0).all()


def test_a_series_with_few_windows_keeps_the_weights_of_all() -> None:
    bench = noisy_bench(np.array([[0.2, 2.0], [2.0, 0.2]]))
    reads, series = Reads.of(bench, "mase"), bench.origins.series
    everywhere = np.ones(len(bench), dtype=bool)
    found = learn(reads, everywhere, series, 3, 2, own=True)
    assert found.own[0, 0] > 0.8
    assert found.own[1, 1] > 0.8
    np.testing.assert_array_equal(found.own[2], found.weights)
    alone = learn(reads, everywhere, series, 3, 2, own=False)
    np.testing.assert_array_equal(alone.own, np.stack([found.weights] * 3))
