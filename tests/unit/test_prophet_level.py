"""What a curve missed of late is added to it in part."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.prophet_level import (
    Correction,
    candidates,
    default_windows,
    features,
    fit_correction,
)

SEASON, HORIZON = 6, 9


def test_the_level_is_the_mean_of_the_last_residuals() -> None:
    missed = np.arange(24.0)[None]
    level, phase = features(missed, 4, 0, SEASON, HORIZON)
    assert level.tolist() == [21.5]
    assert not phase.any()


def test_the_phase_is_that_of_each_target_step() -> None:
    shape = np.array([3.0, -1.0, 0.0, 1.0, -2.0, -1.0])
    missed = (np.tile(shape, 4) + 10.0)[None]
    level, phase = features(missed, 1, 3, SEASON, HORIZON)
    np.testing.assert_allclose(phase[0], np.tile(shape, 2)[:HORIZON])
    assert level[0] == missed[0, -1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_shares_stay_within_bounds_and_lose_nothing(seed: int, cycles: int) -> None:
    rng = np.random.default_rng(seed)
    missed, error = rng.normal(size=(30, 24)), rng.normal(size=(30, HORIZON))
    found, loss = fit_correction(missed, error, np.ones(30), [(4, cycles, SEASON)])
    for share in (found.level, found.phase):
        assert (share >= 0).all()
        assert (share <= 1).all()
    left = error - found.apply(missed)
    np.testing.assert_allclose(loss, (left**2).mean())
    assert loss <= (error**2).mean() + 1e-12
    for shift in (-0.01, 0.01):
        level = np.clip(found.level + shift, 0, 1)
        other = Correction(4, cycles, SEASON, level, found.phase)
        assert ((error - other.apply(missed)) ** 2).mean() >= loss - 1e-9


def test_what_persists_is_found() -> None:
    rng = np.random.default_rng(0)
    level, shape = rng.normal(size=(200, 1)), rng.normal(size=(200, SEASON))
    whole = np.tile(shape - shape.mean(axis=1, keepdims=True), 6)[:, : 24 + HORIZON] + level
    tried = [(1, 0, SEASON), (SEASON, 0, SEASON), (SEASON, 3, SEASON)]
    found, loss = fit_correction(whole[:, :24], whole[:, 24:], np.ones(200), tried)
    assert (found.window, found.cycles) == (SEASON, 3)
    assert loss < 1e-9
    assert found.lookback == 3 * SEASON


def test_what_is_not_observed_does_not_count() -> None:
    rng = np.random.default_rng(1)
    missed, error = rng.normal(size=(20, 12)), rng.normal(size=(20, HORIZON))
    error[3, 2] = np.nan
    found, loss = fit_correction(missed, error, np.ones(20), [(2, 1, SEASON)])
    assert np.isfinite(loss)
    assert np.isfinite(found.apply(missed)).all()


def test_only_what_the_history_holds_is_tried() -> None:
    assert list(candidates((1, 8, 100), 6, 20)) == [
        (1, 0), (1, 1), (1, 3), (8, 0), (8, 1), (8, 3),
    ]  # fmt: skip
    assert list(candidates((50,), 6, 20)) == [(50, 0), (50, 1), (50, 3)]
    assert {cycles for _, cycles in candidates((1,), 1, 20)} == {0}
    assert default_windows(24) == (1, 3, 6, 12, 24, 168)
    assert default_windows(720) == (1, 3, 6, 12, 24, 180, 720, 5040)
