"""Networks of single series go on learning; the mix of new and older windows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from flts_ray.models import artifact
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.memory import Memory
from flts_ray.models.news import news_of
from flts_ray.models.recurrent import GRU
from flts_ray.models.recurrent_fitted_stack import FittedStack
from flts_ray.models.recurrent_update import RECENT_WINDOWS, recent
from flts_ray.prepare.arrays import SeriesArrays, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
COMPUTE = Compute(seed=1)


def until(data: SeriesArrays, train: int, valid: int) -> SeriesArrays:
    n = data.n_series
    return replace(data, train_end=np.full(n, train), valid_end=np.full(n, valid))


def newer() -> SeriesArrays:
    return until(seasonal_set(n_series=4, length=900), 500, 700)


@cache
def stack() -> FittedStack:
    params = {"group": "per_series", "epochs": 2, "hidden": 4, "lookback": 48}
    fitted = fit_fully("gru", until(seasonal_set(length=900), 360, 480), TASK, params, COMPUTE)
    assert isinstance(fitted, FittedStack)
    return fitted


@cache
def updated() -> FittedStack:
    found = GRU().update(stack(), newer(), COMPUTE)
    assert isinstance(found, FittedStack)
    return found


def test_a_new_series_gets_a_network_that_starts_as_all_did() -> None:
    assert updated().stats.ids == ("s0", "s1", "s2", "s3")
    assert updated().weights.shape == (5, stack().weights.shape[1])
    np.testing.assert_array_equal(updated().weights[-1], stack().weights[-1])
    for row in range(4):
        old = stack().weights[row if row < 3 else -1]
        assert 0 < float((updated().weights[row] - old).abs().max()) < 0.5


def test_the_linear_map_stays() -> None:
    np.testing.assert_array_equal(updated().linear, stack().linear)


def test_a_series_without_news_keeps_its_network() -> None:
    found = GRU().update(stack(), newer().take([0, 2]), COMPUTE)
    assert isinstance(found, FittedStack)
    np.testing.assert_array_equal(found.weights[1], stack().weights[1])
    assert not np.array_equal(found.weights[0], stack().weights[0])


def test_updated_networks_are_saved_and_loaded(tmp_path: Path) -> None:
    artifact.save(updated(), tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    series, origins = origins_in(newer(), "test", 48, 6, 11)
    windows = windows_at(newer(), series, origins, 48, 6)
    expected = updated().forecast(windows)
    assert loaded.forecast(windows).quantiles.tobytes() == expected.quantiles.tobytes()


@pytest.mark.parametrize(("length", "before"), [(900, 480), (20_000, 15_000)])
def test_older_windows_are_bounded_and_new_ones_complete(length: int, before: int) -> None:
    data = until(seasonal_set(length=length), before - 100, before)
    fitted = replace(stack(), memory=Memory.of(data, TASK))
    found = news_of(fitted, until(data, before, before + 50))
    assert found is not None
    mixed = recent(found, 48, 6)
    series, _ = origins_in(mixed, "train", 48, 6)
    # Of each series; new windows are those with a target among the 50 new steps.
    older = RECENT_WINDOWS // 3
    most = 50 + min(older, before - 48 - 6 + 1)
    np.testing.assert_array_equal(np.bincount(series), [most] * 3)


def test_new_rows_with_a_long_gap_only_move_the_position() -> None:
    data = newer().take([0, 1, 2])
    y = data.y.copy()
    for i in range(3):
        y[data.rows(i)][430:] = np.nan
    gone = replace(data, y=y, observed=np.isfinite(y))
    found = GRU().update(stack(), gone, COMPUTE)
    assert isinstance(found, FittedStack) and found.memory is not None
    before = stack().memory
    assert before is not None and (found.memory.until_us > before.until_us).all()
