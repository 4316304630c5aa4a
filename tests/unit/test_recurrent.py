"""GRU and LSTM: what they learn, what they withstand, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.models.base import Compute, Fitted, Progress, Task, forecaster
from flts_ray.models.recurrent_inputs import fit_columns, training_rows
from flts_ray.models.recurrent_net import Inputs, SegmentNet, forecast_loss, window_scale
from flts_ray.models.recurrent_settings import Settings, geometry
from flts_ray.models.recurrent_shape import Shape
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at
from tests.synthetic import seasonal_set, stats_of

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
TASK = Task(horizon=12, levels=LEVELS)
SMALL: dict[str, Any] = {
    "hidden": 16,
    "epochs": 3,
    "batch": 64,
    "windows_per_epoch": 1024,
    "refit_epochs": 3,
}
LONGER = {**SMALL, "epochs": 6, "lr": 5e-3, "dropout": 0.0}


def epochs(
    data: SeriesArrays, params: dict[str, Any], kind: str = "gru", task: Task = TASK
) -> Iterator[Progress]:
    return forecaster(kind).fit(data, task, params, Compute(threads=1, seed=7))


def fitted(data: SeriesArrays, params: dict[str, Any], kind: str = "gru") -> Fitted:
    return list(epochs(data, params, kind))[-1].fitted


def test_windows(data: SeriesArrays, model: Fitted) -> tuple[Windows, np.ndarray]:
    task = model.spec.task
    series, origins = origins_in(data, "test", model.spec.lookback, task.horizon, stride=5)
    windows = windows_at(data, series, origins, model.spec.lookback, task.horizon)
    return windows, actuals_at(data, series, origins, task.horizon)


test_windows.__test__ = False  # type: ignore[attr-defined]


def error(model: Fitted, windows: Windows, actual: np.ndarray) -> float:
    """Mean absolute error of the median in units of the series' scale."""
    gap = np.abs(model.forecast(windows).median - actual) / windows.scale[:, None]
    return float(np.nanmean(gap))


@pytest.fixture(scope="module")
def data() -> SeriesArrays:
    return seasonal_set(n_series=3, length=500)


@pytest.fixture(scope="module", params=["gru", "lstm"])
def model(request: pytest.FixtureRequest, data: SeriesArrays) -> Fitted:
    return fitted(data, LONGER, request.param)


@pytest.fixture(scope="module")
def quick(data: SeriesArrays) -> Fitted:
    return fitted(data, {**SMALL, "epochs": 1})


def test_learns_a_season_better_than_repeating_it(data: SeriesArrays, model: Fitted) -> None:
    windows, actual = test_windows(data, model)
    naive = np.abs(windows.y[:, -24:-12] - actual) / windows.scale[:, None]
    assert error(model, windows, actual) < 0.8 * naive.mean()


def test_known_future_columns_of_the_horizon_count(data: SeriesArrays, model: Fitted) -> None:
    windows, actual = test_windows(data, model)
    event = data.contract.future.index("event")
    blind = windows.future.copy()
    blind[:, model.spec.lookback :, event] = 0
    told, untold = (
        error(model, replace(windows, future=f), actual) for f in (windows.future, blind)
    )
    assert told < 0.8 * untold


def test_past_covariate_that_leads_the_target_counts() -> None:
    plain = seasonal_set(n_series=1, length=600, covariates=False)
    lead = np.random.default_rng(0).standard_normal(600)
    y = 5 + np.concatenate([[0.0], lead[:-1]])
    data = replace(
        plain,
        contract=replace(plain.contract, past=("lead",)),
        stats=stats_of([y[:360]], 24),
        y=y,
        past=lead[:, None].astype(np.float32),
    )
    params = {**LONGER, "lookback": 24, "segment": 4, "epochs": 8, "patience": 8, "past": True}
    model = list(epochs(data, params, task=Task(2, LEVELS)))[-1].fitted
    windows, actual = test_windows(data, model)
    shuffled = replace(windows, past=np.roll(windows.past, 3, axis=0))
    first = [
        np.abs(model.forecast(w).median[:, 0] - actual[:, 0]).mean() for w in (windows, shuffled)
    ]
    assert first[0] < 0.6 * first[1]


