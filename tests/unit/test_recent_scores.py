"""Windows that new rows complete, each scored once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.base import Task
from flts_ray.models.calibrate import ResidualQuantiles
from flts_ray.models.recent_scores import most_windows, moved, score_windows
from flts_ray.models.track import Served
from flts_ray.prepare.arrays import SeriesArrays, Windows
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
LOOKBACK = 24
DATA = seasonal_set(length=600)


def nothing(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of zero, in bands of two units."""
    return np.zeros((len(windows), 6, 3)), np.full(len(windows), 2.0)


def fresh(since: int, until: int, data: SeriesArrays = DATA) -> SeriesArrays:
    """Rows from `since` to `until` are new, the ones after them do not exist."""
    lengths = np.full(data.n_series, until)
    rows = np.concatenate([np.arange(until) + start for start in data.offsets[:-1]])
    return replace(
        data,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        y=data.y[rows],
        observed=data.observed[rows],
        future=data.future[rows],
        past=data.past[rows],
        train_end=np.full(data.n_series, since),
        valid_end=lengths,
    )


def scored(since: int, until: int, known: int = 3) -> Served:
    return score_windows(fresh(since, until), np.zeros(3, np.int64), known, TASK, LOOKBACK, nothing)


def test_scores_are_distances_in_units_of_the_band() -> None:
    found = scored(400, 401)
    assert len(found) == 3
    expected = np.stack([DATA.y[DATA.rows(i)][395:401] for i in range(3)]) / 2
    np.testing.assert_allclose(found.scores, np.repeat(expected[..., None], 3, axis=2))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_however_rows_come_every_window_is_scored_once(lengths: list[int]) -> None:
    ends = 400 + np.cumsum([0, *lengths])
    parts = [scored(int(a), int(b)).scores for a, b in pairwise(ends)]
    whole = scored(400, int(ends[-1])).scores
    assert len(whole) == 3 * sum(lengths)
    together = np.concatenate(parts)
    assert sorted(together[:, 0, 0]) == sorted(whole[:, 0, 0])


def test_slots_are_a_horizon_long_and_oldest_first() -> None:
    found = scored(400, 418)
    assert found.step == 1.0
    np.testing.assert_array_equal(np.bincount(found.slot), [18, 18, 18])
    first = found.scores[(found.slot == 0) & (found.series == 0)]
    np.testing.assert_allclose(first[0, :, 0], DATA.y[395:401] / 2)
    assert scored(400, 420).step == pytest.approx(20 / 24)
    assert scored(400, 402).step == pytest.approx(1 / 3)


def test_a_series_that_was_not_known_says_nothing() -> None:
    found = scored(400, 418, known=2)
    assert set(found.series) == {0, 1}


def test_it_is_told_how_many_series_have_news() -> None:
    data = fresh(400, 418)
    data.train_end[2] = 418
    found = score_windows(data, np.zeros(3, np.int64), 3, TASK, LOOKBACK, nothing)
    assert found.share == pytest.approx(2 / 3)
    assert scored(400, 418).share == 1.0


def test_of_a_long_horizon_some_windows_at_all_phases_are_enough() -> None:
    task = Task(48, (0.1, 0.5, 0.9))

    def ask(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(windows), 48, 3)), np.ones(len(windows))

    found = score_windows(fresh(300, 600), np.zeros(3, np.int64), 3, task, LOOKBACK, ask)
    # The next number after 48 / 8 that shares no factor with the season of 24 is 7.
    assert 300 // 7 <= len(found) / 3 <= 300 // 7 + 1


def test_what_was_not_observed_has_no_score() -> None:
    data = fresh(400, 406)
    data.observed[402] = False
    found = score_windows(data, np.zeros(3, np.int64), 3, TASK, LOOKBACK, nothing)
    assert np.isnan(found.scores[found.series == 0]).any()
    assert np.isfinite(found.scores[found.series == 1]).all()


def test_one_update_scores_a_bounded_number_of_windows() -> None:
    assert most_windows(96, 13) * 96 * 13 <= 2**22
    assert most_windows(10_000, 1000) == 64


def test_moved_bands_stay_in_order() -> None:
    band = ResidualQuantiles(
        np.array([[-1.0, 0.0, 1.0]]), np.array([[[-2.0, 0.0, 2.0]]]), np.array([3])
    )
    assert moved(band, np.zeros((1, 3))) is band
    found = moved(band, np.array([[3.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(found.pooled, [[0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(found.own, [[[0.0, 1.0, 2.0]]])
