"""Repairs of one series: the grid, duplicates, gaps and covariates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flts_ray.config import PrepareConfig
from flts_ray.panel import Contract, to_local_us
from flts_ray.prepare.clean import (
    GridSeries,
    RawSeries,
    Rejected,
    carry_forward,
    impute,
    lay_on_grid,
    merge_duplicates,
    snap,
)
from tests.raw_tables import HOUR_US, START_US

nan = np.nan
MANY_GAPS = PrepareConfig(max_missing=0.99)


def raw(
    steps: Any,
    y: Any,
    covariates: np.ndarray | None = None,
    test_from: int | None = None,
    offset_us: Any = 0,
) -> RawSeries:
    ds = START_US + np.asarray(steps, dtype=np.int64) * HOUR_US + np.asarray(offset_us)
    return RawSeries(
        ds_us=ds,
        dated=np.ones(len(ds), dtype=bool),
        y=np.asarray(y, dtype=np.float64),
        is_test=np.asarray(steps) >= (10**9 if test_from is None else test_from),
        covariates=np.zeros((len(ds), 0)) if covariates is None else covariates,
    )


def laid(
    rows: RawSeries, season: int = 4, policy: PrepareConfig = MANY_GAPS, **contract: Any
) -> GridSeries:
    ahead = np.zeros(rows.covariates.shape[1], dtype=bool)
    whole = Contract(**{"freq": "1h", "season": season, **contract})
    return lay_on_grid(rows, whole, policy, ahead)


def test_unsorted_rows_become_a_sorted_grid() -> None:
    made = laid(raw([2, 0, 3, 1], [3.0, 1.0, 4.0, 2.0]))
    assert made.y.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert made.start_us == START_US
    assert made.repairs.unsorted == 2
    assert made.observed.all()


def test_rows_snap_to_the_most_common_phase() -> None:
    minute = 60_000_000
    offsets = [5 * minute, 5 * minute, 12 * minute, 5 * minute, 0]
    made = laid(raw(range(5), [1.0, 2.0, 3.0, 4.0, 5.0], offset_us=offsets))
    assert made.start_us == START_US + 5 * minute
    assert made.y.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert made.repairs.snapped == 2


def test_equally_common_phases_choose_the_lowest() -> None:
    anchor, steps, off = snap(np.array([70, 130, 170, 230]), 100)
    assert anchor == 30
    assert steps.tolist() == [0, 1, 1, 2]
    assert off == 2


@pytest.mark.parametrize(("policy", "value"), [("last", 9.0), ("mean", 5.5)])
def test_duplicates_follow_the_policy(policy: Any, value: float) -> None:
    rows = raw([0, 1, 1, 2], [1.0, 2.0, 9.0, 3.0])
    made = laid(rows, policy=PrepareConfig(duplicates=policy))
    assert made.y.tolist() == [1.0, value, 3.0]
    assert made.repairs.duplicates == 1


def test_duplicates_may_be_refused() -> None:
    with pytest.raises(Rejected) as caught:
        laid(raw([0, 1, 1], [1.0, 2.0, 2.0]), policy=PrepareConfig(duplicates="quarantine"))
    assert caught.value.code == "duplicates"
    assert "1 repeated" in caught.value.reason


def test_the_last_duplicate_is_the_last_read_even_if_rows_are_unsorted() -> None:
    made = laid(raw([1, 0, 1], [5.0, 1.0, 6.0]))
    assert made.y.tolist() == [1.0, 6.0]


def test_mean_of_duplicates_skips_missing_values() -> None:
    steps, y = merge_duplicates(np.array([0, 0, 0, 1, 1]), np.array([1, nan, 3, nan, nan]), True)
    assert steps.tolist() == [0, 1]
    np.testing.assert_array_equal(y, [2.0, nan])


def test_infinities_are_missing_and_counted() -> None:
    made = laid(raw(range(4), [1.0, np.inf, -np.inf, 4.0]))
    assert made.repairs.non_finite == 2
    assert made.observed.tolist() == [True, False, False, True]
    assert made.y.tolist() == [1.0, 1.0, 1.0, 4.0]


def test_grid_runs_from_first_to_last_observed_step() -> None:
    made = laid(raw(range(6), [nan, nan, 3.0, nan, 5.0, nan]))
    assert made.start_us == START_US + 2 * HOUR_US
    assert made.y.tolist() == [3.0, 3.0, 5.0]


def test_a_gap_takes_the_value_one_season_earlier() -> None:
    filled = impute(np.array([1.0, 2.0, 3.0, nan, nan, 6.0]), season=3, max_gap=6)
    assert filled.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0, 6.0]


def test_a_gap_carries_the_last_value_where_no_season_precedes_it() -> None:
    filled = impute(np.array([1.0, nan, nan, 4.0]), season=48, max_gap=6)
    assert filled.tolist() == [1.0, 1.0, 1.0, 4.0]


def test_the_rest_of_a_long_gap_stays_missing() -> None:
    filled = impute(np.array([1.0, nan, nan, nan, nan, 2.0]), season=48, max_gap=2)
    np.testing.assert_array_equal(filled, [1.0, 1.0, 1.0, nan, nan, 2.0])
    made = laid(raw([0, 5], [1.0, 2.0]), policy=PrepareConfig(max_missing=0.9, max_gap=2))
    assert (made.repairs.imputed, made.repairs.missing) == (2, 2)
    assert made.observed.tolist() == [True, False, False, False, False, True]


def test_no_gap_is_filled_where_none_may_be() -> None:
    y = np.array([1.0, nan, 2.0])
    np.testing.assert_array_equal(impute(y, 1, 0), y)


@given(
    y=hnp.arrays(np.float64, 30, elements=st.floats(-100, 100) | st.just(nan)),
    other=hnp.arrays(np.float64, 30, elements=st.floats(-100, 100) | st.just(nan)),
    at=st.integers(1, 29),
    season=st.integers(1, 12),
    max_gap=st.integers(0, 10),
)
def test_imputation_reads_nothing_later(
    y: np.ndarray, other: np.ndarray, at: int, season: int, max_gap: int
) -> None:
    changed = np.where(np.arange(30) < at, y, other)
    before, after = impute(y, season, max_gap), impute(changed, season, max_gap)
    np.testing.assert_array_equal(before[:at], after[:at])


@given(
    y=hnp.arrays(np.float64, 24, elements=st.floats(-100, 100) | st.sampled_from([nan, np.inf])),
    other=hnp.arrays(np.float64, 24, elements=st.floats(-100, 100) | st.just(nan)),
    steps=st.lists(st.integers(0, 19), min_size=24, max_size=24),
    at=st.integers(1, 19),
    policy=st.sampled_from(["last", "mean"]),
)
def test_later_values_change_nothing_before_them(
    y: np.ndarray, other: np.ndarray, steps: list[int], at: int, policy: Any
) -> None:
    y[0], steps[0] = 1.0, -1  # both start at the same observed step
    rule = PrepareConfig(max_missing=0.99, duplicates=policy)
    covariates = np.stack([y, other], axis=1)
    late = np.asarray(steps) >= at
    changed = raw(steps, np.where(late, other, y), np.where(late[:, None], 7.0, covariates))
    first, second = laid(raw(steps, y, covariates), policy=rule), laid(changed, policy=rule)
    shared = min(at + 1, len(first.y), len(second.y))
    np.testing.assert_array_equal(first.y[:shared], second.y[:shared])
    np.testing.assert_array_equal(first.observed[:shared], second.observed[:shared])
    np.testing.assert_array_equal(first.covariates[:shared], second.covariates[:shared])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.randoms())
def test_every_observed_value_is_kept_at_its_step(steps: list[int], random: Any) -> None:
    unique = sorted(set(steps))
    shuffled = list(unique)
    random.shuffle(shuffled)
    made = laid(raw(shuffled, [float(s) for s in shuffled]))
    assert len(made.y) == unique[-1] - unique[0] + 1
    assert (np.flatnonzero(made.observed) + unique[0]).tolist() == unique
    assert made.y[made.observed].tolist() == unique


def test_covariates_are_carried_forward_and_never_backward() -> None:
    columns = np.array([[nan, nan], [5.0, 2.0], [nan, np.inf], [7.0, 3.0]])
    made = laid(raw([0, 1, 3, 4], [1.0, 2.0, 3.0, 4.0], columns))
    assert made.covariates[:, 0].tolist() == [0.0, 5.0, 5.0, 5.0, 7.0]
    assert made.covariates[:, 1].tolist() == [0.0, 2.0, 2.0, 2.0, 3.0]


AHEAD = Contract("1h", 4, past=("seen",), known_future=("plan", "work"))
NEXT = np.array([False, True, True])


def test_a_known_future_covariate_may_be_carried_and_is_known_from_the_start() -> None:
    columns = np.array([[1.0, nan, 1.0], [1.0, 5.0, 1.0], [1.0, nan, 0.0]])
    carrying = MANY_GAPS.model_copy(update={"missing_future": "carry"})
    made = lay_on_grid(raw([0, 1, 2], [1.0, 2.0, 3.0], columns), AHEAD, carrying, NEXT)
    assert made.covariates[:, 1].tolist() == [5.0, 5.0, 5.0]
    assert made.covariates[:, 2].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("hole", [nan, np.inf])
def test_a_missing_future_value_is_refused_with_its_column_and_stamp(hole: float) -> None:
    columns = np.ones((5, 3))
    columns[[2, 4], 2] = hole
    with pytest.raises(Rejected) as caught:
        lay_on_grid(raw([0, 1, 3, 4, 5], np.arange(5.0), columns), AHEAD, MANY_GAPS, NEXT)
    assert caught.value.code == "missing_future"
    assert "column work has no value at 2023-11-15T03:00:00Z (step 3 of 6)" in caught.value.reason
    assert "and at 1 more;" in caught.value.reason


def test_what_is_no_missing_future_value() -> None:
    """A past value, a step that another row tells, a gap in the rows, rows beyond the target."""
    columns = np.ones((6, 3))
    columns[1, 0] = columns[2, 1] = columns[5, 1] = nan
    rows = raw([0, 1, 2, 2, 5, 6], [1.0, 2.0, 3.0, 3.0, 4.0, nan], columns)
    assert len(lay_on_grid(rows, AHEAD, MANY_GAPS, NEXT).y) == 6


def test_carry_forward_takes_the_last_row_of_a_step() -> None:
    carried = carry_forward(np.array([0, 2, 2]), np.array([1.0, 2.0, 3.0]), np.arange(-1, 4))
    np.testing.assert_array_equal(carried, [nan, 1.0, 1.0, 3.0, 3.0])


def test_a_single_wrong_year_is_refused_before_its_grid_is_made() -> None:
    with pytest.raises(Rejected) as caught:
        laid(raw([0, 1, 2, 1_500_000], [1.0, 2.0, 3.0, 4.0]))
    assert caught.value.code == "missing"
    assert "100.0%" in caught.value.reason


def test_stamps_outside_the_calendar_are_refused() -> None:
    rows = raw([0, 1], [1.0, 2.0])
    rows.ds_us[1] = 2**62
    with pytest.raises(Rejected) as caught:
        laid(rows)
    assert caught.value.code == "time_range"


def test_rows_without_a_stamp_are_dropped() -> None:
    rows = raw([0, 0, 1], [1.0, 9.0, 2.0])
    rows.dated[1] = False
    made = laid(rows)
    assert made.y.tolist() == [1.0, 2.0]
    assert made.repairs.undated == 1
    rows.dated[:] = False
    with pytest.raises(Rejected) as caught:
        laid(rows)
    assert caught.value.code == "no_valid_rows"


def test_a_series_without_a_finite_value_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        laid(raw([0, 1], [nan, np.inf]))
    assert caught.value.code == "not_finite"


def test_the_test_span_starts_at_the_first_test_row() -> None:
    rows = raw(range(6), [nan, 1.0, 2.0, 3.0, 4.0, 5.0], test_from=4)
    assert laid(rows).test_start == 3
    assert laid(raw(range(3), [1.0, 2.0, 3.0])).test_start is None


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Melbourne"])
@pytest.mark.parametrize("month", [3, 9])
def test_daily_steps_stay_at_local_midnight(zone: str, month: int) -> None:
    start = datetime(2024, month, 20, tzinfo=ZoneInfo(zone))
    days = [(start + timedelta(days=i)).astimezone(UTC) for i in range(40)]
    ds = np.array([round(day.timestamp()) * 1_000_000 for day in days])
    rows = raw(range(40), np.arange(40.0))
    made = laid(
        RawSeries(ds, rows.dated, rows.y, rows.is_test, rows.covariates), freq="1D", time_zone=zone
    )
    assert made.y.tolist() == list(range(40))
    assert made.repairs.snapped == 0
    assert to_local_us(np.array([made.start_us]), zone)[0] % (24 * HOUR_US) == 0


def test_hourly_steps_are_counted_in_utc_across_the_change() -> None:
    start = datetime(2024, 10, 26, 22, tzinfo=UTC)
    ds = np.array([round((start + timedelta(hours=i)).timestamp()) * 10**6 for i in range(30)])
    rows = raw(range(30), np.arange(30.0))
    made = laid(
        RawSeries(ds, rows.dated, rows.y, rows.is_test, rows.covariates), time_zone="Europe/Berlin"
    )
    assert made.y.tolist() == list(range(30))
    assert made.observed.all()
