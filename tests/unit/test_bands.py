"""Bands cover what they say where volatility changes, and stay plain where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.models.bands import Scored, fit_bands
from flts_ray.models.volatility import Sign, seen_signs

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIGNS = (Sign(1, 12), Sign(1, 40))


def path(steps: int, swing: float, seed: int) -> np.ndarray:
    """Noise whose deviation wanders by a factor exp(swing) around one."""
    rng = np.random.default_rng(seed)
    log = np.zeros(steps)
    for i in range(1, steps):
        log[i] = 0.995 * log[i - 1] + 0.1 * swing * rng.standard_normal()
    return rng.standard_normal(steps) * np.exp(log)


def scored_of(y: np.ndarray, first: int, horizon: int = 6, every: int = 3) -> Scored:
    """Windows of 41 steps from `first` on, forecast as zero."""
    origins = np.arange(max(first, 41), len(y) - horizon, every)
    back = y[origins[:, None] + np.arange(-41, 0)]
    actual = y[origins[:, None] + np.arange(horizon)]
    unit, row = np.ones(len(origins)), np.zeros(len(origins), np.int64)
    return Scored(
        actual, 0 * actual, unit, seen_signs(back, unit, SIGNS), row, origins, origins % 24
    )


def covered(windows: Scored, quantiles: np.ndarray) -> tuple[float, float]:
    actual = windows.actual
    return tuple(
        float(((actual >= quantiles[..., low]) & (actual <= quantiles[..., high])).mean())
        for low, high in ((1, 3), (0, 4))
    )  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_after_the_calibration_is_covered(seed: int) -> None:
    y = path(12_000, 1.0, seed)
    y[9000:] *= 2 * y[:9000].std() / y[9000:].std()
    bands = fit_bands(scored_of(y[:9000], 0), SIGNS, LEVELS, 1)
    new = scored_of(y, 9000)
    inner, outer = covered(new, bands.over(new))
    still = fit_bands(replace(scored_of(y[:9000], 0), seen=np.zeros((2985, 0))), (), LEVELS, 1)
    plain, _ = covered(new, still.over(replace(new, seen=np.zeros((len(new), 0)))))
    assert inner == pytest.approx(0.8, abs=0.05) and outer == pytest.approx(0.95, abs=0.03)
    assert plain < inner - 0.05


@pytest.mark.parametrize("seed", range(3))
def test_bands_follow_nothing_where_nothing_changes(seed: int) -> None:
    y = np.random.default_rng(seed).standard_t(3, 9000)
    bands = fit_bands(scored_of(y[:6000], 0), SIGNS, LEVELS, 1)
    assert np.abs(bands.volatility.slopes).sum() < 0.15
    new = scored_of(y, 6000)
    inner, outer = covered(new, bands.over(new))
    assert inner == pytest.approx(0.8, abs=0.03) and outer == pytest.approx(0.95, abs=0.02)


def test_quantiles_do_not_cross_and_do_not_depend_on_the_order() -> None:
    windows = scored_of(path(2000, 1.0, 4), 0)
    bands = fit_bands(windows, SIGNS, LEVELS, 1)
    quantiles = bands.over(windows)
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    shuffled = windows.at(np.random.default_rng(0).permutation(len(windows)))
    again = fit_bands(shuffled, SIGNS, LEVELS, 1)
    np.testing.assert_allclose(again.over(windows), quantiles, rtol=1e-9)


def test_windows_apart_are_counted_in_time() -> None:
    dense, thin = (scored_of(path(2000, 0.0, 1), 0, every=step) for step in (1, 12))
    assert dense.apart * len(dense) == pytest.approx(1953 / 6, rel=0.01)
    assert thin.apart == pytest.approx(1.0)
    assert dense.per_step == 1.0
    assert thin.per_step == pytest.approx(1 / 12, rel=0.01)
    assert Scored.none(6, 2).apart == 1.0


def test_a_lean_is_taken_over_and_the_spread_is_kept() -> None:
    old, new = scored_of(path(3000, 0.0, 2), 0), scored_of(path(3000, 0.0, 3), 0)
    leaning = replace(old, actual=3 * old.actual + 7.0)
    moved = leaning.recentred(new)
    middle = np.median(moved.actual - moved.mean, axis=0)
    np.testing.assert_allclose(middle, np.median(new.actual - new.mean, axis=0), atol=1e-12)
    spread = (moved.actual - moved.mean).std(axis=0)
    np.testing.assert_allclose(spread, (leaning.actual - leaning.mean).std(axis=0))
    assert len(Scored.none(6, 2).recentred(new)) == 0


def test_a_single_window_still_gives_bands() -> None:
    windows = scored_of(path(60, 0.0, 5), 0)
    bands = fit_bands(windows.at(np.array([0])), SIGNS, LEVELS, 1)
    assert np.isfinite(bands.over(windows)).all()
