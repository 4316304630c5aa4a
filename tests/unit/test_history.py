from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config import PrepareConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.clean import RawSeries, lay_on_grid
from flts_ray.serve.history import (
    RawHistory,
    calendar_of,
    lay_history,
    numbers,
    parse_stamps,
    stamps_text,
)
from tests.served import plain_contract
from tests.synthetic import START_US

HOUR = 3_600_000_000
NAN = float("nan")


def raw(y: list[float], steps: list[int] | None = None, **columns: list[float]) -> RawHistory:
    at = np.arange(len(y)) if steps is None else np.array(steps)
    return RawHistory(
        field="y",
        ds_us=START_US + HOUR * at,
        y=np.array(y),
        observed=np.ones(len(y), dtype=bool),
        known_future={k: np.array(v) for k, v in columns.items() if k == "event"},
        past={k: np.array(v) for k, v in columns.items() if k == "lagged"},
    )


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-07-01T12:00:00Z", "2024-07-01T12:00:00Z"),
        ("2024-07-01T12:00:00+02:00", "2024-07-01T10:00:00Z"),
        ("2024-07-01 12:00", "2024-07-01T02:00:00Z"),
        ("2024-07-01", "2024-06-30T14:00:00Z"),
    ],
)
def test_stamps_without_offset_are_local(text: str, utc: str) -> None:
    assert stamps_text(parse_stamps([text], "Australia/Melbourne", "ds")) == [utc]


@pytest.mark.parametrize("text", ["", "soon", "2024-13-01", "1", "2024-01-01T25:00", "x" * 10_000])
def test_a_bad_stamp_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"ds\[1\].*ISO 8601") as caught:
        parse_stamps(["2024-01-01", text], "UTC", "ds")
    assert caught.value.field == "ds[1]"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31T23:59:59-12:00"])
def test_a_stamp_far_away_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="1678"):
        parse_stamps([text], "Europe/Paris", "ds")


def test_sub_second_stamps_keep_their_microseconds() -> None:
    assert stamps_text(np.array([1_500_000, 2_000_000])) == [
        "1970-01-01T00:00:01.500000Z",
        "1970-01-01T00:00:02.000000Z",
    ]


def test_non_finite_numbers_are_missing_and_huge_ones_refused() -> None:
    got = numbers([1.0, None, float("inf"), NAN], "y")
    np.testing.assert_array_equal(got, [1.0, NAN, NAN, NAN])
    with pytest.raises(DataError, match=r"y\[1\]: 1e\+31"):
        numbers([0.0, 1e31], "y")


def test_rows_are_sorted_snapped_and_the_last_duplicate_wins() -> None:
    rows = raw([3.0, 1.0, 9.0, 2.0], [3, 1, 2, 2])
    shifted = rows.ds_us.copy()
    shifted[0] += HOUR // 4
    history = lay_history(replace(rows, ds_us=shifted), plain_contract(), 3)
    np.testing.assert_array_equal(history.y, [1.0, 2.0, 3.0])
    assert history.origin_us == START_US + 4 * HOUR


def test_short_gaps_are_filled_and_marked() -> None:
    history = lay_history(raw([1.0, 2.0, 5.0], [0, 1, 4]), plain_contract(), 5)
    np.testing.assert_array_equal(history.y, [1.0, 2.0, 2.0, 2.0, 5.0])
    np.testing.assert_array_equal(history.observed, [True, True, False, False, True])


