"""What a set holds that a model has not seen: rows, new series, statistics, codes of labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted, Task, fit_fully
from flts_ray.models.news import News, news_of
from flts_ray.panel import UNKNOWN_CATEGORY
from flts_ray.prepare.arrays import SeriesArrays
from tests.synthetic import START_US, seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
HOUR_US = 3_600_000_000


def until(data: SeriesArrays, train: int, valid: int) -> SeriesArrays:
    n = data.n_series
    return replace(data, train_end=np.full(n, train), valid_end=np.full(n, valid))


def newer() -> SeriesArrays:
    return until(seasonal_set(n_series=4), 450, 540)


@cache
def fitted() -> Fitted:
    return fit_fully("seasonal_naive", until(seasonal_set(), 300, 480), TASK)


def news(data: SeriesArrays, model: Fitted | None = None, **about: Any) -> News:
    found = news_of(model or fitted(), data, **about)
    assert found is not None
    return found


def test_known_series_keep_their_rows_and_new_ones_follow() -> None:
    found = news(newer().take([3, 1, 0]))
    assert found.stats.ids == ("s0", "s1", "s2", "s3")
    assert found.known == 3
    np.testing.assert_array_equal(found.since, [480, 480, 0, 0])
    np.testing.assert_array_equal(found.until, [540, 540, 0, 540])
    assert found.rows == 60 + 60 + 540
    assert news(newer(), only_known=True).stats.ids == ("s0", "s1", "s2")


def test_the_tail_holds_the_new_rows_and_what_lies_just_before() -> None:
    data, (found, begin) = newer(), news(newer().take([2, 3, 0])).tail(100)
    np.testing.assert_array_equal(begin, [380, 0, 380, 0])
    np.testing.assert_array_equal(found.lengths, [160, 0, 160, 540])
    np.testing.assert_array_equal(found.train_end, [100, 0, 100, 0])
    np.testing.assert_array_equal(found.valid_end, found.lengths)
    np.testing.assert_array_equal(found.start_us[[0, 2]], START_US + 380 * HOUR_US)
    for mine, theirs in ((0, 0), (2, 2), (3, 3)):
        rows = data.rows(theirs)
        kept = slice(rows.start + int(begin[mine]), rows.start + 540)
        for name in ("y", "observed", "future", "past"):
            expected = getattr(data, name)[kept]
            np.testing.assert_array_equal(getattr(found, name)[found.rows(mine)], expected)
        np.testing.assert_array_equal(found.static[mine], data.static[theirs])


def test_the_whole_ends_where_the_test_span_begins() -> None:
    found = news(newer()).whole()
    np.testing.assert_array_equal(found.lengths, [540] * 4)
    np.testing.assert_array_equal(found.train_end, [480, 480, 480, 0])


def test_scales_stay_and_bounds_only_widen() -> None:
    data, model = newer(), fitted()
    mine: Any = replace(model.stats, clip_lo=np.array([0.0, -9.0, 0.0]), clip_hi=np.full(3, 5.0))
    theirs = replace(
        data.stats,
        scale=np.full(4, 7.0),
        mean=np.arange(4.0),
        clip_lo=np.array([-1.0, -1.0, 1.0, -4.0]),
        clip_hi=np.array([4.0, 9.0, 5.0, 6.0]),
    )
    bounded: Any = model
    found = news(replace(data, stats=theirs), replace(bounded, stats=mine)).stats
    np.testing.assert_array_equal(found.scale, [*model.stats.scale, 7.0])
    np.testing.assert_array_equal(found.mean, [0, 1, 2, 3])
    np.testing.assert_array_equal(found.clip_lo, [-1, -9, 0, -4])
    np.testing.assert_array_equal(found.clip_hi, [5, 9, 5, 6])


def test_a_series_that_is_missing_keeps_its_statistics() -> None:
    found = news(newer().take([0, 3])).stats
    for name in ("mean", "std", "scale"):
        np.testing.assert_array_equal(getattr(found, name)[1:3], getattr(fitted().stats, name)[1:])


def labelled(data: SeriesArrays, labels: tuple[str, ...], codes: list[float]) -> SeriesArrays:
    contract = replace(data.contract, categories=(labels,))
    return replace(data, contract=contract, static=np.array(codes, np.float32)[:, None])


def test_labels_get_the_codes_that_the_model_knows() -> None:
    old = labelled(until(seasonal_set(), 300, 480), ("east", "west"), [0, 1, 1])
    model = fit_fully("seasonal_naive", old, TASK)
    new = labelled(newer(), ("centre", "east", "west"), [1, 2, UNKNOWN_CATEGORY, 0])
    found = news(new, model).whole()
    assert found.contract == old.contract
    np.testing.assert_array_equal(found.static[:, 0], [0, 1, UNKNOWN_CATEGORY, UNKNOWN_CATEGORY])


@pytest.mark.parametrize("change", [{"season": 12}, {"past": ()}, {"time_zone": "Asia/Tokyo"}])
def test_another_contract_is_refused(change: dict[str, Any]) -> None:
    data = newer()
    with pytest.raises(DataError, match="cannot be added; train again"):
        news_of(fitted(), replace(data, contract=replace(data.contract, **change)))


def test_units_that_were_named_later_change_nothing() -> None:
    named = replace(newer(), contract=replace(newer().contract, units="MW"))
    assert news(named).whole().contract == fitted().spec.contract


def test_a_missing_known_future_value_says_which_and_where() -> None:
    data = newer()
    future = data.future.copy()
    future[data.rows(1).start + 500, data.contract.future.index("event")] = np.nan
    with pytest.raises(
        DataError, match=r"known_future.event: series s1 has no value at .*step 500 of"
    ):
        news_of(fitted(), replace(data, future=future))
