"""A model that was fitted on some series of a set, told of the others."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.evaluate.backtest import choose_origins
from flts_ray.evaluate.rolling import rolling_backtest
from flts_ray.models import artifact
from flts_ray.models.base import KINDS, Compute, Fitted, Task, fit_fully, forecaster
from flts_ray.models.introduce import introduced, takes_any
from flts_ray.models.memory import memory_of, seen_positions
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, origins_in, windows_at
from flts_ray.prepare.loading import Census
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
QUICK: dict[str, dict[str, Any]] = {
    kind: {"epochs": 1, "hidden": 8, "windows_per_epoch": 256} for kind in ("gru", "lstm")
}
WHOLE = seasonal_set(n_series=6, length=420)
SOME = WHOLE.take([0, 1, 2, 3])
FREE = [kind for kind in KINDS if takes_any(kind, {})]


def census_of(data: SeriesArrays) -> Census:
    return Census(data.stats, steps_after(data.start_us, data.valid_end, data.contract))


@cache
def fitted(kind: str) -> Fitted:
    return fit_fully(kind, SOME, TASK, QUICK.get(kind, {}), Compute(seed=1))


@pytest.fixture(params=FREE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_take_any_series_are_known_beforehand(kind: str) -> None:
    assert takes_any(kind, {}) is not fitted(kind).spec.needs_known_series


def test_networks_of_single_series_do_not_take_any() -> None:
    assert not takes_any("gru", {"group": "per_series"})
    assert takes_any("gru", {"group": "global"})


def test_forecasts_of_its_own_series_stay(kind: str) -> None:
    before, after = fitted(kind), introduced(fitted(kind), census_of(WHOLE))
    spec = before.spec
    windows = windows_at(SOME, *origins_in(SOME, "test", spec.lookback, 6, 5), spec.lookback, 6)
    old, new = before.forecast(windows), after.forecast(windows)
    np.testing.assert_array_equal(new.mean, old.mean)
    np.testing.assert_array_equal(new.quantiles, old.quantiles)


def test_others_are_known_with_their_scale(kind: str) -> None:
    after = introduced(fitted(kind), census_of(WHOLE))
    assert after.stats.ids == WHOLE.ids
    np.testing.assert_array_equal(after.stats.scale, WHOLE.stats.scale)
    spec = after.spec
    others = WHOLE.take([4, 5])
    windows = windows_at(others, *origins_in(others, "test", spec.lookback, 6, 5), spec.lookback, 6)
    forecast = after.forecast(windows)
    assert np.isfinite(forecast.quantiles).all()
    truth = others.y[others.rows(0)][-100:].mean()
    assert abs(forecast.mean[: len(windows) // 2].mean() - truth) < 0.5 * abs(truth)


def test_rows_from_the_test_span_on_are_new_of_every_series(kind: str) -> None:
    after = introduced(fitted(kind), census_of(WHOLE))
    np.testing.assert_array_equal(seen_positions(after, WHOLE), WHOLE.valid_end)
    newer = replace(WHOLE, valid_end=WHOLE.valid_end + 20)
    updated = forecaster(kind).update(after, newer, Compute(seed=1))
    memory = memory_of(updated)
    assert memory is not None and updated.stats.ids == WHOLE.ids
    np.testing.assert_array_equal(seen_positions(updated, newer), newer.valid_end)


def test_bands_kept_up_to_date_are_those_of_its_own_series(kind: str) -> None:
    """Series that the judge does not look at say nothing about the others."""
    before = fitted(kind)
    many = WHOLE.take([0, 1, 2, 3, *[4, 5] * 50])
    named = replace(many.stats, ids=(*SOME.ids, *(f"other-{i}" for i in range(100))))
    after = introduced(before, census_of(replace(many, stats=named)))
    origins = choose_origins(SOME, "test", before.spec.lookback, 6, 5)
    expected = rolling_backtest(before, SOME, origins)
    found = rolling_backtest(after, SOME, origins)
    assert expected is not None and found is not None
    np.testing.assert_allclose(found.quantiles, expected.quantiles, rtol=1e-12)


def test_it_is_stored_and_loaded(kind: str, tmp_path: Path) -> None:
    after = introduced(fitted(kind), census_of(WHOLE))
    artifact.save(after, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    assert loaded.stats.ids == WHOLE.ids
    np.testing.assert_array_equal(seen_positions(loaded, WHOLE), WHOLE.valid_end)


def test_a_model_of_its_own_series_alone_is_refused() -> None:
    with pytest.raises(DataError, match=r"prophet: .*tune\.most_series to the 6 .*trials to 0"):
        introduced(fitted("prophet"), census_of(WHOLE))


def test_a_census_in_another_order_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="the 4 series it was fitted on are not the first"):
        introduced(fitted(kind), census_of(WHOLE.take([5, 0, 1, 2, 3, 4])))
