"""A linear model refitted from sums of buckets is the one refitted on the whole set."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.models.ar import FittedAR, LinearAR
from flts_ray.models.ar_set import MORE_WINDOWS, bucket_sums, refitted, set_stride
from flts_ray.models.ar_sums import Sums
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.prepare.arrays import SeriesArrays
from tests.synthetic import seasonal_set, stats_of

WEIGHTS = (0.95, -0.95, 0.5, -0.5)
"""What each series keeps of its last value, so that each needs a map of its own."""


def different() -> SeriesArrays:
    data = seasonal_set(n_series=4, length=900, covariates=False)
    y = np.random.default_rng(0).standard_normal(len(data.y))
    for row, weight in enumerate(WEIGHTS):
        for at in range(data.rows(row).start + 1, data.rows(row).stop):
            y[at] += weight * y[at - 1]
    rows = [y[data.rows(i)][: data.train_end[i]] for i in range(data.n_series)]
    return replace(data, y=y, stats=stats_of(rows, data.contract.season))


DATA = different()


@cache
def fitted(pooling: str) -> FittedAR:
    params = {"lags": 24, "pooling": pooling, "seasons": 1, "reach": 40}
    found = fit_fully("ar", DATA, Task(6, (0.1, 0.5, 0.9)), params)
    assert isinstance(found, FittedAR)
    return found


def assert_same_sums(found: Sums, expected: Sums) -> None:
    assert found.arrays().keys() == expected.arrays().keys()
    for name, value in expected.arrays().items():
        size = float(np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(found.arrays()[name], value, rtol=1e-9, atol=1e-9 * size)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["global", "per_series"]),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.integers(1, 5),
)
def test_sums_of_any_buckets_add_up(pooling: str, bucket_of: list[int], stride: int) -> None:
    model = fitted(pooling)
    buckets = [np.flatnonzero(np.asarray(bucket_of) == one) for one in sorted({*bucket_of})]
    parts = [bucket_sums(model, DATA.take(rows), stride) for rows in buckets]
    found, expected = reduce(add, parts), bucket_sums(model, DATA, stride)
    assert found.strides == (stride, stride)
    assert_same_sums(found, expected)


@pytest.mark.parametrize("pooling", ["global", "per_series"])
def test_at_the_stride_of_a_refit_in_memory_the_model_is_the_same(pooling: str) -> None:
    model = fitted(pooling)
    expected = LinearAR().refit(model, DATA, Compute())
    found = refitted(model, bucket_sums(model, DATA, 1))
    assert len(found.maps) == len(expected.maps) == 1 + len(model.recipe.owners)
    for one, other in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(one.future, other.future, rtol=1e-6, atol=1e-9)


def test_a_set_without_an_owner_of_a_map_is_refused() -> None:
    model = fitted("per_series")
    assert 0 in model.recipe.owners
    with pytest.raises(DataError, match="none of a series that has a map of its own"):
        refitted(model, bucket_sums(model, DATA.take([1, 2, 3]), 1))


@settings(deadline=None)
@given(st.integers(1, 10**10), st.integers(1, 10**6))
def test_a_stride_bounds_the_windows_and_meets_every_phase(rows: int, series: int) -> None:
    model = fitted("global")
    stride = set_stride(model, rows, series)
    windows = rows - series * (model.spec.lookback + 5)
    assert windows / stride <= MORE_WINDOWS * model.spec.params["max_windows"]
    assert np.gcd(stride, model.spec.contract.season) == 1
