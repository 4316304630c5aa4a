"""One bucket: every series comes out prepared or quarantined with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.config import SplitConfig
from flts_ray.errors import DataError
from flts_ray.prepare.calendar import calendar_features
from flts_ray.prepare.clean import Rejected
from flts_ray.prepare.kernel import QUARANTINE_SCHEMA, prepare_bucket
from flts_ray.prepare.splits import check_spans, split_ends
from tests.raw_tables import HOUR_US, START_US, raw_table, rules

nan = float("nan")


def wave(length: int = 60, level: float = 10.0) -> list[float]:
    return [level + i % 4 + 0.01 * i for i in range(length)]


def codes(quarantine: pa.Table) -> dict[str, str]:
    return {row["unique_id"]: row["code"] for row in quarantine.to_pylist()}


def test_rows_are_sorted_and_complete() -> None:
    made = prepare_bucket(raw_table({"b": wave(), "a": wave(50)}), rules())
    assert made.series["unique_id"].to_pylist() == ["a", "b"]
    assert made.series["rows"].to_pylist() == [50, 60]
    assert made.data["unique_id"].to_pylist() == ["a"] * 50 + ["b"] * 60
    assert made.data["y"].to_pylist() == wave(50) + wave(60)
    ds = made.data["ds"].cast(pa.int64()).to_numpy()
    np.testing.assert_array_equal(ds[:50], START_US + np.arange(50) * HOUR_US)
    assert made.data["observed"].to_pylist() == [True] * 110
    assert made.quarantine.schema == QUARANTINE_SCHEMA


def test_calendar_columns_are_those_of_the_stamps() -> None:
    rule = rules(time_zone="Australia/Melbourne", holidays="AU")
    made = prepare_bucket(raw_table({"a": wave()}), rule)
    ds = made.data["ds"].cast(pa.int64()).to_numpy()
    expected = calendar_features(ds, "Australia/Melbourne", "1h", "AU")
    for i, name in enumerate(rule.contract.calendar):
        np.testing.assert_array_equal(made.data[name].to_numpy(), expected[:, i])


def test_splits_are_shares_of_each_series() -> None:
    made = prepare_bucket(raw_table({"a": wave(100)}), rules()).series
    assert made["valid_end"].to_pylist() == [85]
    assert made["train_end"].to_pylist() == [72]


def test_test_files_set_the_test_span() -> None:
    table = raw_table({"a": wave(100)}, is_test_from=70)
    made = prepare_bucket(table, rules(has_test_files=True)).series
    assert made["valid_end"].to_pylist() == [70]


def test_a_series_without_rows_in_the_test_files_is_too_short() -> None:
    made = prepare_bucket(raw_table({"a": wave(100)}), rules(has_test_files=True))
    assert codes(made.quarantine) == {"a": "too_short"}
    assert "test 0 of 2" in made.quarantine["reason"][0].as_py()


def test_spans_that_the_split_leaves_out_need_no_rows() -> None:
    assert split_ends(10, None, False, SplitConfig(validation=0, test=0)) == (10, 10)
    check_spans(10, (10, 10), 4, 2, (False, False))
    with pytest.raises(Rejected, match="validation 0 of 2, test 0 of 2"):
        check_spans(10, (10, 10), 4, 2)


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ([nan] * 30, "not_finite", "30 stamps"),
        ([float("inf")] * 30, "not_finite", "finite"),
        (wave(7), "too_short", "training 5 of 6"),
        ([3.5] * 60, "constant", "3.5"),
        ([0.0] * 60, "all_zero", "0"),
        ([5.0] * 50 + wave(10), "constant", "of its first 43 steps (training) is 5"),
        ([0.0] * 43 + wave(17), "all_zero", "(training) is 0"),
        (wave(20) + [nan] * 60 + wave(20), "missing", "60.0%"),
        ([1e308, -1e308] * 30, "failed", "overflow"),
    ],
)
def test_bad_series_are_quarantined_and_the_others_kept(
    values: list[float], code: str, told: str
) -> None:
    made = prepare_bucket(raw_table({"good": wave(), "bad": values, "other": wave()}), rules())
    assert made.series["unique_id"].to_pylist() == ["good", "other"]
    (row,) = made.quarantine.to_pylist()
    assert (row["unique_id"], row["code"], row["rows"]) == ("bad", code, len(values))
    assert told in row["reason"]


def test_constant_series_may_be_kept() -> None:
    table = raw_table({"zero": [0.0] * 60, "flat": [3.0] * 60})
    made = prepare_bucket(table, rules(constant="keep"))
    assert made.series["unique_id"].to_pylist() == ["flat", "zero"]
    assert min(made.series["scale"].to_pylist()) > 0


def test_all_quarantined_gives_empty_tables() -> None:
    made = prepare_bucket(raw_table({"zero": [0.0] * 60}), rules())
    assert (len(made.data), len(made.series), len(made.quarantine)) == (0, 0, 1)


def test_repairs_are_counted_for_each_series() -> None:
    values = [*wave(30), nan, float("inf"), *wave(28)]
    made = prepare_bucket(raw_table({"a": values, "b": wave()}), rules()).series
    first, second = made.to_pylist()
    assert (first["imputed"], first["non_finite"], first["missing"]) == (2, 1, 0)
    assert second["imputed"] == second["non_finite"] == second["duplicates"] == 0


def test_covariates_of_each_role() -> None:
    n = 40
    table = raw_table(
        {"a": wave(n), "b": wave(n)},
        temperature=pa.array([None, *range(2 * n - 1)], pa.int64()),
        workday=pa.array([i % 7 < 5 for i in range(2 * n)]),
        region=pa.array([None, "north", *["x"] * (n - 2), *["south"] * n]),
    )
    rule = rules(past=("temperature",), known_future=("workday",), static=("region",))
    made = prepare_bucket(table, rule)
    assert made.data["temperature"].to_pylist()[:3] == [0.0, 0.0, 1.0]
    assert made.data["temperature"].type == pa.float32()
    assert made.data["workday"].to_pylist()[:6] == [1.0] * 5 + [0.0]
    assert made.series["static.region"].to_pylist() == ["north", "south"]


def test_a_static_value_may_be_missing_in_one_series() -> None:
    floor = pa.array([None] * 40 + [nan, 1e300] * 20 + [3.0] * 40, pa.float64())
    table = raw_table({"a": wave(40), "b": wave(40), "c": wave(40)}, floor=floor)
    made = prepare_bucket(table, rules(static=("floor",)))
    assert made.series["static.floor"].to_pylist() == [None, None, 3.0]


def test_text_in_a_numeric_covariate_names_the_column() -> None:
    table = raw_table({"a": wave(2)}, weather=pa.array(["sunny", "rain"]))
    with pytest.raises(DataError, match="column weather"):
        prepare_bucket(table, rules(past=("weather",)))


def test_the_order_of_rows_is_no_matter() -> None:
    table = raw_table({"b": wave(), "a": [*wave(59), 7.0]})
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    pieces = pa.concat_tables([shuffled.slice(40), shuffled.slice(0, 40)])
    first, second = prepare_bucket(table, rules()), prepare_bucket(pieces, rules())
    assert first.data.equals(second.data)
    assert first.series.equals(second.series)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=4),
        st.lists(
            st.none() | st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=25
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["last", "mean", "quarantine"]),
)
def test_every_series_is_in_the_output_or_in_the_quarantine(
    series: dict[str, list[float | None]], duplicates: Any
) -> None:
    made = prepare_bucket(raw_table(series), rules(duplicates=duplicates, max_missing=0.9))
    kept = made.series["unique_id"].to_pylist()
    out = made.quarantine["unique_id"].to_pylist()
    assert sorted(kept + out) == sorted(series)
    assert made.data["unique_id"].unique().to_pylist() == kept
    assert all(row["reason"] for row in made.quarantine.to_pylist())
