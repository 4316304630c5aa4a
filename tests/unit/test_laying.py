from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import DataError, FltsError
from flts_ray.panel import Contract, steps_after
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import lay, windows_of
from flts_ray.serve.regular import Block, regular_windows
from flts_ray.serve.rows import AskedSeries, row_of
from tests.served import HORIZON, LOOKBACK, known_set, plain_contract, served, transparent
from tests.synthetic import START_US

DAILY = Contract(freq="1D", season=7, time_zone="Europe/Paris", max_gap=2)
RICH = known_set().contract


def model_of(contract: Contract) -> ServedModel:
    return served(transparent(contract, lookback=8))


def series(
    contract: Contract, length: int, number: int = 0, start_us: int = START_US, **changes: Any
) -> AskedSeries:
    rng = np.random.default_rng(number)
    stamps = steps_after(np.asarray(start_us), np.arange(length), contract)
    fields: dict[str, Any] = {
        "field": f"series[{number}].",
        "id": f"s{number}",
        "named": True,
        "ds": stamps,
        "y": rng.normal(5, 50, length),
        "known_future": {n: rng.normal(size=length + HORIZON) for n in contract.known_future},
        "past": {n: rng.normal(size=length) for n in contract.past},
        "static": {n: float(number) for n in contract.static},
    }
    return AskedSeries(**{**fields, **changes})


def assert_laid_alike(asked: list[AskedSeries], model: ServedModel) -> None:
    """What `lay` gives is what repairing each series by itself gives."""
    laid = lay(asked, model)
    rows = dict(zip(laid.rows.tolist(), range(len(laid.rows)), strict=True))
    for i, one in enumerate(asked):
        try:
            row = row_of(one, model, None)
        except FltsError as error:
            assert str(laid.refused[i]) == str(error)
            assert i not in rows
            continue
        assert laid.windows is not None
        got = laid.windows.part(slice(rows[i], rows[i] + 1))
        assert got.ids == (row.id,)
        assert got.origin_us[0] == row.origin_us
        calendar = len(got.contract.calendar)
        for have, want in (
            (got.y, row.y), (got.observed, row.observed), (got.past, row.past),
            (got.future[..., calendar:], row.known), (got.static, row.static),
            (got.scale, np.asarray(row.scale)),
        ):  # fmt: skip
            np.testing.assert_array_equal(have[0], want)


FLAWS: list[dict[str, Any]] = [
    {},
    {"ds": None, "start": START_US},
    {"ds": None, "start": "2024-03-30T23:00:00Z"},
    {"y": [None] * 3 + [1.0] * 17},
    {"y": [1.0] * 18 + [None, 2.0]},
    {"y": [1.0] * 19 + [float("inf")]},
    {"y": [1e31] + [1.0] * 19},
    {"observed": [True] * 18 + [False, True]},
    {"observed": [True]},
    {"origin": "2024-01-01"},
    {"known_future": {}},
    {"past": {"wind": [1.0]}},
    {"static": {"number": float("nan")}},
    {"ds": np.full(20, START_US)},
    {"ds": None},
    {"id": "s1", "y": np.full(20, 1e4)},
]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([plain_contract(), DAILY, RICH, plain_contract(time_zone="Europe/Paris")]),
    st.lists(
        st.tuples(st.sampled_from(FLAWS), st.sampled_from([20, 20, 20, 9, 5])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 4000),
)
def test_many_series_are_laid_as_one_by_one(
    contract: Contract, kinds: list[tuple[dict[str, Any], int]], later: int
) -> None:
    start = int(steps_after(np.asarray(START_US), np.asarray(later), contract))
    asked = [series(contract, n, i, start, **flaw) for i, (flaw, n) in enumerate(kinds)]
    assert_laid_alike(asked, model_of(contract))


@pytest.mark.parametrize("start", ["2024-03-24", "2024-10-20", "2024-03-31T00:00"])
def test_daily_series_across_a_change_of_the_clock(start: str) -> None:
    asked = [series(DAILY, 12, i, ds=None, start=start) for i in range(2)]
    model = model_of(DAILY)
    assert_laid_alike(asked, model)
    midnights = (79_200_000_000, 82_800_000_000)
    assert windows_of(asked, model).origin_us[0] % 86_400_000_000 in midnights


def test_regular_histories_need_no_repair_one_by_one() -> None:
    contract = RICH
    length = LOOKBACK + 3
    block = Block(
        fields=["series[0].", "series[1]."],
        ids=["s0", "new"],
        y=np.arange(2.0 * length, dtype=np.float32).reshape(2, length),
        start_us=np.array([START_US, START_US]),
        known_future={n: np.ones((2, length + HORIZON)) for n in contract.known_future},
        past={n: np.ones((2, length)) for n in contract.past},
        static={n: np.ones(2) for n in contract.static},
    )
    model = served(transparent(contract))
    found = regular_windows(block, model)
    assert found is not None
    windows, good = found
    assert good.all()
    np.testing.assert_array_equal(windows.scale, [1.0, np.nan])
    np.testing.assert_array_equal(windows.y[0], np.arange(3.0, length))
    assert_laid_alike([block.series(0), block.series(1)], model)
    assert regular_windows(replace(block, static=None), model) is None


def test_the_first_bad_series_is_named() -> None:
    contract = plain_contract()
    asked = [series(contract, 20), series(contract, 2, 1), series(contract, 1, 2)]
    with pytest.raises(DataError, match=r"series\[1\].y: needs 8 points"):
        windows_of(asked, model_of(contract))
