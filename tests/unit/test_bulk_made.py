from __future__ import annotations

import numpy as np
import pytest

from flts_ray.models.base import Forecast
from flts_ray.serve.bulk_made import finite_rows, made_of_many
from flts_ray.serve.predictor import made_of, not_finite
from tests.served import LEVELS, plain_contract, served, transparent


def forecast(count: int = 5, steps: int = 4) -> Forecast:
    rng = np.random.default_rng(count)
    quantiles = np.sort(rng.normal(size=(count, steps, len(LEVELS))), axis=-1)
    ids = tuple(f"s{i}" for i in range(count))
    return Forecast(ids, np.arange(count), LEVELS, rng.normal(size=(count, steps)), quantiles)


@pytest.mark.parametrize("levels", [LEVELS, (0.9, 0.1), (), (0.1, 0.2), (0.5,)])
@pytest.mark.parametrize("horizon", [1, 4])
def test_it_is_what_is_made_of_a_single_request(levels: tuple[float, ...], horizon: int) -> None:
    model = served(transparent(plain_contract()))
    got = made_of_many(forecast(), horizon, levels, model)
    want = made_of(forecast(), horizon, levels, model)
    assert (got.ids, got.levels, got.cold) == (want.ids, want.levels, want.cold)
    for name in ("origin_us", "mean", "median", "quantiles"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert got.quantiles.transpose(1, 0, 2).flags.c_contiguous


def test_series_with_a_number_that_is_none_are_found() -> None:
    model = served(transparent(plain_contract()))
    whole = forecast()
    assert finite_rows(whole, made_of_many(whole, 2, (0.1,), model)) is None
    whole.mean[1, 3] = np.nan
    whole.quantiles[3, 0, 2] = np.inf
    found = finite_rows(whole, made_of_many(whole, 2, (0.1,), model))
    assert found is not None
    assert found.tolist() == [True, False, True, False, True]


def test_numbers_whose_sum_is_too_large_are_finite() -> None:
    model = served(transparent(plain_contract()))
    whole = forecast()
    whole.mean[:] = 1e308
    assert finite_rows(whole, made_of_many(whole, 4, (0.1,), model)) is None


def test_a_level_between_two_extremes_that_overflows_is_found() -> None:
    model = served(transparent(plain_contract()))
    whole = forecast()
    whole.quantiles[2, :] = [-1.7e308, -1.7e308, 0, 1.7e308, 1.7e308]
    whole.quantiles[2, :, 1] = -1.7e308
    whole.quantiles[2, :, 2] = 1.7e308
    found = finite_rows(whole, made_of_many(whole, 4, (0.3,), model))
    assert found is not None
    assert found.tolist() == [True, True, False, True, True]


def test_the_refusal_names_the_series() -> None:
    assert "'north'" in str(not_finite("north"))
