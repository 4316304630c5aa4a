"""A blend whose members go on learning."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Task, fit_fully, forecaster, updater
from flts_ray.models.blend import Blend, WeightTable, blend_of
from flts_ray.models.memory import seen_positions
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
COMPUTE = Compute()
KINDS = ("ar", "seasonal_naive", "prophet")


def until(data: SeriesArrays, train: int, valid: int) -> SeriesArrays:
    n = data.n_series
    return replace(data, train_end=np.full(n, train), valid_end=np.full(n, valid))


def first() -> SeriesArrays:
    return until(seasonal_set(length=900), 360, 480)


def newer() -> SeriesArrays:
    return until(seasonal_set(n_series=4, length=900), 500, 700)


@cache
def member(kind: str) -> Fitted:
    return fit_fully(kind, first(), TASK)


def blend(weights: list[list[float]], rows: list[int]) -> Blend:
    table = WeightTable.of(np.array(weights), np.array(rows), np.zeros((6, 3)))
    return blend_of([(kind, member(kind)) for kind in KINDS], table)


def update(fitted: Fitted, data: SeriesArrays) -> Blend:
    found = updater("blend").update(fitted, data, COMPUTE)
    assert isinstance(found, Blend)
    return found


def windows_of(fitted: Fitted, data: SeriesArrays) -> Windows:
    series, origins = origins_in(data, "test", fitted.spec.lookback, 6, 11)
    return windows_at(data, series, origins, fitted.spec.lookback, 6)


def test_members_are_updated_and_weights_stay() -> None:
    known = newer().take([0, 1, 2])
    mixed = blend([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]], [0, 1, 0])
    found = update(mixed, known)
    for name in ("weights", "mean_weights", "row_of_series"):
        np.testing.assert_array_equal(getattr(found.table, name), getattr(mixed.table, name))
    windows = windows_of(found, known)
    expected = np.zeros((len(windows), 6))
    rows = found.table.weights[[found.stats.row_of[name] % 2 for name in windows.ids]]
    for number, kind in enumerate(KINDS):
        own = forecaster(kind).update(member(kind), known, COMPUTE)
        told = own.forecast(windows.last(own.spec.lookback)).mean
        expected += rows[:, number, None] * told
    np.testing.assert_allclose(found.forecast(windows).mean, expected)


def test_it_has_seen_what_its_members_have() -> None:
    mixed = blend([[0.5, 0.5, 0.0]], [0, 0, 0])
    np.testing.assert_array_equal(seen_positions(mixed, newer()), [480, 480, 480, 0])
    np.testing.assert_array_equal(seen_positions(update(mixed, newer()), newer()), [700] * 4)


def test_without_news_it_is_the_same() -> None:
    mixed = blend([[0.5, 0.5, 0.0]], [0, 0, 0])
    assert update(mixed, first()) is mixed


def test_a_new_series_is_served_as_new_ones_were() -> None:
    mixed = blend([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], [1, 1, 0])
    found = update(mixed, newer())
    assert found.stats.ids == ("s0", "s1", "s2", "s3")
    assert found.weights_of("s3") == pytest.approx({"ar": 0.625, "seasonal_naive": 0.375})
    assert found.weights_of("s0") == {"prophet": 1.0}
    assert np.isfinite(found.forecast(windows_of(found, newer())).quantiles).all()


def test_where_all_members_take_any_series_new_ones_share_row_0() -> None:
    found = update(blend([[0.5, 0.5, 0.0]], [0, 0, 0]), newer())
    assert found.table.weights.shape == (1, 2)
    np.testing.assert_array_equal(found.table.row_of_series, [0, 0, 0, 0])


def test_where_no_member_takes_new_series_they_are_left_out() -> None:
    found = update(blend([[0.0, 0.0, 1.0]], [0, 0, 0]), newer())
    assert found.spec.needs_known_series
    assert found.stats.ids == ("s0", "s1", "s2")


def test_an_updated_blend_is_saved_and_loaded(tmp_path: Path) -> None:
    found = update(blend([[0.5, 0.3, 0.2]], [0, 0, 0]), newer())
    artifact.save(found, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    windows = windows_of(found, newer())
    expected = found.forecast(windows)
    assert loaded.forecast(windows).quantiles.tobytes() == expected.quantiles.tobytes()
    np.testing.assert_array_equal(seen_positions(loaded, newer()), [700] * 4)
