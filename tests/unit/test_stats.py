"""Statistics are those of observed training values and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flts_ray.prepare.stats import training_stats

values = st.floats(-1e6, 1e6)


@given(
    y=hnp.arrays(np.float64, 40, elements=values),
    other=hnp.arrays(np.float64, 40, elements=values | st.just(np.nan)),
    train_end=st.integers(1, 39),
    season=st.integers(1, 12),
)
def test_nothing_at_or_after_the_end_of_training_counts(
    y: np.ndarray, other: np.ndarray, train_end: int, season: int
) -> None:
    seen = np.ones(40, dtype=bool)
    changed = np.where(np.arange(40) < train_end, y, other)
    seen_changed = seen & ~np.isnan(changed)
    before = training_stats(y, seen, train_end, season, 3.0)
    assert training_stats(changed, seen_changed, train_end, season, 3.0) == before


def test_known_values() -> None:
    y = np.array([1.0, 2.0, 3.0, 5.0, 100.0])
    made = training_stats(y, np.ones(5, dtype=bool), 4, 2, 3.0)
    assert made.mean == 2.75
    assert made.std == pytest.approx(np.std([1, 2, 3, 5]))
    assert made.scale == 2.5
    low, high = np.percentile([1, 2, 3, 5], [1, 99])
    assert made.clip_lo == pytest.approx(low - 3 * (high - low))
    assert made.clip_hi == pytest.approx(high + 3 * (high - low))


def test_imputed_values_do_not_count() -> None:
    y = np.array([1.0, 99.0, 3.0, 4.0])
    seen = np.array([True, False, True, True])
    made = training_stats(y, seen, 4, 1, None)
    assert made.mean == pytest.approx(8 / 3)
    assert made.scale == 1.0
    assert (made.clip_lo, made.clip_hi) == (-np.inf, np.inf)


def test_scale_is_positive_without_seasonal_pairs_or_change() -> None:
    short = training_stats(np.array([1.0, 3.0]), np.ones(2, dtype=bool), 2, 24, 3.0)
    assert short.scale == short.std == 1.0
    flat = training_stats(np.full(50, 7.0), np.ones(50, dtype=bool), 50, 4, 3.0)
    assert 0 < flat.scale < 1e-6
    assert training_stats(np.zeros(9), np.ones(9, dtype=bool), 9, 4, 3.0).scale > 0


def test_the_scale_of_a_series_that_repeats_itself_is_a_share_of_its_spread() -> None:
    switched = np.tile([0.0, 0.0, 10.0, 10.0], 12)
    made = training_stats(switched, np.ones(48, dtype=bool), 48, 4, 3.0)
    assert made.scale == pytest.approx(made.std / 1000)


def test_rare_peaks_of_a_flat_series_are_not_clipped() -> None:
    y = np.zeros(1000)
    y[500] = 50.0
    made = training_stats(y, np.ones(1000, dtype=bool), 1000, 24, 3.0)
    assert made.clip_hi == np.inf
