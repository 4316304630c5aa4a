"""Mixtures of stored forecasts, and losses that order them as the score does."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from flts_ray.config import Score
from flts_ray.evaluate.backtest import Backtest, Origins, backtest, choose_origins
from flts_ray.evaluate.bench import Bench, Errors, bench_of
from flts_ray.evaluate.metrics import window_scores
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.blend import WeightTable, blend_of
from tests.synthetic import seasonal_set

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
STEP_US = 3_600_000_000


def noisy_bench(
    noise: np.ndarray, n: int = 60, steps: int = 4, gaps: float = 0.1, seed: int = 0
) -> Bench:
    """Models that miss what happened by noise of their own; noise: [M, S], of each series."""
    rng = np.random.default_rng(seed)
    n_series = noise.shape[1]
    series = np.repeat(np.arange(n_series), n)
    positions = np.tile(np.arange(n), n_series)
    scale = 10.0 ** np.arange(n_series)
    truth = scale[series, None] * rng.standard_normal((len(series), steps))
    actual = np.where(rng.random(truth.shape) < gaps, np.nan, truth)
    normal = np.array([-1.96, -1.28, 0.0, 1.28, 1.96])
    found = []
    for row in noise:
        spread = (row * scale)[series, None]
        mean = truth + spread * rng.standard_normal(truth.shape)
        quantiles = mean[..., None] + spread[..., None] * normal
        origins = Origins(series, positions)
        found.append(Backtest(origins, positions * STEP_US, LEVELS, mean, quantiles, actual))
    names = tuple(f"m{i}" for i in range(len(noise)))
    return Bench(names, tuple(found), scale[series], scale)


@pytest.mark.parametrize("score", get_args(Score))
def test_losses_order_mixtures_as_the_score_does(score: Score) -> None:
    bench = noisy_bench(np.array([[0.5, 1.0], [1.0, 0.5], [0.8, 0.8]]))
    errors = Errors.of(bench, score)
    rng = np.random.default_rng(1)
    everyone = np.zeros(len(bench), dtype=np.int64)
    mine, official = [], []
    for weights in rng.dirichlet(np.ones(3), 30):
        mixture = np.tensordot(weights.astype(np.float32), errors.values, 1)
        mine.append(errors.loss(mixture, everyone, 1)[0])
        scores = window_scores(bench.mixed(weights), bench.series_scale, score)
        official.append(scores.mean())
    np.testing.assert_array_equal(np.argsort(mine), np.argsort(official))


@pytest.mark.parametrize("score", ["scaled_pinball", "mae", "mase", "pinball"])
def test_losses_are_the_score_where_that_is_an_average(score: Score) -> None:
    bench = noisy_bench(np.array([[0.5, 1.0], [1.0, 0.5]]))
    errors = Errors.of(bench, score)
    group = bench.origins.series
    found = errors.loss(errors.values[0], np.zeros_like(group), 1)
    expected = window_scores(bench.backtests[0], bench.series_scale, score).mean()
    assert found[0] == pytest.approx(expected, rel=1e-5)
    one, two = errors.loss(errors.values[0], group, 2)
    assert one != two
    half = errors.part(group == 1)
    assert half.loss(half.values[0], group[group == 1] - 1, 1)[0] == pytest.approx(two)


def test_a_mixture_of_stored_forecasts_is_what_the_blend_forecasts() -> None:
    data, task = seasonal_set(length=300), Task(6, LEVELS)
    members = {kind: fit_fully(kind, data, task) for kind in ("seasonal_naive", "ar")}
    lookback = max(one.spec.lookback for one in members.values())
    origins = choose_origins(data, "validation", lookback, 6)
    bench = bench_of(members, data, origins)
    weights = np.array([0.25, 0.75])
    table = WeightTable.of(weights[None], np.zeros(3), np.zeros((6, 5)))
    expected = backtest(blend_of(list(members.items()), table), data, origins)
    found = bench.mixed(weights)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.quantiles, expected.quantiles, rtol=1e-12)
    rows = np.broadcast_to(weights, (len(bench), 2))
    assert bench.mixed(rows).mean.tobytes() == found.mean.tobytes()