def test_forecasts_follow_any_level_and_size(data: SeriesArrays, model: Fitted) -> None:
    windows, _ = test_windows(data, model)
    before = model.forecast(windows)
    for factor, level in ((100.0, 0.0), (1.0, 1e6), (100.0, -1e6)):
        moved = replace(windows, y=factor * windows.y + level)
        after = model.forecast(moved)
        size = factor * windows.scale[:, None]
        np.testing.assert_allclose(
            (after.mean - level) / size, factor * before.mean / size, atol=1e-3
        )
        gap = (after.quantiles - level - factor * before.quantiles) / size[..., None]
        assert np.abs(gap).max() < 1e-3


def test_series_never_seen_before_is_forecast(data: SeriesArrays, model: Fitted) -> None:
    windows, actual = test_windows(data, model)
    unseen = replace(windows, ids=("new",) * len(windows), scale=np.full(len(windows), np.nan))
    gap = np.abs(model.forecast(unseen).median - actual) / windows.scale[:, None]
    assert gap.mean() < 1.2 * error(model, windows, actual)


@pytest.mark.parametrize("value", [0.0, 7.0, -3e8])
def test_constant_window_stays_at_its_level(
    quick: Fitted, data: SeriesArrays, value: float
) -> None:
    windows, _ = test_windows(data, quick)
    flat = replace(windows, y=np.full_like(windows.y, value), scale=np.full(len(windows), np.nan))
    forecast = quick.forecast(flat)
    assert np.isfinite(forecast.quantiles).all()
    assert np.abs(forecast.quantiles - value).max() <= 0.1 * abs(value) + 1e-9


def test_mean_and_median_part_on_skewed_noise() -> None:
    plain = seasonal_set(n_series=1, length=900, covariates=False)
    y = np.random.default_rng(1).exponential(1.0, 900) ** 2
    data = replace(plain, y=y, stats=stats_of([y[:540]], 24))
    model = fitted(data, {**LONGER, "lookback": 24, "centre": "mean"})
    forecast = model.forecast(test_windows(data, model)[0])
    assert forecast.mean.mean() == pytest.approx(2.0, abs=0.6)
    assert forecast.median.mean() == pytest.approx(np.log(2) ** 2, abs=0.35)


def test_same_seed_gives_the_same_bits_and_leaves_global_randomness_alone(
    data: SeriesArrays,
) -> None:
    state = torch.get_rng_state()
    params = {**SMALL, "epochs": 2, "dropout": 0.3, "layers": 2}
    one, two = (fitted(data, params).state()[1] for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])


def test_nothing_after_the_validation_span_is_read(data: SeriesArrays, quick: Fitted) -> None:
    y = data.y.copy()
    for i in range(data.n_series):
        y[data.offsets[i] + data.valid_end[i] : data.offsets[i + 1]] = 1e9
    other = fitted(replace(data, y=y), {**SMALL, "epochs": 1})
    for name, values in quick.state()[1].items():
        np.testing.assert_array_equal(values, other.state()[1][name])


def test_weights_come_from_the_training_span_alone(data: SeriesArrays) -> None:
    params = {**SMALL, "epochs": 1, "skip": "none"}
    y = data.y.copy()
    for i in range(data.n_series):
        y[data.offsets[i] + data.train_end[i] : data.offsets[i + 1]] *= 3
    one, two = (fitted(replace(data, y=v), params).state()[1] for v in (data.y, y))
    weights = [name for name in one if name.startswith(("net.", "columns."))]
    for name in weights:
        np.testing.assert_array_equal(one[name], two[name])
    assert np.abs(one["shift"] - two["shift"]).max() > 0


