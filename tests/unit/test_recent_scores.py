"""Bands that follow what a model has missed of late."""

from __future__ import annotations

import numpy as np
import pytest

from flts_ray.models.calibrate import ResidualQuantiles
from flts_ray.models.recent_scores import RecentScores, most_windows, moved, score_windows
from flts_ray.prepare.arrays import Windows
from tests.synthetic import seasonal_set

LEVELS = (0.1, 0.5, 0.9)


def test_no_score_moves_no_band() -> None:
    none = RecentScores.none(100.0, 4, 3)
    assert none.share == 0 and not none.shift.any()
    assert none.added(np.zeros((0, 4, 3)), 0, LEVELS) is none


def test_bands_move_by_the_share_of_the_new_windows() -> None:
    scores = np.full((300, 4, 3), 2.0)
    grown = RecentScores.none(100.0, 4, 3).added(scores, 300, LEVELS)
    assert grown.share == 0.75
    np.testing.assert_allclose(grown.shift, 1.5)


def test_scores_are_kept_against_the_bands_of_the_fit() -> None:
    first = RecentScores.none(300.0, 4, 3).added(np.full((300, 4, 3), 2.0), 300, LEVELS)
    # The bands moved by 1; who still misses by 1 would have missed by 2.
    second = first.added(np.full((600, 4, 3), 1.0), 600, LEVELS)
    np.testing.assert_allclose(second.kept, 2.0)
    np.testing.assert_allclose(second.shift, 2.0 * 0.75)


def test_the_correction_is_the_order_statistic_of_each_level() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((1000, 2, 1)).repeat(3, axis=2)
    found = RecentScores.none(0.0, 2, 3).added(drawn, 1000, LEVELS).shift
    expected = np.quantile(drawn[..., 0], LEVELS, axis=0).T
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_what_is_kept_is_bounded_and_covers_all_ages() -> None:
    most = most_windows(1, 3)
    old, new = np.zeros((most, 1, 3)), np.ones((most, 1, 3))
    grown = RecentScores.none(1.0, 1, 3).added(old, most, LEVELS)
    grown = grown.added(new - grown.shift, most, LEVELS)
    assert len(grown.kept) == most and grown.kept.dtype == np.float32
    assert grown.count == 2 * most
    assert grown.kept.mean() == pytest.approx(0.5, abs=0.01)
    assert (np.diff(grown.kept[:, 0, 0]) >= 0).all()


def test_what_was_not_observed_does_not_count() -> None:
    scores = np.full((300, 4, 3), 2.0)
    scores[::2] = np.nan
    np.testing.assert_allclose(RecentScores.none(300.0, 4, 3).added(scores, 300, LEVELS).shift, 1)


def test_stored_scores_come_back() -> None:
    grown = RecentScores.none(7.0, 4, 3).added(np.ones((5, 4, 3)), 9, LEVELS)
    found = RecentScores.from_arrays(grown.arrays())
    assert (found.base, found.count) == (7.0, 9.0)
    np.testing.assert_array_equal(found.kept, grown.kept)
    np.testing.assert_array_equal(found.shift, grown.shift)


def test_scores_of_another_shape_are_refused() -> None:
    arrays = RecentScores.none(7.0, 4, 3).arrays()
    with pytest.raises(ValueError, match="do not fit"):
        RecentScores.from_arrays({**arrays, "shift": np.zeros((2, 3))})


def test_scores_are_distances_in_units_of_the_scale() -> None:
    data, seen = seasonal_set(), []

    def ask(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(windows))
        return np.zeros((len(windows), 6, 3)), np.full(len(windows), 2.0)

    scores, count = score_windows(data, 24, 6, 3, ask)
    assert count == sum(seen) == len(scores) == 3 * (120 - 6 + 1)
    expected = data.y[360:366] / 2
    np.testing.assert_allclose(scores[0], np.repeat(expected[:, None], 3, axis=1))


def test_moved_bands_stay_in_order() -> None:
    band = ResidualQuantiles(
        np.array([[-1.0, 0.0, 1.0]]), np.array([[[-2.0, 0.0, 2.0]]]), np.array([3])
    )
    assert moved(band, np.zeros((1, 3))) is band
    found = moved(band, np.array([[3.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(found.pooled, [[0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(found.own, [[[0.0, 1.0, 2.0]]])
