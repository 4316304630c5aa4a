"""Weights are honest: never worse where they are learned, judged where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.evaluate import selection
from flts_ray.evaluate.bench import Bench, Errors
from flts_ray.evaluate.greedy import greedy
from flts_ray.evaluate.metrics import window_scores
from flts_ray.evaluate.selection import paying, select, time_blocks
from tests.unit.test_bench import STEP_US, noisy_bench

NO_OVERLAP = 4 * STEP_US


def test_blocks_cover_all_windows_and_share_no_value_with_what_is_learned_from() -> None:
    origin_us = np.tile(np.arange(0, 500, 5), 2) * STEP_US
    blocks = time_blocks(origin_us, 20 * STEP_US)
    assert len(blocks) == selection.BLOCKS
    assert (np.sum([block.held for block in blocks], axis=0) == 1).all()
    for block in blocks:
        held, train = origin_us[block.held], origin_us[block.train]
        assert np.abs(held[:, None] - train).min() >= 20 * STEP_US
    assert time_blocks(origin_us, 500 * STEP_US) == []
    assert time_blocks(origin_us[:1], STEP_US) == []


def test_series_that_differ_get_weights_of_their_own() -> None:
    bench = noisy_bench(np.array([[0.3, 1.5, 0.3], [1.5, 0.3, 1.5]]), n=200)
    found = select(bench, "scaled_pinball", 4, NO_OVERLAP, per_series=True)
    assert found is not None
    own = found.weights[found.row_of_series]
    assert own[1, 1] > 0.7
    assert (own[[0, 2], 0] > 0.7).all()
    np.testing.assert_allclose(own.sum(axis=1), 1.0)
    assert (found.mean_weights == found.mean_weights[0]).all()
    shared = select(bench, "scaled_pinball", 4, NO_OVERLAP, per_series=False)
    assert shared is not None
    assert not shared.row_of_series.any()
    scores = [
        window_scores(one.judged, bench.series_scale, "scaled_pinball").mean()
        for one in (found, shared)
    ]
    assert scores[0] < scores[1]


@pytest.mark.parametrize("seed", range(5))
def test_equal_series_keep_the_weights_of_all(seed: int) -> None:
    bench = noisy_bench(np.ones((3, 8)), n=100, seed=seed)
    found = select(bench, "rmse", 4, NO_OVERLAP, per_series=True)
    assert found is not None
    assert (found.row_of_series > 0).sum() <= 1


def with_good_means(bench: Bench, model: int) -> Bench:
    """The same, but one model's means hit; its quantiles stay as they are."""
    one = bench.backtests[model]
    one.mean[:] += 0.9 * np.nan_to_num(one.actual - one.mean)
    return bench


def test_means_and_quantiles_are_chosen_by_their_own_losses() -> None:
    bench = with_good_means(noisy_bench(np.array([[0.3], [1.5]]), n=200), 1)
    for score in ("scaled_pinball", "rmse", "mae"):
        found = select(bench, score, 2, NO_OVERLAP, per_series=False)
        assert found is not None
        assert found.weights[0, 0] > 0.8
        assert found.mean_weights[0, 1] > 0.7
        mixture = bench.mixed(found.weights[0], found.mean_weights[0])
        np.testing.assert_allclose(found.judged.mean, mixture.mean, atol=0.2)
    both = select(bench, "composite", 2, NO_OVERLAP, per_series=False)
    assert both is not None
    np.testing.assert_array_equal(both.weights, both.mean_weights)