def test_closing_the_fit_leaves_a_model_that_later_training_does_not_touch(
    data: SeriesArrays,
) -> None:
    run = epochs(data, SMALL)
    first = next(run)
    before = first.fitted.state()[1]
    second = next(run)
    run.close()  # type: ignore[attr-defined]
    windows, actual = test_windows(data, first.fitted)
    assert error(first.fitted, windows, actual) < 2
    for name, values in first.fitted.state()[1].items():
        np.testing.assert_array_equal(values, before[name])
    assert second.metrics["valid_loss"] < first.metrics["valid_loss"]


def test_best_epoch_is_kept_and_patience_ends_the_fit(data: SeriesArrays) -> None:
    steps = list(epochs(data, {**SMALL, "epochs": 40, "lr": 0.05, "average": 0.0, "patience": 2}))
    losses = [step.metrics["valid_loss"] for step in steps]
    best = int(np.argmin(losses))
    assert len(steps) == best + 3 < 40
    assert steps[-1].fitted is steps[best].fitted


def test_restored_model_gives_the_same_bits(data: SeriesArrays, model: Fitted) -> None:
    values, arrays = model.state()
    again = forecaster(model.spec.kind).restore(model.spec, model.stats, values, arrays)
    windows, _ = test_windows(data, model)
    one, two = model.forecast(windows), again.forecast(windows)
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    np.testing.assert_array_equal(one.mean, two.mean)
    learned = [a for name, a in arrays.items() if not name.startswith("memory.")]
    assert all(a.dtype == np.float32 for a in learned)


def test_forecast_does_not_depend_on_the_rest_of_the_batch(
    data: SeriesArrays, model: Fitted
) -> None:
    windows, _ = test_windows(data, model)
    together = model.forecast(windows).quantiles
    alone = [model.forecast(windows.part(slice(i, i + 1))).quantiles for i in range(len(windows))]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-11)


def refit(model: Fitted, data: SeriesArrays) -> dict[str, np.ndarray]:
    again = forecaster(model.spec.kind).refit(model, data, Compute(threads=1, seed=7))
    return again.state()[1]


def test_refit_without_epochs_changes_nothing(data: SeriesArrays) -> None:
    model = fitted(data, {**SMALL, "epochs": 1, "refit_epochs": 0})
    assert forecaster("gru").refit(model, data, Compute()) is model


def test_refit_keeps_scaling_and_calibration(quick: Fitted, data: SeriesArrays) -> None:
    before, after = quick.state()[1], refit(quick, data)
    for name in before:
        if name == "shift" or name.startswith("columns."):
            np.testing.assert_array_equal(after[name], before[name])
    assert np.abs(after["net.head.weight"] - before["net.head.weight"]).max() > 0


def test_refit_solves_the_linear_map_with_the_penalty_it_had(data: SeriesArrays) -> None:
    unchanged = replace(data, valid_end=data.train_end)
    model = fitted(unchanged, {**SMALL, "epochs": 1})
    linear = model.state()[1]["net.linear"]
    np.testing.assert_array_equal(refit(model, unchanged)["net.linear"], linear)
    assert np.abs(refit(model, data)["net.linear"] - linear).max() > 1e-4


def _cut(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**arrays, "net.head.weight": arrays["net.head.weight"][:-1]}


def _doubled(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**arrays, "shift": arrays["shift"].astype(np.float64)}


def _without(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in arrays.items() if k != "columns.past_mean"}


