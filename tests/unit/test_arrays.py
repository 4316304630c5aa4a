"""Windows: what a model may see at an origin, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.prepare.arrays import (
    FEW_ORIGINS,
    SeriesArrays,
    actuals_at,
    bounded,
    origins_between,
    origins_in,
    turns,
    usable_windows,
    windows_at,
)
from tests.synthetic import seasonal_set

DATA = seasonal_set(n_series=2, length=200)


@given(st.integers(1, 60), st.integers(1, 24), st.integers(1, 30), st.sampled_from([None, 5]))
def test_origins_keep_every_target_within_its_span(
    lookback: int, horizon: int, stride: int, most: int | None
) -> None:
    borders = {"train": (0, 120), "validation": (120, 160), "test": (160, 200)}
    for span, (first, last) in borders.items():
        series, origins = origins_in(DATA, span, lookback, horizon, stride, most)
        assert (origins >= max(first, lookback)).all()
        assert (origins + horizon <= last).all()
        if most is not None and len(series):
            assert np.bincount(series).max() <= most


@given(st.integers(1, 60), st.integers(1, 24), st.integers(60, 176), st.integers(0, 1))
def test_a_window_is_the_values_before_its_origin(
    lookback: int, horizon: int, origin: int, series: int
) -> None:
    window = windows_at(DATA, np.array([series]), np.array([origin]), lookback, horizon)
    rows = DATA.rows(series)
    assert np.array_equal(window.y[0], DATA.y[rows][origin - lookback : origin])
    assert np.array_equal(window.future[0], DATA.future[rows][origin - lookback : origin + horizon])
    assert window.origin_us[0] == DATA.start_us[series] + origin * 3_600_000_000
    actual = actuals_at(DATA, np.array([series]), np.array([origin]), horizon)
    assert np.array_equal(actual[0], DATA.y[rows][origin : origin + horizon])


def test_nothing_at_or_after_the_origin_reaches_a_window() -> None:
    series, origins = np.array([0, 1]), np.array([100, 130])
    y, past, observed = DATA.y.copy(), DATA.past.copy(), DATA.observed.copy()
    for i, origin in zip(series, origins, strict=True):
        rows = slice(int(DATA.offsets[i] + origin), int(DATA.offsets[i + 1]))
        y[rows], past[rows], observed[rows] = np.nan, -1e9, False
    spoilt = replace(DATA, y=y, past=past, observed=observed)
    one = windows_at(DATA, series, origins, 50, 24)
    two = windows_at(spoilt, series, origins, 50, 24)
    for name in ("y", "past", "observed", "future", "scale", "origin_us"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_windows_are_clipped_and_actuals_are_not() -> None:
    y = DATA.y.copy()
    y[90], y[105] = 1e6, -1e6
    stats = replace(DATA.stats, clip_lo=np.full(2, 0.0), clip_hi=np.full(2, 5.0))
    data = replace(DATA, y=y, stats=stats)
    window = windows_at(data, np.array([0]), np.array([100]), 20, 10)
    assert window.y.max() == 5.0
    assert actuals_at(data, np.array([0]), np.array([100]), 10)[0, 5] == -1e6


def test_outliers_are_clipped_and_a_moved_level_is_not() -> None:
    y = np.ones((3, 20))
    y[0, :2], y[1, :3], y[2, 5] = 50.0, 50.0, -50.0
    found = bounded(y, np.full((3, 1), -2.0), np.full((3, 1), 3.0))
    assert found[0].tolist() == [3.0, 3.0, *[1.0] * 18]
    assert found[1].tolist() == y[1].tolist()
    assert found[2, 5] == -2.0
    assert y[0, 0] == 50.0


def test_gaps_exclude_windows_and_unobserved_actuals_are_nan() -> None:
    y, observed = DATA.y.copy(), DATA.observed.copy()
    y[50:60] = np.nan
    observed[50:60] = False
    data: SeriesArrays = replace(DATA, y=y, observed=observed)
    series, origins = origins_in(data, "train", 24, 12)
    mine = set(origins[series == 0].tolist())
    assert mine == {t for t in range(24, 109) if not (t - 24 < 60 and t + 12 > 50)}
    assert np.isnan(actuals_at(data, np.array([0]), np.array([45]), 10)[0]).sum() == 5


def test_taking_series_keeps_their_rows_and_statistics() -> None:
    taken = DATA.take([1])
    assert taken.ids == ("s1",)
    assert np.array_equal(taken.y, DATA.y[DATA.rows(1)])
    assert taken.stats.scale[0] == DATA.stats.scale[1]
    assert np.array_equal(taken.static, DATA.static[1:])


def one_series_after_the_other(
    data: SeriesArrays,
    span: str,
    lookback: int,
    horizon: int,
    stride: int,
    most: int | None,
    staggered: bool,
) -> list[tuple[int, int]]:
    """What `origins_in` says, window by window."""
    found = []
    for i in range(data.n_series):
        y, seen = data.y[data.rows(i)], data.observed[data.rows(i)]
        borders = (0, int(data.train_end[i]), int(data.valid_end[i]), len(y))
        at = ("train", "validation", "test").index(span)
        first, last = max(borders[at], lookback), borders[at + 1]
        fitting = last - horizon - first + 1
        step = stride if most is None else max(stride, -(-fitting // most))
        few = staggered and fitting < FEW_ORIGINS * step
        later = int(turns(data.ids)[i] * step) if few else 0
        for origin in range(first + later, last - horizon + 1, step):
            history, targets = y[origin - lookback : origin], slice(origin, origin + horizon)
            whole = not np.isnan(history).any() and seen[targets].any()
            if whole and not (span == "train" and np.isnan(y[targets]).any()):
                found.append((i, origin))
    return found


def with_gaps(seed: int) -> SeriesArrays:
    """Series of different lengths, some of them empty, with missing and unobserved values."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, size=7)
    y = rng.standard_normal(int(lengths.sum()))
    y[rng.random(len(y)) < 0.03] = np.nan
    return replace(
        seasonal_set(n_series=7, length=60),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        train_end=(lengths * 0.6).astype(np.int64),
        valid_end=(lengths * 0.8).astype(np.int64),
        y=y,
        observed=~np.isnan(y) & (rng.random(len(y)) < 0.6),
    )


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([None, 1, 4]),
    st.booleans(),
)
def test_origins_of_many_series_are_those_of_each(
    seed: int, lookback: int, horizon: int, stride: int, most: int | None, staggered: bool
) -> None:
    few = with_gaps(seed)
    for span in ("train", "validation", "test"):
        asked = (span, lookback, horizon, stride, most, staggered)
        expected = one_series_after_the_other(few, *asked)
        for rows_at_once in (1, 40, 10**6):
            with patch("flts_ray.prepare.arrays.ROWS_AT_ONCE", rows_at_once):
                series, origins = origins_in(few, *asked)
            assert list(zip(series.tolist(), origins.tolist(), strict=True)) == expected
            assert series.dtype == origins.dtype == np.int64


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 6), st.integers(1, 200))
def test_usable_windows_are_those_that_are_not_left_out(
    seed: int, lookback: int, horizon: int, every: int
) -> None:
    """Whether few windows are asked about, which are looked at alone, or all."""
    data = with_gaps(seed)
    for span in ("train", "validation", "test"):
        expected = set(zip(*origins_in(data, span, lookback, horizon), strict=True))
        first, count = origins_between(data, span, lookback, horizon)
        series = np.repeat(np.arange(data.n_series), count)
        origins = np.concatenate([np.arange(a, a + n) for a, n in zip(first, count, strict=True)])
        series, origins = series[::every], origins[::every]
        found = usable_windows(data, span, series, origins, lookback, horizon)
        pairs = list(zip(series, origins, strict=True))
        assert [pair for pair, kept in zip(pairs, found, strict=True) if kept] == [
            pair for pair in pairs if pair in expected
        ]


def test_series_take_their_turns_by_name_and_evenly() -> None:
    names = [f"cell-{i}" for i in range(4000)]
    found = turns(names)
    np.testing.assert_array_equal(turns(names[::-1]), found[::-1])
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert counts.min() > 100 and counts.max() < 300
