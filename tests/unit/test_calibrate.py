"""Calibrated quantiles cover what they say, in order, for every series and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models import calibrate
from flts_ray.models.calibrate import (
    ResidualQuantiles,
    Volatility,
    apply_shift,
    fit_shift,
    local_scale,
    residual_quantiles,
    sample_origins,
    scaled_pinball,
    series_scale,
    volatilities,
)
from flts_ray.prepare.arrays import Windows, origins_in, windows_at
from tests.synthetic import seasonal_set

LEVELS = (0.1, 0.5, 0.9)


def rows_of(n: int, row: int = 0) -> np.ndarray:
    return np.full(n, row, dtype=np.int64)


def windows(lookback: int = 72, n: int = 5) -> Windows:
    data = seasonal_set()
    series, origins = origins_in(data, "validation", lookback, 6)
    return windows_at(data, series[:n], origins[:n], lookback, 6)


def test_bands_cover_new_draws_as_promised() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(1, 100, 2000)
    noise = rng.gumbel(size=(2000, 3)) * scale[:, None] * [1, 2, 3]
    seen, new = slice(0, 1000), slice(1000, 2000)
    mean = np.zeros((1000, 3))
    band = residual_quantiles(noise[seen], mean, scale[seen], rows_of(1000, -1), LEVELS)
    quantiles = band.apply(mean, scale[new], rows_of(1000, -1))
    covered = (noise[new, :, None] <= quantiles).mean(axis=0)
    np.testing.assert_allclose(covered, np.broadcast_to(LEVELS, (3, 3)), atol=0.04)


@pytest.mark.parametrize(
    ("level", "rank"), [(0.025, 5), (0.1, 20), (0.9, 180), (0.975, 195), (0.995, 199)]
)
def test_ranks_are_those_of_split_conformal_prediction(level: float, rank: int) -> None:
    scores = np.arange(1.0, 200.0)[:, None]
    band = residual_quantiles(scores, 0 * scores, np.ones(199), rows_of(199, -1), (level,))
    assert band.pooled[0, 0] == rank


def test_the_median_is_not_pushed_outwards() -> None:
    scores = np.arange(200.0)[:, None]
    band = residual_quantiles(scores, 0 * scores, np.ones(200), rows_of(200, -1), (0.5,))
    assert band.pooled[0, 0] == 99.5


def test_a_series_with_many_windows_has_its_own_table() -> None:
    rng = np.random.default_rng(1)
    rows = np.repeat([0, 3, 5], [600, 600, 50])
    noise = rng.standard_normal((1250, 2)) * np.where(rows == 3, 10.0, 1.0)[:, None]
    band = residual_quantiles(noise, 0 * noise, np.ones(1250), rows, LEVELS)
    assert band.owners.tolist() == [0, 3]
    asked = np.array([3, 5, 0, -1, 9])
    width = np.ptp(band.apply(np.zeros((5, 2)), np.ones(5), asked), axis=2)
    assert (width[0] > 5 * width[2]).all()
    np.testing.assert_array_equal(width[1], width[3])
    np.testing.assert_array_equal(width[1], width[4])
    assert (width[1] > width[2]).all() and (width[1] < width[0]).all()


def test_thin_steps_borrow_from_their_neighbours() -> None:
    scores = np.tile(np.arange(12.0), (40, 1))
    band = residual_quantiles(scores, 0 * scores, np.ones(40), rows_of(40, -1), LEVELS)
    # Five steps of forty windows are the 200 scores a quantile wants.
    assert band.pooled[6].tolist() == [4.0, 6.0, 8.0]
    assert band.pooled[0, 0] == 0.0 and band.pooled[11, 2] == 11.0


def test_missing_actuals_are_ignored() -> None:
    rng = np.random.default_rng(2)
    actual = rng.standard_normal((400, 2))
    actual[::2] = np.nan
    whole = residual_quantiles(
        actual[1::2], np.zeros((200, 2)), np.ones(200), rows_of(200, -1), LEVELS
    )
    holed = residual_quantiles(actual, np.zeros((400, 2)), np.ones(400), rows_of(400, -1), LEVELS)
    np.testing.assert_array_equal(whole.pooled, holed.pooled)
    nothing = fit_shift(actual[::2], np.zeros((200, 2, 3)), np.ones(200), LEVELS)
    assert not nothing.any()


def test_bands_come_back_from_their_arrays() -> None:
    noise = np.random.default_rng(3).standard_normal((600, 2))
    band = residual_quantiles(noise, 0 * noise, np.ones(600), rows_of(600), LEVELS)
    again = ResidualQuantiles.from_arrays(band.arrays())
    mean, scale = np.ones((4, 2)), np.arange(1.0, 5.0)
    np.testing.assert_array_equal(
        again.apply(mean, scale, rows_of(4)), band.apply(mean, scale, rows_of(4))
    )


def test_shift_repairs_quantiles_that_are_too_narrow() -> None:
    rng = np.random.default_rng(4)
    scale = rng.uniform(1, 10, 40_000)
    actual = rng.standard_normal((40_000, 2)) * scale[:, None]
    narrow = np.array([-0.1, 0.0, 0.1]) * np.ones((40_000, 2, 3)) * scale[:, None, None]
    shift = fit_shift(actual[:20_000], narrow[:20_000], scale[:20_000], LEVELS)
    assert shift.shape == (2, 3)
    fixed = apply_shift(narrow[20_000:], shift, scale[20_000:])
    covered = (actual[20_000:, :, None] <= fixed).mean(axis=0)
    np.testing.assert_allclose(covered, np.broadcast_to(LEVELS, (2, 3)), atol=0.02)


@given(st.integers(0, 2**32 - 1))
def test_shifted_quantiles_never_cross(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.standard_normal((7, 4, 3)), axis=-1)
    shift = rng.standard_normal((4, 3)) * 5
    assert (np.diff(apply_shift(quantiles, shift, rng.uniform(0.1, 9, 7)), axis=-1) >= 0).all()


def test_scale_of_a_known_series_is_the_trained_one() -> None:
    some, stats = windows(), seasonal_set().stats
    np.testing.assert_array_equal(series_scale(some, stats), stats.scale[[0] * 5])
    unlabelled = replace(some, scale=np.full(5, np.nan))
    np.testing.assert_array_equal(series_scale(unlabelled, stats), stats.scale[[0] * 5])


@pytest.mark.parametrize("lookback", [72, 12, 1])
def test_scale_of_an_unseen_series_follows_its_values(lookback: int) -> None:
    stats = seasonal_set().stats
    unseen = replace(windows(lookback), ids=("new",) * 5, scale=np.full(5, np.nan))
    scale = series_scale(unseen, stats)
    assert (scale > 0).all()
    larger = series_scale(replace(unseen, y=unseen.y * 100), stats)
    np.testing.assert_allclose(larger, 100 * scale)
    if lookback == 72:
        np.testing.assert_allclose(scale, stats.scale[0], rtol=0.5)


def test_a_flat_window_has_a_positive_scale() -> None:
    some = windows()
    flat = replace(some, ids=("new",) * 5, scale=np.full(5, np.nan), y=np.zeros_like(some.y))
    assert (series_scale(flat, seasonal_set().stats) > 0).all()


def test_local_scale_follows_the_recent_steps_only() -> None:
    some = windows()
    scale = np.ones(5)
    np.testing.assert_array_equal(local_scale(some, scale, Volatility(1, 12, 0.0)), scale)
    recent = Volatility(1, 12, 1.0)
    calm = local_scale(some, scale, recent)
    wild = some.y.copy()
    wild[0, -12:] *= np.tile([1, 3], 6)
    wild[1, :11] *= 3
    found = local_scale(replace(some, y=wild), scale, recent)
    assert found[0] > 2 * calm[0]
    np.testing.assert_array_equal(found[1:], calm[1:])


def test_seasonal_volatility_is_blind_to_what_repeats() -> None:
    some = windows()
    steps = np.arange(some.lookback)
    level = np.tile([0.0, 5.0, -5.0, 1.0], some.lookback)[steps] + (steps >= 16) * 0.3
    same = replace(some, y=np.tile(level, (5, 1)))
    found = local_scale(same, np.ones(5), Volatility(4, 8, 1.0))
    jumps = np.abs(level[4:] - level[:-4])[-8:].mean()
    np.testing.assert_allclose(found, max(jumps, 0.05))


def test_volatilities_need_room() -> None:
    plain = Volatility(1, 1, 0.0)
    assert volatilities(24, 100)[0] == plain
    assert {one.lag for one in volatilities(24, 191)} == {1}
    assert {one.lag for one in volatilities(24, 192)} == {1, 24}
    assert {one.lag for one in volatilities(1, 500)} == {1}


def test_sampled_origins_see_every_phase() -> None:
    data = seasonal_set(length=2000)
    series, origins = sample_origins(data, "train", 24, 6, 300)
    assert len(series) <= 300
    assert set(origins[series == 0] % 24) == set(range(24))


def test_more_series_than_windows_still_bounds_them() -> None:
    series, _ = sample_origins(seasonal_set(n_series=40), "train", 24, 6, 25)
    assert len(series) == 25
    assert len(set(series.tolist())) == 25


def test_scaled_pinball_ignores_what_is_missing() -> None:
    actual = np.array([[2.0, np.nan]])
    quantiles = np.zeros((1, 2, 1))
    assert scaled_pinball(actual, quantiles, np.array([4.0]), (0.5,)) == 0.25
    assert scaled_pinball(actual * np.nan, quantiles, np.array([4.0]), (0.5,)) == 0.0


def test_few_seasons_of_validation_count_as_short() -> None:
    assert calibrate.validation_is_short(seasonal_set(length=600))
    assert not calibrate.validation_is_short(seasonal_set(length=2000))
