from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flts_ray.config import Score
from flts_ray.errors import DataError
from flts_ray.evaluate import metrics
from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.models.losses import pinball as pinball_loss

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
ADDITIVE: tuple[Score, ...] = ("mae", "mase", "wape", "pinball", "scaled_pinball")
SCORES: tuple[Score, ...] = (*ADDITIVE, "rmse", "composite")

values = arrays(np.float64, (4, 3), elements=st.floats(-1e3, 1e3, width=32))
factors = st.floats(0.01, 100)


def some_backtest(seed: int, windows: int = 6, missing: float = 0.3) -> Backtest:
    rng = np.random.default_rng(seed)
    actual = 10 + rng.standard_normal((windows, 4))
    actual[rng.random(actual.shape) < missing] = np.nan
    actual[0, 0] = 10.0
    quantiles = np.sort(10 + rng.standard_normal((windows, 4, len(LEVELS))), axis=-1)
    return Backtest(
        origins=Origins(np.arange(windows) % 2, np.arange(windows)),
        origin_us=np.arange(windows) * 3_600_000_000,
        levels=LEVELS,
        mean=10 + rng.standard_normal((windows, 4)),
        quantiles=quantiles,
        actual=actual,
    )


def test_metrics_of_known_errors() -> None:
    actual = np.array([[10.0, 20.0], [np.nan, 30.0]])
    forecast = np.array([[11.0, 18.0], [99.0, 33.0]])
    scale = np.array([1.0, 3.0])
    assert metrics.rmse(actual, forecast) == pytest.approx(np.sqrt((1 + 4 + 9) / 3))
    assert metrics.mae(actual, forecast) == pytest.approx(2.0)
    assert metrics.wape(actual, forecast) == pytest.approx(6 / 60)
    assert metrics.mase(actual, forecast, scale) == pytest.approx((1 + 2 + 1) / 3)
    expected = 0.5 * np.sqrt((1 + 4 + 1) / 3) + 0.3 * 4 / 3 + 0.2 * (1 + 4 + 1) / 3
    assert metrics.composite(actual, forecast, forecast, scale) == pytest.approx(expected)


def test_pinball_of_known_errors() -> None:
    actual, quantiles = np.array([[10.0]]), np.array([[[8.0, 13.0]]])
    assert metrics.pinball(actual, quantiles, (0.1, 0.9)) == pytest.approx((0.2 + 0.3) / 2)
    scaled = metrics.overall(metrics.over_levels(actual, quantiles, (0.1, 0.9)) / 5.0)
    assert scaled == pytest.approx(0.05)


def test_bands_count_observed_values_and_include_their_ends() -> None:
    actual = np.array([[1.0, 2.0, np.nan, 4.0]])
    lower, upper = np.array([[1.0, 0.0, 0.0, 5.0]]), np.array([[1.5, 2.0, 100.0, 6.0]])
    assert metrics.coverage(actual, lower, upper) == pytest.approx(2 / 3)
    assert metrics.band_width(actual, lower, upper) == pytest.approx(3.5 / 3)


def test_groups_are_steps_and_series() -> None:
    actual = np.array([[0.0, 0.0], [0.0, np.nan], [0.0, 0.0]])
    forecast = np.array([[1.0, 2.0], [3.0, 9.0], [5.0, 6.0]])
    by_series = metrics.by_series(np.array([1, 1, 0]), 2)
    assert metrics.mae(actual, forecast, metrics.by_step).tolist() == [3.0, 4.0]
    assert metrics.mae(actual, forecast, by_series).tolist() == [5.5, 2.0]
    both = metrics.together(metrics.overall, metrics.by_step, by_series)
    assert metrics.mae(actual, forecast, both).tolist() == [3.4, 3.0, 4.0, 5.5, 2.0]


def test_groups_without_observed_values_are_nan() -> None:
    actual = np.array([[1.0, np.nan]])
    assert np.isnan(metrics.mae(actual, actual, metrics.by_step)).tolist() == [False, True]
    assert np.isnan(metrics.wape(np.zeros((1, 2)), np.ones((1, 2))))


@given(values, values, factors)
def test_mase_does_not_depend_on_the_unit(
    actual: np.ndarray, median: np.ndarray, factor: float
) -> None:
    scale = np.array([1.0, 2.0, 3.0, 4.0])
    same = metrics.mase(actual * factor, median * factor, scale * factor)
    assert same == pytest.approx(float(metrics.mase(actual, median, scale)), rel=1e-9)