def test_the_caller_may_mark_values_as_not_observed() -> None:
    rows = replace(raw([1.0, 2.0, 3.0]), observed=np.array([True, False, True]))
    history = lay_history(rows, plain_contract(), 3)
    np.testing.assert_array_equal(history.y, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(history.observed, [True, False, True])


def test_the_last_stamp_is_the_origin_even_without_a_value() -> None:
    history = lay_history(raw([1.0, 2.0, NAN]), plain_contract(), 3)
    assert history.origin_us == START_US + 3 * HOUR
    np.testing.assert_array_equal(history.y, [1.0, 2.0, 2.0])


def test_too_short_says_how_many_are_missing() -> None:
    contract = plain_contract(freq="30min")
    rows = raw([1.0] * 90)
    rows = replace(rows, ds_us=START_US + HOUR // 2 * np.arange(90))
    with pytest.raises(DataError, match="needs 96 points at 30min, got 90: 6 are missing"):
        lay_history(rows, contract, 96)


def test_a_long_gap_is_named_with_both_ends() -> None:
    steps = [0, 1, 2, 3, 10, 11]
    with pytest.raises(DataError) as caught:
        lay_history(raw([1.0] * 6, steps), plain_contract(), 10)
    first, last = stamps_text(START_US + HOUR * np.array([4, 9]))
    assert f"no value from {first} to {last}" in str(caught.value)
    assert "up to 3 steps" in str(caught.value)


def test_a_gap_at_the_end_is_named() -> None:
    with pytest.raises(DataError, match="no value from"):
        lay_history(raw([1.0] * 8 + [NAN] * 5), plain_contract(), 10)


def test_nothing_but_missing_values_is_too_short() -> None:
    with pytest.raises(DataError, match="got 0: 10 are missing"):
        lay_history(raw([NAN] * 20), plain_contract(), 10)


def test_one_stamp_of_a_wrong_year_costs_no_memory() -> None:
    contract = plain_contract(freq="1s")
    rows = replace(raw([1.0, 2.0]), ds_us=np.array([-(10**15), 10**15]))
    with pytest.raises(DataError, match="needs 10 points at 1s, got 1: 9 are missing"):
        lay_history(rows, contract, 10)


def test_covariates_are_carried_forward() -> None:
    contract = plain_contract(known_future=("event",), past=("lagged",))
    rows = raw([1.0, 2.0, 3.0, 4.0], event=[NAN, 5.0, NAN, 6.0], lagged=[NAN, 7.0, NAN, 8.0])
    history = lay_history(rows, contract, 4)
    np.testing.assert_array_equal(history.known_future[:, 0], [5.0, 5.0, 5.0, 6.0])
    np.testing.assert_array_equal(history.past[:, 0], [0.0, 7.0, 7.0, 8.0])


def test_a_local_day_is_one_step_across_the_clock_change() -> None:
    contract = Contract(freq="1D", season=7, time_zone="Europe/Paris", max_gap=0)
    days = parse_stamps(
        [f"2024-03-{d}" for d in range(28, 32)] + ["2024-04-01"], "Europe/Paris", ""
    )
    history = lay_history(
        RawHistory("y", days, np.arange(5.0), np.ones(5, dtype=bool), {}, {}), contract, 5
    )
    np.testing.assert_array_equal(history.y, np.arange(5.0))
    assert stamps_text(np.array([history.origin_us])) == ["2024-04-01T22:00:00Z"]


def test_calendar_columns_are_those_of_the_contract_in_its_order() -> None:
    both = plain_contract(calendar=("weekday_sin", "minute_cos"))
    at = np.array([[START_US]])
    np.testing.assert_array_equal(
        calendar_of(at, both)[..., 1], calendar_of(at, plain_contract())[..., 1]
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.one_of(st.none(), st.floats(-100, 100)), st.floats(-5, 5)),
        min_size=1,
        max_size=80,
    ),
    st.integers(0, 4),
)
def test_a_request_sees_what_preparation_makes_of_the_same_rows(
    rows: list[tuple[int, float | None, float]], max_gap: int
) -> None:
    rows = [*rows, (61, 1.0, 1.0), (62, 2.0, 2.0)]
    contract = plain_contract(season=5, max_gap=max_gap, past=("lagged",))
    ds_us = START_US + HOUR * np.array([row[0] for row in rows])
    y = np.array([NAN if row[1] is None else row[1] for row in rows])
    past = np.array([row[2] for row in rows])
    n = len(rows)
    prepared = lay_on_grid(
        RawSeries(ds_us, np.ones(n, bool), y, np.zeros(n, bool), past[:, None]),
        contract,
        PrepareConfig(max_gap=max_gap, max_missing=0.99),
        np.array([False]),
    )
    lookback = 8
    request = RawHistory("y", ds_us, y, np.ones(n, dtype=bool), {}, {"lagged": past})
    if len(prepared.y) < lookback or np.isnan(prepared.y[-lookback:]).any():
        with pytest.raises(DataError):
            lay_history(request, contract, lookback)
        return
    history = lay_history(request, contract, lookback)
    np.testing.assert_array_equal(history.y, prepared.y[-lookback:])
    np.testing.assert_array_equal(history.observed, prepared.observed[-lookback:])
    np.testing.assert_array_equal(history.past, prepared.covariates[-lookback:])
    end = steps_after(np.array([prepared.start_us]), np.array([len(prepared.y)]), contract)
    assert history.origin_us == end[0]
