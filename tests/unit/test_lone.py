from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.laying import lay, windows_of
from flts_ray.serve.lone import lone_window
from tests.served import plain_contract, served, transparent
from tests.synthetic import START_US
from tests.unit.test_laying import DAILY, FLAWS, RICH, model_of, series

PARIS = plain_contract(time_zone="Europe/Paris")
STARTS: list[dict[str, Any]] = [
    {"ds": None, "start": start}
    for start in (
        "2024-03-30T23:00:00Z",
        "2024-03-30T23:00:00",
        "2024-03-31",
        "2024-10-27T02:30:00+05:30",
        "1500-01-01",
        "2261-12-31T23:00:00-14:00",
        "soon",
    )
]
ODD: list[dict[str, Any]] = [
    {"y": []},
    {"y": [1.0] * 16 + [1e4] * 4},
    {"y": [1.0] * 19 + [1e4]},
    {"y": np.arange(20, dtype=np.float32)},
    {"ds": ["2024-03-30T23:00:00"] * 20},
    {"ds": ["soon"] * 20},
]


def assert_same(found: Windows, wanted: Windows) -> None:
    assert found.ids == wanted.ids
    for name in ("origin_us", "y", "observed", "past", "future", "static", "scale"):
        have, want = getattr(found, name), getattr(wanted, name)
        assert have.dtype == want.dtype, name
        np.testing.assert_array_equal(have, want, err_msg=name)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([plain_contract(), plain_contract(calendar=()), DAILY, RICH, PARIS]),
    st.sampled_from([*FLAWS, *STARTS, *ODD]),
    st.sampled_from([20, 20, 9, 5]),
    st.sampled_from(["s0", "new"]),
    st.integers(0, 4000),
)
def test_a_window_is_the_one_that_a_block_would_have(
    contract: Contract, kind: dict[str, Any], length: int, name: str, later: int
) -> None:
    start = int(steps_after(np.asarray(START_US), np.asarray(later), contract))
    asked = series(contract, length, 0, start, **{"id": name, **kind})
    model = model_of(contract)
    found = lone_window(asked, model)
    laid = lay([asked], model)
    if found is not None:
        assert laid.windows is not None, laid.refused
        assert_same(found, laid.windows)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"ds": None, "start": "2024-03-30T23:00:00Z"},
        {"ds": None, "start": START_US},
        {"observed": [True] * 18 + [False, True]},
        {"id": "new", "y": [1.0] * 20},
    ],
)
def test_plain_series_take_the_short_way(kind: dict[str, Any]) -> None:
    contract = plain_contract()
    found = lone_window(series(contract, 20, **kind), model_of(contract))
    assert found is not None
    assert_same(windows_of([series(contract, 20, **kind)], model_of(contract)), found)


def test_covariates_and_repairs_take_the_long_way() -> None:
    plain = plain_contract()
    assert lone_window(series(RICH, 20), model_of(RICH)) is None
    assert lone_window(series(plain, 20, y=[None] * 2 + [1.0] * 18), model_of(plain)) is None
    assert lone_window(series(plain, 7), served(transparent(plain, lookback=8))) is None