def test_what_is_reported_was_learned_without_the_block() -> None:
    """A model that is perfect in one block alone wins nothing there."""
    bench = noisy_bench(np.array([[1.0], [1.0]]), n=100, gaps=0.0)
    late = bench.origin_us >= np.quantile(bench.origin_us, 0.85)
    second = bench.backtests[1]
    second.mean[late] = second.actual[late]
    second.quantiles[late] = second.actual[late][..., None]
    found = select(bench, "rmse", 2, NO_OVERLAP, per_series=False)
    assert found is not None
    edge = time_blocks(bench.origin_us, NO_OVERLAP)[-1]
    errors = Errors.of(bench, "rmse").part(edge.train)
    seen = errors.values.shape[1]
    weights = greedy(errors, np.zeros(seen, np.int64), 1, np.arange(2), 2)[0]
    expected = bench.mixed(weights).mean[edge.held]
    np.testing.assert_allclose(found.judged.mean[edge.held], expected)
    assert found.mean_weights[0, 1] > weights[1]


def test_bands_are_corrected_where_that_holds_on_other_blocks() -> None:
    bench = noisy_bench(np.array([[1.0]]).repeat(2, axis=0), n=300)
    two = bench.backtests[1]
    two.mean[:], two.quantiles[:] = bench.backtests[0].mean, bench.backtests[0].quantiles
    assert np.abs(select_shift(bench)).max() < 0.35
    for one in bench.backtests:
        centre = one.mean[..., None]
        one.quantiles[:] = centre + 0.2 * (one.quantiles - centre)
    shift = select_shift(bench)
    assert (shift[:, 0] < -0.5).all()
    assert (shift[:, -1] > 0.5).all()


def select_shift(bench: Bench) -> np.ndarray:
    found = select(bench, "scaled_pinball", 2, NO_OVERLAP, per_series=False)
    assert found is not None
    return found.shift


def test_windows_that_overlap_correct_bands_as_few_do() -> None:
    bench = noisy_bench(np.array([[1.0]]).repeat(2, axis=0), n=60)
    for one in bench.backtests:
        centre = one.mean[..., None]
        one.quantiles[:] = centre + 0.2 * (one.quantiles - centre)
    apart = [
        replace(one, origins=replace(one.origins, positions=4 * one.origins.positions))
        for one in bench.backtests
    ]
    overlapping, free = select_shift(bench), select_shift(replace(bench, backtests=tuple(apart)))
    assert (overlapping[:, -1] >= free[:, -1]).all()
    assert (overlapping[:, -1] > free[:, -1]).any()


def test_too_short_a_time_gives_nothing() -> None:
    bench = noisy_bench(np.ones((2, 1)))
    assert select(bench, "mae", 2, 60 * STEP_US, per_series=True) is None


def test_one_model_that_is_best_everywhere_stays_single() -> None:
    bench = noisy_bench(np.array([[0.05], [5.0]]), n=200)
    found = select(bench, "mae", 2, NO_OVERLAP, per_series=True)
    assert found is not None
    assert found.single


def gains(mean: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    """Series that pay, if each block's gains are the mean and noise."""
    rng = np.random.default_rng(seed)
    blocks, n = 5, len(mean)
    series = np.tile(np.arange(n), blocks)
    block = np.repeat(np.arange(blocks), n)
    gain = mean[series] + noise * rng.standard_normal(len(series))
    held = [block == b for b in range(blocks)]
    return paying(gain, np.ones(len(series)), series, held, n)


def test_gains_are_shrunk_towards_the_mean_of_all() -> None:
    mixed = np.array([0.2, 0.2, -0.2, -0.2])
    assert gains(mixed, 0.01).tolist() == [True, True, False, False]
    few = np.r_[-0.05, np.full(29, 0.05)]
    assert gains(few, 0.3, seed=1)[0] == gains(few, 0.3, seed=1)[1]
    assert not gains(np.full(20, -0.05), 0.1).any()
    assert gains(np.full(20, 0.05), 0.1).all()


def test_a_series_seen_in_one_block_does_not_pay() -> None:
    series = np.array([0, 0, 1])
    held = [np.array([True, False, True]), np.array([False, True, False])]
    assert paying(np.ones(3), np.ones(3), series, held, 2).tolist() == [True, False]