def _foreign(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**arrays, "net.extra": arrays["shift"]}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_cut, "net.head.weight"),
        (_doubled, "float64"),
        (_without, "columns.past_mean"),
        (_foreign, "net.extra"),
    ],
)
def test_restore_refuses_arrays_that_are_off(quick: Fitted, damage: Any, named: str) -> None:
    values, arrays = quick.state()
    with pytest.raises(ArtifactError, match=named):
        forecaster("gru").restore(quick.spec, quick.stats, values, damage(arrays))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 0},
        {"hidden": "64"},
        {"cell": "lstm"},
        {"segment": 5},
        {"centre": "x"},
        {"ridge": [0.0, 0.5, 0.0]},
        {"ridge": [1.0, 0.5]},
        {"events": [2, 2]},
        {"events": [3]},
        {"a": 1},
    ],
)
def test_restore_refuses_values_that_are_off(quick: Fitted, change: dict[str, Any]) -> None:
    values, arrays = quick.state()
    with pytest.raises(ArtifactError, match="gru model"):
        forecaster("gru").restore(quick.spec, quick.stats, {**values, **change}, arrays)


def test_huge_shape_is_refused_before_memory_is_taken(quick: Fitted) -> None:
    values, arrays = quick.state()
    with pytest.raises(ArtifactError, match="net"):
        forecaster("gru").restore(quick.spec, quick.stats, {**values, "hidden": 10**6}, arrays)


def test_gaps_in_training_are_left_out(data: SeriesArrays) -> None:
    y, observed = data.y.copy(), data.observed.copy()
    y[100:110], observed[100:110] = np.nan, False
    observed[200:206] = False
    model = fitted(replace(data, y=y, observed=observed), {**SMALL, "epochs": 2})
    assert all(np.isfinite(a).all() for a in model.state()[1].values())


def test_without_validation_the_fit_still_ends(data: SeriesArrays) -> None:
    steps = list(epochs(replace(data, train_end=data.valid_end), {**SMALL, "epochs": 2}))
    assert all(np.isfinite(list(step.metrics.values())).all() for step in steps)
    assert not steps[-1].fitted.state()[1]["shift"].any()


def test_set_without_any_covariate_is_forecast() -> None:
    plain = seasonal_set(n_series=2, length=400, covariates=False)
    bare = replace(plain, contract=replace(plain.contract, calendar=()), future=plain.future[:, :0])
    model = fitted(bare, {**SMALL, "skip": "none", "segment": 7, "lookback": 40})
    assert model.spec.lookback == 42
    assert model.forecast(test_windows(bare, model)[0]).quantiles.shape[1:] == (12, 5)