@given(values, values)
def test_pinball_of_the_median_is_half_the_absolute_error(
    actual: np.ndarray, median: np.ndarray
) -> None:
    half = metrics.pinball(actual, median[..., None], (0.5,))
    assert half == pytest.approx(float(metrics.mae(actual, median)) / 2)


@given(values, values, values)
def test_coverage_is_a_share_and_a_wider_band_covers_no_less(
    actual: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> None:
    narrow = float(metrics.coverage(actual, lower, upper))
    wide = float(metrics.coverage(actual, lower - 1, upper + 1))
    assert 0 <= narrow <= wide <= 1


@given(values, values)
def test_rmse_is_at_least_the_mean_absolute_error(actual: np.ndarray, other: np.ndarray) -> None:
    assert float(metrics.rmse(actual, other)) >= float(metrics.mae(actual, other)) * (1 - 1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from(SCORES))
def test_window_scores_average_to_the_overall_score(seed: int, score: Score) -> None:
    bt, scale = some_backtest(seed), np.array([0.5, 3.0])
    each = scale[bt.origins.series]
    overall = {
        "rmse": metrics.rmse(bt.actual, bt.mean),
        "mae": metrics.mae(bt.actual, bt.median),
        "wape": metrics.wape(bt.actual, bt.median),
        "mase": metrics.mase(bt.actual, bt.median, each),
        "pinball": metrics.pinball(bt.actual, bt.quantiles, LEVELS),
        "scaled_pinball": metrics.overall(
            metrics.over_levels(bt.actual, bt.quantiles, LEVELS) / each[:, None]
        ),
        "composite": metrics.composite(bt.actual, bt.mean, bt.median, each),
    }[score]
    found = metrics.window_scores(bt, scale, score)
    assert found.shape == (len(bt),)
    assert found.mean() == pytest.approx(float(overall))


@pytest.mark.parametrize("score", SCORES)
def test_a_window_of_larger_errors_scores_worse(score: Score) -> None:
    bt = some_backtest(0, missing=0.0)
    bt.quantiles[3] += 20
    bt.mean[3] += 20
    found = metrics.window_scores(bt, np.ones(2), score)
    assert np.argmax(found) == 3


def test_a_perfect_forecast_scores_zero() -> None:
    bt = some_backtest(1, missing=0.0)
    bt.mean[:] = bt.actual
    assert metrics.window_scores(bt, np.ones(2), "rmse").tolist() == [0.0] * len(bt)


@pytest.mark.parametrize("score", SCORES)
def test_an_undefined_score_is_an_error(score: Score) -> None:
    bt = some_backtest(1)
    bt.actual[:] = np.nan
    with pytest.raises(DataError, match=score):
        metrics.window_scores(bt, np.ones(2), score)


def test_wape_of_zeros_is_an_error() -> None:
    bt = some_backtest(1)
    bt.actual[:] = 0.0
    with pytest.raises(DataError, match="only zeros"):
        metrics.window_scores(bt, np.ones(2), "wape")


@pytest.mark.parametrize("score", SCORES)
def test_windows_scored_in_parts_score_as_together(score: Score) -> None:
    bt, scale = some_backtest(3, windows=11), np.array([0.5, 3.0])
    parts = [
        replace(
            bt,
            origins=bt.origins.part(rows),
            origin_us=bt.origin_us[rows],
            mean=bt.mean[rows],
            quantiles=bt.quantiles[rows],
            actual=bt.actual[rows],
        )
        for rows in (slice(0, 4), slice(4, 5), slice(5, 11))
    ]
    joined = metrics.WindowLosses.joined([metrics.WindowLosses.of(p, scale, score) for p in parts])
    whole = metrics.window_scores(bt, scale, score)
    assert joined.scores().tobytes() == whole.tobytes()


def test_losses_of_all_levels_do_not_depend_on_how_many_windows_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bt = some_backtest(5, windows=9)
    whole = pinball_loss(bt.actual, bt.quantiles, LEVELS).mean(axis=-1)
    for at_once in (1, 4, 100):
        monkeypatch.setattr(metrics, "WINDOWS_AT_ONCE", at_once)
        found = metrics.over_levels(bt.actual, bt.quantiles, LEVELS)
        assert found.tobytes() == whole.tobytes()
