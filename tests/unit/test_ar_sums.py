"""A linear model updated piece by piece is the model refitted on everything."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models import ar
from flts_ray.models.ar import FittedAR, LinearAR
from flts_ray.models.ar_sums import Sums
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.ridge import Moments
from flts_ray.prepare.arrays import SeriesArrays, origins_in, widened, windows_at
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
PARAMS: dict[str, dict[str, Any]] = {
    "pooled": {"pooling": "global", "lags": 24},
    "own": {"pooling": "per_series", "lags": 24, "seasons": 1},
    "borrowed and long": {"pooling": "auto", "lags": 12, "reach": 60},
    "thinned": {"lags": 24, "pooling": "global", "max_windows": 400},
}


def until(valid: int, source: SeriesArrays | None = None) -> SeriesArrays:
    data = source or other_dynamics()
    return replace(data, train_end=np.full(3, 400), valid_end=np.full(3, valid))


@cache
def other_dynamics() -> SeriesArrays:
    """Series that do not follow one law, so that maps of their own pay; with a long gap."""
    data, rng = seasonal_set(length=1000), np.random.default_rng(2)
    y, observed = data.y.copy(), data.observed.copy()
    for i in range(3):
        rows = data.rows(i)
        walk = rng.standard_normal(1000)
        for t in range(1, 1000):
            walk[t] += (0.9 - 0.8 * i) * walk[t - 1]
        y[rows] += 10.0**i * walk
    gap = slice(1000 + 620, 1000 + 650)
    y[gap], observed[gap] = np.nan, False
    return replace(data, y=y, observed=observed)


@cache
def refitted(name: str, valid: int) -> FittedAR:
    fitted = fit_fully("ar", until(500), TASK, PARAMS[name])
    return LinearAR().refit(fitted, until(valid), Compute())


def forecasts(fitted: FittedAR) -> np.ndarray:
    series, origins = origins_in(until(900), "test", fitted.spec.lookback, 6)
    return fitted.forecast(windows_at(until(900), series, origins, fitted.spec.lookback, 6)).mean


@pytest.mark.parametrize("name", PARAMS)
def test_pieces_equal_a_refit_on_everything(name: str) -> None:
    updated = refitted(name, 500)
    for valid in (501, 503, 640, 645, 660, 900):
        updated = LinearAR().update(updated, until(valid), Compute())
    assert updated.sums is not None
    if name == "thinned":
        assert updated.sums.strides[0] > 1
        return  # a refit would choose other windows
    expected = refitted(name, 900)
    assert expected.sums is not None
    assert updated.sums.short[0] is not None and expected.sums.short[0] is not None
    assert updated.sums.short[0].n == expected.sums.short[0].n
    for one, other in zip(updated.maps, expected.maps, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-9)
        # Weights of columns that tell almost the same differ more than what they add up to.
        np.testing.assert_allclose(one.future, other.future, atol=1e-7)
    np.testing.assert_allclose(forecasts(updated), forecasts(expected), rtol=1e-9)


def test_the_cases_are_what_they_are_called() -> None:
    assert len(refitted("own", 500).recipe.owners) > 0
    long = refitted("borrowed and long", 500)
    assert long.recipe.reach == 60 and long.sums is not None and long.sums.long
    assert not np.allclose(forecasts(refitted("own", 500)), forecasts(refitted("own", 900)))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(501, 899), max_size=3))
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    updated = refitted("pooled", 500)
    for valid in [*sorted(cuts), 900]:
        updated = LinearAR().update(updated, until(valid), Compute())
    np.testing.assert_allclose(forecasts(updated), forecasts(refitted("pooled", 900)), rtol=1e-9)


def test_thinned_windows_go_on_at_their_stride() -> None:
    first = refitted("thinned", 500)
    pieces = first
    for valid in (611, 612, 900):
        pieces = LinearAR().update(pieces, until(valid), Compute())
    at_once = LinearAR().update(first, until(900), Compute())
    np.testing.assert_allclose(forecasts(pieces), forecasts(at_once), rtol=1e-9)


def test_sums_that_are_too_large_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = refitted("own", 500)
    monkeypatch.setattr(ar, "MAX_BYTES", 10)
    lost = LinearAR().refit(fit_fully("ar", until(500), TASK, PARAMS["own"]), until(500), Compute())
    assert lost.sums is None
    assert not any(name.startswith("sums.") for name in lost.state()[1])
    again = LinearAR().update(lost, until(900), Compute())
    expected = LinearAR().update(kept, until(900), Compute())
    np.testing.assert_allclose(forecasts(again), forecasts(expected), rtol=1e-9)


@pytest.mark.parametrize("bound", [10, 2**25])
def test_the_map_of_a_series_that_is_gone_stays(
    bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ar, "MAX_BYTES", bound)
    first = fit_fully("ar", until(500), TASK, PARAMS["own"])
    assert isinstance(first, FittedAR)
    refit = LinearAR().refit(first, until(500), Compute())
    gone = int(refit.recipe.owners[0])
    left = until(900).take([row for row in range(3) if row != gone])
    found = LinearAR().update(refit, left, Compute())
    assert found.stats.ids == first.stats.ids
    assert not np.array_equal(found.maps[0].values, refit.maps[0].values)
    if bound == 10:
        np.testing.assert_array_equal(found.maps[1].values, refit.maps[1].values)
    # With sums its own windows are as they were; those of all others are not in this map.
    np.testing.assert_allclose(found.maps[1].values, refit.maps[1].values, atol=1e-9)


def made(seed: int) -> Moments:
    rng = np.random.default_rng(seed)
    return Moments.of(rng.random((9, 3)), rng.random((9, 4, 2)), rng.random((9, 4)))


def test_sums_are_stored_as_triangles_and_come_back() -> None:
    sums = Sums((made(1), None, made(2)), (made(3),), (1, 5))
    arrays = sums.arrays()
    assert arrays["sums.short.0.shared_shared"].shape == (6,)
    assert arrays["sums.short.0.step_step"].shape == (4, 3)
    assert sums.nbytes == sum(array.nbytes for array in arrays.values())
    found = Sums.from_arrays({"other": np.zeros(1), **arrays})
    assert found is not None and found.strides == (1, 5)
    assert found.short[1] is None and len(found.long) == 1
    for one, other in zip(
        (sums.short[2], sums.long[0]), (found.short[2], found.long[0]), strict=True
    ):
        assert one is not None and other is not None
        for name, value in vars(one).items():
            np.testing.assert_allclose(getattr(other, name), value, err_msg=name)
    assert Sums.from_arrays({"other": np.zeros(1)}) is None


def test_sums_of_no_window_add_nothing() -> None:
    one = Sums((made(1), made(2)), (), (2, 3))
    both = one + Sums((made(4), None), (), (1, 1))
    assert both.strides == (2, 3)
    assert both.short[0] is not None and both.short[0].n == 18
    assert both.short[1] is one.short[1]


@pytest.mark.parametrize("most", [100, 200, 400])
def test_the_stride_of_a_sample_is_one_of_how_many_windows_it_takes(most: int) -> None:
    params = {"lags": 24, "pooling": "global", "max_windows": most}
    fitted = fit_fully("ar", until(500), TASK, params)
    model = LinearAR().refit(fitted, until(500), Compute())
    total = len(origins_in(widened(until(500)), "train", model.summed, 6)[0])
    assert model.sums is not None and model.sums.strides[0] == round(total / most) > 1


def test_series_that_begin_together_take_turns_in_an_update() -> None:
    whole, n = seasonal_set(n_series=50, length=500), 50

    def cut(train: int, valid: int) -> SeriesArrays:
        return replace(whole, train_end=np.full(n, train), valid_end=np.full(n, valid))

    params = {"lags": 24, "pooling": "global", "max_windows": 200}
    fitted = fit_fully("ar", cut(300, 400), TASK, params)
    model = LinearAR().refit(fitted, cut(300, 400), Compute())
    counts = []
    for valid in (400, 414, 428, 442):
        model = LinearAR().update(model, cut(300, valid), Compute())
        assert model.sums is not None and model.sums.strides[0] > 60
        assert model.sums.short[0] is not None
        counts.append(model.sums.short[0].n)
    added = np.diff(counts)
    assert (added >= 1).all() and (added <= 30).all()  # 14 steps of 50 series, one of 85 windows
