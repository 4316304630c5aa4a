"""A network of its own for every series: independent, stopped one by one, stored as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Progress, Task, forecaster
from flts_ray.models.recurrent_per_series import _block_rows
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at
from tests.synthetic import seasonal_set, stats_of

TASK = Task(horizon=6, levels=(0.1, 0.5, 0.9))
OWN: dict[str, Any] = {
    "group": "per_series",
    "hidden": 8,
    "epochs": 4,
    "lookback": 24,
    "segment": 6,
    "windows_per_epoch": 128,
    "refit_epochs": 2,
}


def progress(data: SeriesArrays, kind: str = "gru", **changed: Any) -> list[Progress]:
    return list(forecaster(kind).fit(data, TASK, {**OWN, **changed}, Compute(seed=3)))


def fitted(data: SeriesArrays, kind: str = "gru", **changed: Any) -> Fitted:
    return progress(data, kind, **changed)[-1].fitted


def windows_of(data: SeriesArrays, model: Fitted, stride: int = 5) -> tuple[Windows, np.ndarray]:
    series, origins = origins_in(data, "test", model.spec.lookback, TASK.horizon, stride)
    windows = windows_at(data, series, origins, model.spec.lookback, TASK.horizon)
    return windows, actuals_at(data, series, origins, TASK.horizon)


def arrays_of(model: Fitted) -> dict[str, np.ndarray]:
    return model.state()[1]


@pytest.fixture(scope="module")
def data() -> SeriesArrays:
    return seasonal_set(n_series=5, length=300)


@pytest.fixture(scope="module")
def model(data: SeriesArrays) -> Fitted:
    return fitted(data)


def opposite(n_series: int = 4, length: int = 400) -> SeriesArrays:
    """Half of the series go on in the direction of their last step, half of them go back; two
    values do not show which."""
    plain = seasonal_set(n_series, length, season=4, covariates=False)
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((n_series, length))
    for at in range(1, length):
        steps[:, at] += np.where(np.arange(n_series) % 2, 0.9, -0.9) * steps[:, at - 1]
    rows = list(100 + steps.cumsum(axis=1))
    stats = stats_of([row[: length * 6 // 10] for row in rows], 4)
    return replace(plain, y=np.concatenate(rows), stats=stats)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_series_with_opposite_laws_each_learn_their_own(kind: str) -> None:
    data = opposite()
    missed = {}
    learning = {"epochs": 8, "windows_per_epoch": 256, "lr": 1e-2, "skip": "none"}
    for group in ("global", "per_series"):
        model = fitted(data, kind, group=group, lookback=2, segment=1, **learning)
        windows, actual = windows_of(data, model, stride=1)
        missed[group] = np.abs(model.forecast(windows).median[:, 0] - actual[:, 0]).mean()
    assert missed["per_series"] < 0.8 * missed["global"]


def test_a_series_learns_the_same_wherever_it_stands(data: SeriesArrays) -> None:
    order = np.array([0, 3, 1, 4, 2])
    one = arrays_of(fitted(data, dropout=0.0))
    two = arrays_of(fitted(data.take(order), dropout=0.0))
    for name in ("net.embed.weight", "net.head.bias"):
        np.testing.assert_allclose(two[name][:-1], one[name][order], atol=2e-4)
    assert np.abs(one["net.head.bias"][0] - one["net.head.bias"][1]).max() > 0.01


def test_every_series_keeps_its_best_epoch_and_stops_alone(data: SeriesArrays) -> None:
    steps = progress(data, epochs=40, lr=0.05, average=0.0, patience=2)
    losses = [step.metrics["valid_loss"] for step in steps]
    assert len(steps) < 40
    assert (np.diff(losses) <= 0).all()
    rows = np.stack([arrays_of(step.fitted)["net.head.weight"][:-1] for step in steps])
    changes = np.abs(np.diff(rows, axis=0)).reshape(len(steps) - 1, data.n_series, -1).max(axis=2)
    last = [int(np.flatnonzero(changed).max(initial=-1)) for changed in changes.T]
    assert len(set(last)) > 1


def test_closing_the_fit_leaves_a_model_that_later_training_does_not_touch(
    data: SeriesArrays,
) -> None:
    run = forecaster("gru").fit(data, TASK, OWN, Compute(seed=3))
    first = next(run)
    before = {name: values.copy() for name, values in arrays_of(first.fitted).items()}
    second = next(run)
    for name, values in arrays_of(first.fitted).items():
        np.testing.assert_array_equal(values, before[name])
    assert second.metrics["valid_loss"] < first.metrics["valid_loss"]


def test_same_seed_gives_the_same_bits(data: SeriesArrays, model: Fitted) -> None:
    again = arrays_of(fitted(data))
    for name, values in arrays_of(model).items():
        np.testing.assert_array_equal(values, again[name])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    monkeypatch.setattr("flts_ray.models.recurrent_per_series.MIN_BLOCK", 2)
    monkeypatch.setattr("flts_ray.models.recurrent_per_series.MAX_BLOCK", 3)
    data = seasonal_set(n_series=6, length=120)
    params = {**OWN, "dropout": dropout, "epochs": 2, "windows_per_epoch": 32}
    torch.manual_seed(7)
    before, found = torch.get_rng_state(), []
    for threads in (1, 2):
        *_, last = forecaster("gru").fit(data, TASK, params, Compute(threads=threads, seed=3))
        found.append(arrays_of(last.fitted))
    assert torch.equal(torch.get_rng_state(), before)
    for other in found[1:]:
        for name, array in found[0].items():
            assert other[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(("series", "blocks"), [(1, 1), (127, 1), (128, 2), (900, 4), (1000, 4)])
def test_blocks_are_of_almost_one_size_and_even_in_number(series: int, blocks: int) -> None:
    parts = _block_rows(np.repeat(np.arange(series), 3), 16 * 48)
    assert len(parts) == blocks
    assert torch.cat(parts).tolist() == list(range(series))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_artifact_holds_all_series(data: SeriesArrays, model: Fitted, tmp_path: Path) -> None:
    artifact.save(model, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    windows, _ = windows_of(data, model)
    one, two = model.forecast(windows), loaded.forecast(windows)
    assert one.quantiles.tobytes() == two.quantiles.tobytes()
    assert one.mean.tobytes() == two.mean.tobytes()
    assert arrays_of(model)["net.head.bias"].shape == (data.n_series + 1, 6 * 4)


def test_forecasts_depend_on_neither_the_order_nor_the_rest_of_the_batch(
    data: SeriesArrays, model: Fitted
) -> None:
    windows, _ = windows_of(data, model, stride=2)
    whole = model.forecast(windows).quantiles
    order = np.random.default_rng(0).permutation(len(windows))
    for chosen in (order, order[:7], order[:1]):
        parts = [windows.part(slice(i, i + 1)) for i in chosen]
        alone = np.concatenate([model.forecast(part).quantiles for part in parts])
        np.testing.assert_allclose(alone, whole[chosen], rtol=1e-9)


def test_no_window_gives_an_empty_forecast(data: SeriesArrays, model: Fitted) -> None:
    windows, _ = windows_of(data, model)
    assert model.forecast(windows.part(slice(0, 0))).quantiles.shape == (0, 6, 3)


def test_a_new_series_is_forecast_by_the_linear_map_that_all_share(
    data: SeriesArrays, model: Fitted
) -> None:
    windows, actual = windows_of(data, model)
    unseen = replace(windows, ids=("new",) * len(windows))
    found = model.forecast(unseen)
    centre = windows.y[:, -1:]
    expected = centre + (windows.y - centre) @ arrays_of(model)["net.linear"].T.astype(np.float64)
    gap = np.abs(found.mean - expected) / windows.scale[:, None]
    assert gap.max() < 0.2  # the bands' mean need not be their median
    known = np.abs(model.forecast(windows).mean - actual) / windows.scale[:, None]
    assert known.mean() < (np.abs(found.mean - actual) / windows.scale[:, None]).mean()


def test_a_series_too_short_to_learn_from_is_forecast_as_a_new_one(data: SeriesArrays) -> None:
    train_end, valid_end = data.train_end.copy(), data.valid_end.copy()
    train_end[2], valid_end[2] = 20, 22
    short = replace(data, train_end=train_end, valid_end=valid_end)
    model = fitted(short)
    windows, _ = windows_of(short, model)
    windows = replace(windows, static=np.zeros_like(windows.static))
    unseen = replace(windows, ids=("new",) * len(windows))
    mine = np.array(windows.ids) == "s2"
    found, expected = model.forecast(windows).quantiles, model.forecast(unseen).quantiles
    np.testing.assert_allclose(found[mine], expected[mine], rtol=1e-6)
    assert np.abs(found[~mine] - expected[~mine]).max() > 0


def test_without_validation_the_fit_still_ends(data: SeriesArrays) -> None:
    steps = progress(replace(data, train_end=data.valid_end), epochs=2)
    assert all(np.isfinite(list(step.metrics.values())).all() for step in steps)
    assert not arrays_of(steps[-1].fitted)["shift"].any()


def test_a_refit_moves_every_series_and_keeps_the_calibration(
    data: SeriesArrays, model: Fitted
) -> None:
    again = forecaster("gru").refit(model, data, Compute(seed=3))
    before, after = arrays_of(model), arrays_of(again)
    np.testing.assert_array_equal(after["shift"], before["shift"])
    moved = np.abs(after["net.head.bias"] - before["net.head.bias"]).max(axis=1)
    assert (moved[:-1] > 0).all()
    assert moved[-1] == 0


def test_a_refit_of_a_restored_model_gives_the_same_bits(data: SeriesArrays, model: Fitted) -> None:
    values, arrays = model.state()
    restored = forecaster("gru").restore(model.spec, model.stats, values, arrays)
    one, two = (forecaster("gru").refit(each, data, Compute(seed=3)) for each in (model, restored))
    for name, values_of_one in arrays_of(one).items():
        np.testing.assert_array_equal(values_of_one, arrays_of(two)[name])


@pytest.mark.parametrize(
    ("values", "arrays"),
    [
        ({"series": 4}, {}),
        ({"hidden": 9}, {}),
        ({}, {"net.head.bias": np.zeros((5, 24), dtype=np.float32)}),
        ({}, {"net.extra": np.zeros(1, dtype=np.float32)}),
    ],
)
def test_restore_refuses_what_is_off(
    model: Fitted, values: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    stored, held = model.state()
    with pytest.raises(ArtifactError, match="gru model"):
        forecaster("gru").restore(model.spec, model.stats, {**stored, **values}, {**held, **arrays})


def test_an_unknown_group_is_named(data: SeriesArrays) -> None:
    with pytest.raises(ConfigError, match=r"params\.group"):
        fitted(data, group="both")
