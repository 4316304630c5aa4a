"""Exported networks against the trained ones they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, DataError
from flts_ray.models.base import Compute, Fitted, Task, fit_fully
from flts_ray.models.blend import WeightTable, blend_of
from flts_ray.models.onnx_export import exported, needs_export
from flts_ray.models.onnx_fitted import TOLERANCE, FittedOnnx, restored
from flts_ray.models.recurrent_readings import window_units
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.3, 0.5, 0.7, 0.9))
SMALL: dict[str, Any] = {"hidden": 8, "epochs": 1, "windows_per_epoch": 128, "refit_epochs": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gru": ("gru", {}),
    "lstm": ("lstm", {"layers": 2}),
    "gru, one a series": ("gru", {"group": "per_series"}),
    "lstm, one a series": ("lstm", {"group": "per_series"}),
}
ODD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda y: np.broadcast_to(y[:, :1], y.shape).copy(),
    "zero": np.zeros_like,
    "huge": lambda y: y * 1e25,
    "tiny": lambda y: y * 1e-25,
    "a small cycle on a large level": lambda y: y + 1e9,
    "a leap at the end": lambda y: np.append(y[:, :-1], y[:, -1:] + 1e6, axis=1),
}


@cache
def data() -> SeriesArrays:
    return seasonal_set(n_series=4, length=300)


@cache
def trained(name: str) -> Fitted:
    kind, params = KINDS[name]
    return fit_fully(kind, data(), TASK, SMALL | params, Compute(seed=1))


@cache
def lean(name: str) -> FittedOnnx:
    made = exported(trained(name))
    assert isinstance(made, FittedOnnx)
    return made


def windows(model: Fitted, stride: int = 3) -> Windows:
    lookback = model.spec.lookback
    series, origins = origins_in(data(), "test", lookback, TASK.horizon, stride)
    return windows_at(data(), series, origins, lookback, TASK.horizon)


def furthest(one: Fitted, other: Fitted, seen: Windows) -> float:
    """Largest difference of two models in units of the window scale, or of a float64 digit."""
    first, second = one.forecast(seen), other.forecast(seen)
    units = window_units(seen.y, seen.scale[:, None], "mean")
    size = np.maximum(units.scale, 1e-9 * np.abs(seen.y).max(axis=1, keepdims=True))
    apart = np.concatenate([first.mean[..., None], first.quantiles], axis=-1)
    apart = apart - np.concatenate([second.mean[..., None], second.quantiles], axis=-1)
    return float(np.abs(apart / size[..., None]).max(initial=0.0))


@pytest.mark.parametrize("name", KINDS)
def test_forecasts_are_those_of_the_trained_network(name: str) -> None:
    full, light = trained(name), lean(name)
    seen = windows(full)
    made, wanted = light.forecast(seen), full.forecast(seen)
    assert (made.ids, made.levels) == (wanted.ids, wanted.levels)
    assert made.mean.dtype == made.quantiles.dtype == np.float64
    np.testing.assert_array_equal(made.origin_us, wanted.origin_us)
    assert furthest(light, full, seen) < 2e-6


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", KINDS)
def test_forecasts_agree_on_windows_unlike_any(name: str, odd: str) -> None:
    full, light = trained(name), lean(name)
    seen = windows(full, stride=11)
    assert furthest(light, full, replace(seen, y=ODD[odd](seen.y))) < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_series_never_seen_before_agree(name: str) -> None:
    full, light = trained(name), lean(name)
    seen = windows(full, stride=11)
    n = len(seen)
    new = replace(seen, ids=tuple(f"n{i}" for i in range(n)), scale=np.full(n, np.nan))
    assert furthest(light, full, new) < TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    level=st.floats(-1e12, 1e12),
    power=st.integers(-12, 12),
    count=st.integers(0, 5),
)
def test_any_window_agrees(name: str, seed: int, level: float, power: int, count: int) -> None:
    rng, full, light = np.random.default_rng(seed), trained(name), lean(name)
    seen = windows(full, stride=13).part(slice(0, count))
    y = level + 10.0**power * rng.standard_normal(seen.y.shape)
    gone = rng.random(y.shape) < 0.5
    future = seen.future + rng.standard_normal(seen.future.shape).astype(np.float32)
    assert furthest(light, full, replace(seen, y=y, observed=~gone, future=future)) < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_a_forecast_does_not_depend_on_its_batch(name: str) -> None:
    light = lean(name)
    seen = windows(light, stride=1)
    assert len(seen) > 150
    whole = light.forecast(seen)
    for at in (0, 70, len(seen) - 1):
        alone = light.forecast(seen.part(slice(at, at + 1)))
        apart = np.abs(alone.quantiles[0] - whole.quantiles[at]).max() / seen.scale[at]
        assert apart < 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_horizon_is_refused_as_by_the_trained_one(name: str) -> None:
    seen = windows(lean(name))
    short = replace(seen, future=seen.future[:, :-1])
    with pytest.raises(DataError, match="ask for 5"):
        lean(name).forecast(short)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_model_is_exported_to_the_same_bytes(name: str) -> None:
    first, again = lean(name).state(), exported(trained(name)).state()
    assert first[0] == again[0]
    for key, array in first[1].items():
        np.testing.assert_array_equal(array, again[1][key], err_msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_an_export_is_restored_from_its_state(name: str) -> None:
    light = lean(name)
    seen = windows(light, stride=11)
    back = restored(light.spec, light.stats, *light.state())
    np.testing.assert_array_equal(back.forecast(seen).quantiles, light.forecast(seen).quantiles)


@pytest.mark.parametrize("name", KINDS)
def test_another_forecast_than_the_golden_one_is_refused(name: str) -> None:
    light = lean(name)
    values, arrays = light.state()
    shift = arrays["shift"].copy()
    shift[-1, -1] += 3 * TOLERANCE
    with pytest.raises(ArtifactError, match="golden windows are"):
        restored(light.spec, light.stats, values, arrays | {"shift": shift})


def test_parts_that_do_not_fit_together_are_refused() -> None:
    light = lean("gru, one a series")
    values, arrays = light.state()
    rows = arrays["golden.rows"]
    for changed in (
        {"shift": arrays["shift"][:, :-1]},
        {"onnx": arrays["onnx"][: len(arrays["onnx"]) // 2]},
        {"golden.rows": np.full_like(rows, 99)},
        {"golden.mean": arrays["golden.mean"] * np.nan},
        {"golden.y": arrays["golden.y"][:, 1:]},
        {"given.position": arrays["given.position"][:-1]},
        {"given.position": arrays["given.position"].astype(np.float64)},
        {"given.head.bias": arrays["given.position"]},
    ):
        with pytest.raises(ArtifactError, match="exported gru model"):
            restored(light.spec, light.stats, values, arrays | changed)
    for name in arrays:
        left = {key: array for key, array in arrays.items() if key != name}
        with pytest.raises(ArtifactError, match="exported gru model"):
            restored(light.spec, light.stats, values, left)
    with pytest.raises(ArtifactError, match="exported gru model"):
        restored(light.spec, light.stats, values | {"series": 0}, arrays)


def test_golden_windows_need_a_forecast_of_their_own() -> None:
    light = lean("gru")
    values, arrays = light.state()
    none = {key: array[:0] for key, array in arrays.items() if key.startswith("golden.")}
    with pytest.raises(ArtifactError, match="golden windows"):
        restored(light.spec, light.stats, values, arrays | none)


def test_members_of_a_blend_are_exported_and_others_stay() -> None:
    naive = fit_fully("seasonal_naive", data(), TASK, {"season": 24})
    names = ("gru", "lstm, one a series")
    members = [("naive", naive), *((name, trained(name)) for name in names)]
    rows = np.zeros(len(data().ids), np.int64)
    table = WeightTable.of(np.array([[0.2, 0.5, 0.3]]), rows, np.zeros((6, 5)))
    full = blend_of(members, table)
    assert needs_export(full)
    light = exported(full)
    assert not needs_export(light)
    assert exported(light) is light
    assert furthest(light, full, windows(full)) < 2e-6
    assert exported(naive) is naive
