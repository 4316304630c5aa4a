from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.evaluate.backtest import Origins, choose_origins, instants_of
from flts_ray.evaluate.leakage import fit_audit, leakage_audit
from flts_ray.models.base import Forecast, ModelSpec, Task
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows, windows_at
from tests.synthetic import seasonal_set

LEVELS = (0.1, 0.5, 0.9)
LOOKBACK, HORIZON = 24, 6
HOUR_US = 3_600_000_000

Means = Callable[[Windows], np.ndarray]


@dataclass(frozen=True)
class Answering:
    """Forecasts whatever `means` [n] answers, at every step."""

    spec: ModelSpec
    stats: SeriesStats
    means: Means

    def forecast(self, windows: Windows) -> Forecast:
        mean = np.repeat(np.asarray(self.means(windows), float)[:, None], HORIZON, axis=1)
        quantiles = mean[..., None] + np.array([-1.0, 0.0, 1.0])
        return Forecast(windows.ids, windows.origin_us, LEVELS, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {}


def answering(data: SeriesArrays, means: Means) -> Answering:
    spec = ModelSpec("answering", Task(HORIZON, LEVELS), LOOKBACK, data.contract)
    return Answering(spec, data.stats, means)


def honest(windows: Windows) -> np.ndarray:
    """Uses all that a window holds, known-future covariates included."""
    return np.asarray(
        windows.y.mean(1)
        + windows.future.sum((1, 2))
        + windows.past[:, -1, 0]
        + windows.static[:, 0]
    )


def peeking(data: SeriesArrays, array: np.ndarray, ahead: int, aside: int = 0) -> Means:
    """Looks up what lies `ahead` steps after the origin, of the series `aside`."""

    def means(windows: Windows) -> np.ndarray:
        series = np.array([data.ids.index(name) for name in windows.ids])
        steps = (windows.origin_us - data.start_us[series]) // HOUR_US + ahead
        rows = data.offsets[(series + aside) % data.n_series] + steps
        return np.nan_to_num(array[rows].astype(float).reshape(len(rows), -1)[:, 0])

    return means


def origins_of(data: SeriesArrays) -> Origins:
    return choose_origins(data, "test", LOOKBACK, HORIZON)


def test_an_honest_model_passes_and_the_data_is_as_before() -> None:
    data, before = seasonal_set(), seasonal_set()
    result = leakage_audit(answering(data, honest), data, origins_of(data))
    assert result.passed and result.checked == 32 and result.first_violation is None
    for field in fields(SeriesArrays):
        if isinstance(getattr(data, field.name), np.ndarray):
            assert np.array_equal(getattr(data, field.name), getattr(before, field.name))


@pytest.mark.parametrize("ahead", [0, 1, HORIZON - 1, HORIZON + 3])
@pytest.mark.parametrize("column", ["y", "observed", "past"])
def test_a_model_that_kept_the_data_is_caught(column: str, ahead: int) -> None:
    data = seasonal_set(length=1000)
    origins = origins_of(data)
    origins = origins.part(origins.positions < 980)
    cheat = answering(data, peeking(data, getattr(data, column), ahead))
    result = leakage_audit(cheat, data, origins)
    assert not result.passed
    assert "at and after the origin" in str(result.first_violation)


def test_the_last_known_step_may_be_read() -> None:
    data = seasonal_set()
    assert leakage_audit(answering(data, peeking(data, data.y, -1)), data, origins_of(data)).passed


@pytest.mark.parametrize(("ahead", "passed"), [(HORIZON - 1, True), (HORIZON, False)])
def test_covariates_are_known_up_to_the_horizon(ahead: int, passed: bool) -> None:
    data = seasonal_set()
    origins = origins_of(data)
    origins = origins.part(origins.positions + HORIZON < 600)
    model = answering(data, peeking(data, data.future, ahead))
    assert leakage_audit(model, data, origins).passed == passed


def test_a_look_at_the_future_of_a_neighbour_is_caught() -> None:
    data = seasonal_set()
    cheat = answering(data, peeking(data, data.y, 0, aside=1))
    assert not leakage_audit(cheat, data, origins_of(data)).passed


def test_series_that_start_at_other_times_are_cut_at_the_same_instant() -> None:
    data = seasonal_set()
    shifted = replace(data, start_us=data.start_us + np.array([0, 50, -50]) * HOUR_US)
    assert leakage_audit(answering(shifted, honest), shifted, origins_of(shifted)).passed

    def neighbour(windows: Windows) -> np.ndarray:
        steps = (windows.origin_us - shifted.start_us[0]) // HOUR_US
        return shifted.y[np.clip(steps, 0, 599)]

    result = leakage_audit(answering(shifted, neighbour), shifted, origins_of(shifted))
    assert not result.passed


@pytest.mark.parametrize(("ahead", "passed"), [(-1, True), (0, False)])
def test_days_are_counted_by_the_local_clock(ahead: int, passed: bool) -> None:
    midnight_us = 1_672_527_600_000_000  # 2023-01-01T00:00 in Berlin
    daily = seasonal_set()
    data = replace(
        daily,
        contract=replace(daily.contract, freq="1D", time_zone="Europe/Berlin"),
        start_us=np.full(3, midnight_us),
    )
    origins = origins_of(data)
    step = {
        int(t): int(p) for t, p in zip(instants_of(data, origins), origins.positions, strict=True)
    }

    def means(windows: Windows) -> np.ndarray:
        return np.nan_to_num(data.y[[600 + step[int(t)] + ahead for t in windows.origin_us]])

    assert leakage_audit(answering(data, means), data, origins).passed == passed


def test_windows_that_read_beyond_the_origin_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(
        data: SeriesArrays, series: np.ndarray, origins: np.ndarray, lookback: int, horizon: int
    ) -> Windows:
        later = windows_at(data, series, origins + 1, lookback, horizon - 1)
        return replace(windows_at(data, series, origins, lookback, horizon), y=later.y)

    monkeypatch.setattr("flts_ray.evaluate.backtest.windows_at", late)
    data = seasonal_set()
    result = leakage_audit(answering(data, honest), data, origins_of(data))
    assert not result.passed


def test_a_forecast_that_uses_later_windows_of_its_batch_is_caught() -> None:
    data = seasonal_set()

    def crowd(windows: Windows) -> np.ndarray:
        return windows.y.mean(1) - windows.y.mean()

    result = leakage_audit(answering(data, crowd), data, origins_of(data))
    assert "later windows of the batch" in str(result.first_violation)


def test_a_model_that_rolls_dice_is_refused() -> None:
    data, rng = seasonal_set(), np.random.default_rng(0)
    dice = answering(data, lambda windows: rng.standard_normal(len(windows)))
    result = leakage_audit(dice, data, origins_of(data))
    assert "not deterministic" in str(result.first_violation)


def test_a_cheat_that_fails_on_changed_data_is_caught() -> None:
    data = seasonal_set()

    def means(windows: Windows) -> np.ndarray:
        return np.where(np.isnan(data.y).any(), np.nan, windows.y.mean(1))

    result = leakage_audit(answering(data, means), data, origins_of(data))
    assert not result.passed and "fails" in str(result.first_violation)
    assert not np.isnan(data.y).any()


def test_the_data_is_restored_when_the_model_crashes() -> None:
    data, before = seasonal_set(), seasonal_set()

    def means(windows: Windows) -> np.ndarray:
        if np.isnan(data.y).any():
            raise KeyError("lost")
        return windows.y.mean(1)

    with pytest.raises(KeyError):
        leakage_audit(answering(data, means), data, origins_of(data))
    assert np.array_equal(data.y, before.y) and np.array_equal(data.past, before.past)


def test_data_that_cannot_be_written_is_audited_on_a_copy() -> None:
    data = seasonal_set()
    for array in (data.y, data.observed, data.past, data.future):
        array.flags.writeable = False
    assert leakage_audit(answering(data, honest), data, origins_of(data)).passed
    origins = Origins(np.array([2, 2]), np.array([500, 520]))
    assert leakage_audit(answering(data, honest), data, origins).checked == 2


def test_the_sample_is_bounded_and_follows_the_seed() -> None:
    data = seasonal_set()
    seen: list[tuple[int, ...]] = []

    def means(windows: Windows) -> np.ndarray:
        seen.append(tuple(windows.origin_us))
        return windows.y.mean(1)

    first = []
    for seed in (1, 1, 2):
        seen.clear()
        audit = leakage_audit(answering(data, means), data, origins_of(data), seed, 5)
        assert audit.checked == 5
        first.append(seen[0])
    assert first[0] == first[1] != first[2]


def test_no_origins_are_an_error() -> None:
    data, none = seasonal_set(), np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no origins"):
        leakage_audit(answering(data, honest), data, Origins(none, none))


def test_a_fit_on_the_training_span_passes() -> None:
    data = seasonal_set()

    def fit(given: SeriesArrays) -> Answering:
        level = np.mean([given.y[given.rows(i)][:360].mean() for i in range(given.n_series)])
        return answering(given, lambda windows: windows.y.mean(1) + level)

    assert fit_audit(fit, data, origins_of(data)).passed


def test_a_fit_that_copies_the_test_span_is_caught() -> None:
    data = seasonal_set()

    def fit(given: SeriesArrays) -> Answering:
        return answering(given, peeking(given, given.y.copy(), 0))

    kept = fit(data)
    assert leakage_audit(kept, data, origins_of(data)).passed
    result = fit_audit(fit, data, origins_of(data))
    assert not result.passed and "test span is changed before the fit" in str(
        result.first_violation
    )
