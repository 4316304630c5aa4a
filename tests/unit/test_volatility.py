"""What a window shows of the errors to come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.volatility import (
    BOUND,
    LEVEL,
    Sign,
    Volatility,
    fit_volatility,
    local_scale,
    seen_signs,
    signs_of,
)
from flts_ray.prepare.arrays import origins_in, windows_at
from tests.synthetic import seasonal_set

SIGNS = (Sign(1, 8), Sign(4, 8), Sign(0, 24))


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 200), st.integers(1, 100))
def test_signs_need_no_more_than_the_window(season: int, lookback: int, horizon: int) -> None:
    signs = signs_of(season, lookback, horizon)
    assert len(set(signs)) == len(signs)
    y = np.random.default_rng(0).standard_normal((3, lookback))
    seen = seen_signs(y, np.ones(3), signs)
    assert seen.shape == (3, len(signs)) and np.isfinite(seen).all()
    # A sign that read beyond the window would change with what lies there.
    longer = np.concatenate([np.full((3, 50), 1e6), y], axis=1)
    reaching = [i for i, sign in enumerate(signs) if sign.lag or sign.steps == lookback]
    again = seen_signs(longer, np.ones(3), signs)
    np.testing.assert_array_equal(again[:, reaching], seen[:, reaching])


def test_a_long_window_shows_weeks() -> None:
    lags = {sign.lag for sign in signs_of(24, 24 * 15, 48)}
    assert lags == {0, 1, 24, 48, 168}
    assert {sign.lag for sign in signs_of(1, 100, 5)} == {0, 1}


def test_a_seasonal_sign_is_blind_to_what_repeats() -> None:
    y = np.tile([0.0, 5.0, -5.0, 1.0], 6)[None]
    step, season, _ = seen_signs(y, np.ones(1), SIGNS)[0]
    assert season == pytest.approx(-np.log(BOUND))
    assert step == pytest.approx(np.log(np.abs(np.diff(y))[0, -8:].mean()))


def test_the_level_is_that_of_the_window() -> None:
    y = np.array([[1.0, 1.0, 1.0, 1.0, 3.0, 5.0], [2.0] * 6, [0.0] * 6])
    signs = (Sign(0, 2, LEVEL), Sign(0, 1, LEVEL))
    seen = seen_signs(y, np.array([1.0, 7.0, 1.0]), signs)
    np.testing.assert_allclose(seen[0], np.log([4.0 / 2.0, 5.0 / 2.0]))
    np.testing.assert_allclose(seen[1:], 0.0, atol=1e-12)
    np.testing.assert_allclose(seen_signs(100 * y, np.ones(3), signs), seen, atol=1e-12)


def test_bands_grow_with_the_load() -> None:
    """Errors that are a share of the load are wider where the load is high now."""
    rng = np.random.default_rng(3)
    n, signs = 4000, signs_of(1, 48, 4)
    assert any(sign.changes == LEVEL for sign in signs)
    walk = np.exp(np.cumsum(0.15 * rng.standard_normal((n, 48)), axis=1))
    # The same changes everywhere: only the level tells what the next error will be.
    y = walk / walk.mean(axis=1, keepdims=True)
    error = y[:, -3:].mean(axis=1, keepdims=True) * np.abs(rng.standard_normal((n, 4)))
    seen = seen_signs(y, np.ones(n), signs)
    found = fit_volatility(signs, seen, error, np.zeros(n, np.int64), 1.0, 1)
    high = y[:, -3:].mean(axis=1) > 1.5
    low = y[:, -3:].mean(axis=1) < 0.7
    width = found.scale(seen, np.ones(n), np.zeros(n, np.int64))
    share = error[high].mean() / error[low].mean()
    assert width[high].mean() / width[low].mean() > 0.7 * share > 1.4


def test_signs_have_no_units() -> None:
    y = np.random.default_rng(1).standard_normal((4, 24))
    scale = np.arange(1.0, 5.0)
    larger = seen_signs(1000 * y, 1000 * scale, SIGNS)
    np.testing.assert_allclose(larger, seen_signs(y, scale, SIGNS))


def volatile(windows: int, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signs, of which the first drives the errors with this slope; and those errors."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(0, 0.7, (windows, 3))
    size = np.exp(slope * seen[:, 0])
    return seen, np.abs(rng.standard_normal((windows, 6))) * size[:, None]


def test_slopes_are_found_and_others_are_not() -> None:
    seen, error = volatile(4000, 0.8)
    found = fit_volatility(SIGNS, seen, error, np.zeros(4000, np.int64), 1.0, 1)
    assert found.slopes[0] == pytest.approx(0.8, abs=0.1)
    assert np.abs(found.slopes[1:]).max() < 0.05
    half = fit_volatility(SIGNS, seen, error, np.zeros(4000, np.int64), 1.0, 1, share=0.5)
    np.testing.assert_allclose(half.slopes, found.slopes / 2)


def test_windows_that_overlap_shrink_the_slopes() -> None:
    seen, error = volatile(400, 0.8)
    rows = np.zeros(400, np.int64)
    slopes = [fit_volatility(SIGNS, seen, error, rows, w, 1).slopes[0] for w in (1.0, 0.1, 0.01)]
    assert slopes[0] > 1.2 * slopes[1] > 1.44 * slopes[2] > 0


def test_levels_tell_series_apart_and_new_ones_have_none() -> None:
    seen, error = volatile(2000, 0.0)
    rows = np.arange(2000) % 2
    error[rows == 1] *= 3
    found = fit_volatility(SIGNS, seen, error, rows, 1.0, 3)
    assert found.levels[1] - found.levels[0] == pytest.approx(np.log(3), abs=0.1)
    assert found.levels[2] == 0.0
    asked = np.array([0, 1, -1, 7])
    width = found.scale(np.zeros((4, 3)), np.ones(4), asked)
    assert width[1] / width[0] == pytest.approx(3, rel=0.1)
    assert width[2] == width[3] == 1.0


def test_errors_that_are_missing_or_none_are_no_trouble() -> None:
    seen, error = volatile(100, 0.5)
    rows = np.zeros(100, np.int64)
    holed = error.copy()
    holed[::2] = np.nan
    whole = fit_volatility(SIGNS, seen[1::2], error[1::2], rows[1::2], 1.0, 1)
    np.testing.assert_allclose(
        fit_volatility(SIGNS, seen, holed, rows, 1.0, 1).slopes, whole.slopes
    )
    for nothing in (np.full_like(error, np.nan), np.zeros_like(error)):
        found = fit_volatility(SIGNS, seen, nothing, rows, 1.0, 1)
        np.testing.assert_allclose(found.slopes, 0.0, atol=1e-12)


def test_a_scale_stays_within_bounds() -> None:
    wild = Volatility(SIGNS, np.full(3, 5.0), np.zeros(1))
    width = wild.scale(np.array([[3.0] * 3, [-3.0] * 3]), np.ones(2), np.zeros(2, np.int64))
    np.testing.assert_allclose(width, [BOUND, 1 / BOUND])


def test_local_scale_of_a_window_is_its_own() -> None:
    data = seasonal_set()
    series, origins = origins_in(data, "validation", 72, 6)
    signs = signs_of(24, 72, 6)
    found = Volatility(signs, np.linspace(-0.2, 0.4, len(signs)), np.zeros(data.n_series))
    whole = windows_at(data, series[:7], origins[:7], 72, 6)
    together = local_scale(whole, np.ones(7), series[:7], found)
    for i in range(7):
        alone = local_scale(whole.part(slice(i, i + 1)), np.ones(1), series[i : i + 1], found)
        np.testing.assert_array_equal(alone[0], together[i])


def test_it_comes_back_from_its_arrays() -> None:
    some = Volatility(SIGNS, np.array([0.1, 0.2, 0.3]), np.array([0.5]))
    again = Volatility.from_arrays(some.arrays())
    assert again.signs == some.signs
    np.testing.assert_array_equal(again.slopes, some.slopes)
    np.testing.assert_array_equal(again.levels, some.levels)
    assert Volatility.from_arrays(Volatility.none().arrays()).signs == ()
