from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.sources.columns import labels, names, number_advice, numbers


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.booleans())
def test_numbers_in_text_come_back_exactly(values: list[float], with_gap: bool) -> None:
    text = [repr(value) for value in values] + ([" "] if with_gap else [])
    found, bad = numbers(pa.array(text))
    assert not bad.any() and found.null_count == 0
    np.testing.assert_array_equal(found, values + ([np.nan] if with_gap else []))


@pytest.mark.parametrize("missing", ["", "  ", "NA", "n/a", "NaN", "null", "None", "#N/A", None])
def test_missing_numbers(missing: str | None) -> None:
    found, bad = numbers(pa.array([missing, "1"]))
    assert not bad.any()
    np.testing.assert_array_equal(found, [np.nan, 1])


@pytest.mark.parametrize("text", ["1,5", "1.234,5", "1_000", "0x10", "1 2", "--1", "1e", ".", "-"])
def test_what_is_no_number(text: str) -> None:
    assert numbers(pa.array(["1", text, "+2.5E3 "]))[1].tolist() == [False, True, False]


def test_typed_numbers() -> None:
    for column in (
        pa.array([2**60 + 1, None]),
        pa.array([Decimal("2.5"), None]),
        pa.array([2.5, None], pa.float32()),
        pa.array(["2.5", None]).dictionary_encode(),
    ):
        found, bad = numbers(column)
        assert not bad.any() and found.type == pa.float64()
        assert np.isfinite(found[0].as_py()) and np.isnan(found[1].as_py())
    assert numbers(pa.array([[1], None]))[1].tolist() == [True, False]


def test_truth_values_only_where_allowed() -> None:
    for column in (pa.array([True, False]), pa.array(["True", "false"])):
        assert numbers(column, allow_bool=True)[0].to_pylist() == [1, 0]
        assert numbers(column)[1].tolist() == [True, True]


def test_names_are_trimmed_and_never_empty() -> None:
    found, bad = names(pa.array([" a ", "", None, "NA"]))
    assert found.to_pylist()[0] == "a" and found.to_pylist()[3] == "NA"
    assert bad.tolist() == [False, True, True, False]
    assert names(pa.array([7]))[0].to_pylist() == ["7"]
    assert names(pa.array([7.5]))[1].tolist() == [True]


def test_labels_keep_text_and_lose_blanks() -> None:
    assert labels(pa.array([" a", " ", None, "b"])).to_pylist() == ["a", None, None, "b"]


def test_advice_fits_the_value() -> None:
    assert "not a comma" in number_advice("1,5")
    assert "thousands" in number_advice("1.234,5") and "thousands" in number_advice("1,234.5")
    assert "leave it empty" in number_advice("high")
