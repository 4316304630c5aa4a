"""Calibrated quantiles cover what they say, in order, for every series and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.calibrate import (
    ResidualQuantiles,
    apply_shift,
    fit_shift,
    residual_quantiles,
    sample_origins,
    scaled_pinball,
    series_scale,
    share_apart,
)
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
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


@pytest.mark.parametrize("weight", [1.0, 0.05])
def test_the_median_is_not_pushed_outwards(weight: float) -> None:
    scores = np.arange(200.0)[:, None]
    band = residual_quantiles(scores, 0 * scores, np.ones(200), rows_of(200, -1), (0.5,), weight)
    assert band.pooled[0, 0] == 99.5


def test_windows_that_overlap_are_corrected_as_the_few_that_do_not() -> None:
    scores = np.arange(1.0, 1001.0)[:, None]
    nothing, unit = 0 * scores, np.ones(1000)
    all_apart = residual_quantiles(scores, nothing, unit, rows_of(1000, -1), LEVELS)
    ten_apart = residual_quantiles(scores, nothing, unit, rows_of(1000, -1), LEVELS, 0.01)
    assert ten_apart.pooled[0].tolist() == [60.0, 500.5, 941.0]
    assert all_apart.pooled[0].tolist() == [100.0, 500.5, 901.0]


def test_earlier_steps_overlap_less() -> None:
    scores = np.tile(np.arange(1.0, 1001.0)[:, None], (1, 20))
    band = residual_quantiles(
        scores, 0 * scores, np.ones(1000), rows_of(1000, -1), (0.1, 0.9), 0.01
    )
    assert (np.diff(band.pooled[:, 1]) >= 0).all()
    assert band.pooled[0, 1] < band.pooled[19, 1]


def test_few_scores_give_their_extremes() -> None:
    scores = np.array([[3.0], [1.0], [2.0]])
    band = residual_quantiles(scores, 0 * scores, np.ones(3), rows_of(3, -1), (0.025, 0.5, 0.975))
    assert band.pooled[0].tolist() == [1.0, 2.0, 3.0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3]))
def test_ties_and_heavy_tails_keep_quantiles_in_order(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.standard_t(1.5, (60, 3)), decimals)
    band = residual_quantiles(scores, 0 * scores, np.ones(60), rows_of(60, -1), LEVELS, 0.3)
    assert np.isfinite(band.pooled).all()
    assert (np.diff(band.pooled, axis=-1) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("draw", ["normal", "heavy", "ties"])
def test_exchangeable_scores_cover_within_chance(draw: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = {
        "normal": rng.standard_normal((6000, 4)),
        "heavy": rng.standard_t(2, (6000, 4)),
        "ties": rng.integers(0, 50, (6000, 4)).astype(np.float64),
    }[draw]
    seen, new = noise[:3000], noise[3000:]
    levels = (0.025, 0.1, 0.9, 0.975)
    band = residual_quantiles(seen, 0 * seen, np.ones(3000), rows_of(3000, -1), levels)
    quantiles = band.apply(0 * new, np.ones(3000), rows_of(3000, -1))
    for low, high, wanted in ((1, 2, 0.8), (0, 3, 0.95)):
        inside = (new >= quantiles[..., low]) & (new <= quantiles[..., high])
        # Four standard errors of both samples; a band that ends on ties holds them whole.
        slack = 4 * np.sqrt(2 * wanted * (1 - wanted) / 3000)
        assert (inside.mean(axis=0) >= wanted - slack).all()
        assert (inside.mean(axis=0) <= wanted + slack + 0.04 * (draw == "ties")).all()


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


SPANS = ("train", "validation", "test")


def set_of(lengths: np.ndarray, season: int = 24, seed: int | None = None) -> SeriesArrays:
    """Series of these lengths, split 60/20/20 %; with gaps where there is a seed."""
    rng, rows = np.random.default_rng(seed), int(lengths.sum())
    small = seasonal_set(n_series=len(lengths), length=60, covariates=False)
    y, observed = np.zeros(rows), np.ones(rows, dtype=bool)
    if seed is not None:
        y[rng.random(rows) < 0.01] = np.nan
        observed = ~np.isnan(y) & (rng.random(rows) < 0.7)
    return replace(
        small,
        contract=replace(small.contract, season=season),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        train_end=(lengths * 0.6).astype(np.int64),
        valid_end=(lengths * 0.8).astype(np.int64),
        y=y,
        observed=observed,
    )


SETS = st.lists(st.integers(0, 300), min_size=1, max_size=12).map(np.array)


@given(SETS, st.integers(0, 50), st.integers(1, 30), st.integers(1, 400), st.sampled_from(SPANS))
def test_a_sample_holds_as_many_origins_as_it_may(
    lengths: np.ndarray, lookback: int, horizon: int, most: int, span: str
) -> None:
    data = set_of(lengths)
    every = list(zip(*origins_in(data, span, lookback, horizon), strict=True))
    series, origins = sample_origins(data, span, lookback, horizon, most)
    assert series.dtype == origins.dtype == np.int64
    found = list(zip(series, origins, strict=True))
    assert len(found) == min(most, len(every))
    assert found == sorted(set(found))
    assert set(found) <= set(every)
    if len(every) <= most:
        assert found == every


@given(SETS, st.integers(1, 400))
def test_each_series_has_its_share_of_a_sample(lengths: np.ndarray, most: int) -> None:
    data = set_of(lengths)
    counts = np.bincount(origins_in(data, "train", 24, 6)[0], minlength=len(lengths))
    if not counts.any():
        return
    series, _ = sample_origins(data, "train", 24, 6, most)
    share = counts * (len(series) / counts.sum())
    assert np.abs(np.bincount(series, minlength=len(lengths)) - share).max() < 2


@given(SETS, st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from(SPANS))
def test_a_sample_leaves_out_what_is_not_usable(
    lengths: np.ndarray, seed: int, most: int, span: str
) -> None:
    whole, gaps = set_of(lengths), set_of(lengths, seed=seed)
    usable = set(zip(*origins_in(gaps, span, 12, 6), strict=True))
    fits = len(origins_in(whole, span, 12, 6)[0])
    drawn = zip(*sample_origins(whole, span, 12, 6, most), strict=True)
    expected = [one for one in drawn if one in usable] if fits > most else sorted(usable)
    assert list(zip(*sample_origins(gaps, span, 12, 6, most), strict=True)) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([2, 7, 24, 48, 96, 168, 336, 720, 1440]),
    st.floats(1.05, 10.0),
    st.integers(1, 3),
)
def test_a_sample_meets_every_phase_of_the_season(season: int, ratio: float, n: int) -> None:
    most = 50 * season
    data = set_of(np.full(n, int((most * ratio / n + 30) / 0.6) + 2), season)
    _, every = origins_in(data, "train", 24, 6)
    _, origins = sample_origins(data, "train", 24, 6, most)
    assert len(origins) == most < len(every)
    expected = np.bincount(every % season, minlength=season) * (most / len(every))
    np.testing.assert_allclose(np.bincount(origins % season, minlength=season), expected, rtol=0.2)


@settings(max_examples=60, deadline=None)
@given(st.integers(150, 600), st.integers(50, 140))
def test_of_many_series_windows_come_from_every_time(length: int, n_series: int) -> None:
    """Of each series two windows, or one of some: they lie at different places of the span."""
    data = set_of(np.full(n_series, length))
    _, origins = sample_origins(data, "train", 24, 6, 80)
    assert len(origins) == 80
    counts, _ = np.histogram(origins, bins=4, range=(24, int(data.train_end[0]) - 5))
    assert counts.min() >= 10 and counts.max() <= 30
    assert len(set(origins % 24)) > 16


def test_more_series_than_windows_still_bounds_them() -> None:
    series, _ = sample_origins(seasonal_set(n_series=40), "train", 24, 6, 25)
    assert len(series) == 25
    assert np.bincount(series).max() <= 2 and len(set(series.tolist())) >= 20


def test_targets_that_overlap_count_by_what_they_add() -> None:
    """Steps that targets cover, in horizons: equal distances, unequal ones, and a gap."""
    assert share_apart(np.zeros(5, int), np.arange(5) * 3, 6) == pytest.approx((12 / 6 + 1) / 5)
    assert share_apart(np.zeros(5, int), np.arange(5) * 9, 6) == 1.0
    series, origins = np.array([1, 0, 0, 0, 0]), np.array([5, 2, 4, 40, 12])
    assert share_apart(series, origins, 6) == pytest.approx((2 / 6 + 1 + 1 + 1 + 1) / 5)
    assert share_apart(np.zeros(0, int), np.zeros(0, int), 6) == 1.0


def test_scaled_pinball_ignores_what_is_missing() -> None:
    actual = np.array([[2.0, np.nan]])
    quantiles = np.zeros((1, 2, 1))
    assert scaled_pinball(actual, quantiles, np.array([4.0]), (0.5,)) == 0.25
    assert scaled_pinball(actual * np.nan, quantiles, np.array([4.0]), (0.5,)) == 0.0