def test_too_short_series_name_what_is_needed(data: SeriesArrays) -> None:
    with pytest.raises(DataError, match=r"412 training steps.*longest series has 300"):
        next(epochs(data, {"lookback": 400}))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"hiden": 3}, "did you mean hidden"),
        ({"hidden": 0}, "params.hidden"),
        ({"centre": "median"}, "params.centre"),
        ({"segment": 400}, "params.segment"),
    ],
)
def test_wrong_parameters_are_named(data: SeriesArrays, params: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        next(epochs(data, params))


def test_forecast_refuses_a_short_history(data: SeriesArrays, quick: Fitted) -> None:
    windows, _ = test_windows(data, quick)
    with pytest.raises(DataError, match="needs 72 past steps"):
        quick.forecast(windows.last(71))


@pytest.mark.parametrize(
    ("lookback", "season", "horizon", "expected"),
    [(None, 24, 12, (288, 12)), (336, 48, 48, (336, 12)), (120, 720, 30, (120, 15))],
)
def test_segments_follow_the_season(
    lookback: int | None, season: int, horizon: int, expected: tuple[int, int]
) -> None:
    data = seasonal_set(n_series=1, length=2000, season=season)
    assert geometry("gru", Settings(lookback=lookback), data, horizon) == expected


def test_a_cycle_that_the_window_shows_is_read_only_where_events_depend_on_it() -> None:
    told = seasonal_set(n_series=1, length=600)
    plain = seasonal_set(n_series=1, length=600, covariates=False)
    rows = training_rows(plain)
    assert fit_columns(told, rows, lookback=96).cycles == (0, 1)
    assert fit_columns(plain, rows, lookback=96).cycles == ()
    assert fit_columns(plain, rows, lookback=47).cycles == (0, 1)
    assert fit_columns(told, rows, lookback=96).events == (2,)


@given(
    lookback=st.integers(2, 280),
    segment=st.none() | st.integers(1, 200),
    season=st.integers(1, 400),
    horizon=st.integers(1, 200),
)
def test_lookback_is_whole_segments_that_fit(
    lookback: int, segment: int | None, season: int, horizon: int
) -> None:
    whole = seasonal_set(n_series=1, length=800, season=24, covariates=False)
    data = replace(whole, contract=replace(whole.contract, season=season))
    for asked in (lookback, None):
        found, width = geometry("gru", Settings(lookback=asked, segment=segment), data, horizon)
        assert found % width == 0
        assert 1 <= width <= found <= 480 - horizon


def _inputs(shape: Shape, n: int, size: float, seed: int) -> Inputs:
    rng = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> torch.Tensor:
        return size * torch.randn(n, *sizes, generator=rng)

    return Inputs(
        draw(shape.lookback),
        torch.ones(n, shape.lookback),
        draw(shape.lookback, shape.seen),
        draw(shape.horizon, shape.ahead),
        draw(shape.static),
    )


@settings(max_examples=30, deadline=None)
@given(
    size=st.floats(0, 1e6),
    seed=st.integers(0, 1000),
    cell=st.sampled_from(["gru", "lstm"]),
    horizon=st.integers(1, 9),
)
def test_quantiles_never_cross(size: float, seed: int, cell: str, horizon: int) -> None:
    shape = Shape(cell, 12, 4, horizon, LEVELS, 1, 1, 2, 1, 8, 2, 0.0, 12)
    torch.manual_seed(seed)
    net = SegmentNet(shape).eval()
    for weight in net.parameters():
        weight.data.normal_(0, 3)
    mean, quantiles = net(_inputs(shape, 5, size, seed))
    assert mean.shape == (5, horizon)
    assert quantiles.shape == (5, horizon, 5)
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_network_starts_with_normal_bands_of_the_given_size() -> None:
    net = SegmentNet(Shape("gru", 12, 4, 8, LEVELS, 0, 0, 0, 0, 8, 1, 0.0, 0)).eval()
    net.head.weight.data.zero_()
    net.start_at(2.0)
    _, quantiles = net(_inputs(net.shape, 1, 1.0, 0))
    expected = 2.0 * np.array([-1.95996, -1.28155, 0.0, 1.28155, 1.95996])
    np.testing.assert_allclose(quantiles[0, 0].detach().numpy(), expected, atol=1e-4)


def test_what_was_not_observed_does_not_count_in_the_loss() -> None:
    target = torch.tensor([[1.0, 2.0, 1e6]])
    forecast = (torch.zeros(1, 3), torch.zeros(1, 3, 1))
    levels, weight = torch.tensor([0.5]), torch.tensor([[2.0]])
    counted = torch.tensor([[1.0, 1.0, 0.0]])
    total, sharp = forecast_loss(forecast, target, counted, weight, levels, mean_weight=1.0)
    assert float(sharp) == pytest.approx(2.0 * (0.5 * 1 + 0.5 * 2) / 2)
    huber = (0.5 * 2.0**2 + 3.0 * (4.0 - 1.5)) / 2
    assert float(total) == pytest.approx(float(sharp) + huber)


def test_window_scale_has_a_floor_from_the_series() -> None:
    y = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 2.0, 0.0, 2.0]])
    centre, scale = window_scale(y, torch.tensor([[2.0], [2.0]]), "last")
    assert centre[:, 0].tolist() == [5.0, 2.0]
    assert scale[:, 0].tolist() == pytest.approx([0.2, 1.0])
    assert window_scale(y, torch.tensor([[2.0], [2.0]]), "mean").centre[:, 0].tolist() == [5, 1]
