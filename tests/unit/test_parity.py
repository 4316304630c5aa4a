from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from flts_ray.errors import ArtifactError
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Forecast, Task, fit_fully
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
from flts_ray.serve.parity import app_on_loopback, check_parity, request_of
from tests.served import LEVELS, TASK, known_set, plain_contract, served, transparent, true_calendar
from tests.synthetic import seasonal_set

DAILY = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))


def judged(data: SeriesArrays, fitted: Fitted, stride: int = 7) -> Windows:
    lookback, horizon = fitted.spec.lookback, fitted.spec.task.horizon
    series, origins = origins_in(data, "test", lookback, horizon, stride)
    return windows_at(data, series, origins, lookback, horizon)


@pytest.fixture(scope="module")
def data() -> SeriesArrays:
    made = true_calendar(seasonal_set(length=300))
    observed = made.observed.copy()
    observed[::17] = False
    return replace(made, observed=observed)


@pytest.mark.parametrize("kind", ["seasonal_naive", "ar"])
def test_forecasts_over_http_equal_those_in_memory(
    kind: str, data: SeriesArrays, tmp_path: Path
) -> None:
    fitted = fit_fully(kind, data, DAILY)
    artifact.save(fitted, tmp_path / "model")
    windows = judged(data, fitted)
    result = check_parity(fitted, tmp_path / "model", windows, "demo")
    assert result.passed, result
    assert result.windows == len(windows) > 20
    assert result.max_relative_difference < 1e-9


@pytest.mark.parametrize("group", ["global", "per_series"])
def test_networks_are_compared_as_replicas_run_them(
    group: str, data: SeriesArrays, tmp_path: Path
) -> None:
    quick = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64, "group": group}
    fitted = fit_fully("gru", data, DAILY, quick)
    artifact.save(fitted, tmp_path / "model")
    result = check_parity(fitted, tmp_path / "model", judged(data, fitted), "demo")
    assert result.passed, result
    # Not to the last bit: one is the trained network, the other its export.
    assert 0 < result.max_relative_difference < 1e-5


def test_another_model_does_not_pass(data: SeriesArrays, tmp_path: Path) -> None:
    fitted = fit_fully("seasonal_naive", data, DAILY)
    artifact.save(fitted, tmp_path / "model")

    class Shifted:
        spec, stats = fitted.spec, fitted.stats

        def forecast(self, windows: Windows) -> Forecast:
            made = fitted.forecast(windows)
            mean = made.mean.copy()
            mean[-1, -1] += 1e-3 * windows.scale[-1] + 1e-3 * abs(mean[-1, -1])
            return replace(made, mean=mean)

        state = fitted.state

    result = check_parity(Shifted(), tmp_path / "model", judged(data, fitted), "demo")
    assert not result.passed
    assert 1e-4 < result.max_relative_difference < 1e-2
    assert result.reason is not None


def test_a_refused_window_does_not_pass(data: SeriesArrays, tmp_path: Path) -> None:
    fitted = fit_fully("seasonal_naive", data, DAILY)
    artifact.save(fitted, tmp_path / "model")
    windows = judged(data, fitted)
    y = windows.y.copy()
    y[3] = 1e31
    result = check_parity(fitted, tmp_path / "model", replace(windows, y=y), "demo")
    assert not result.passed
    assert "series[3].y[0]" in (result.reason or "")


def test_a_damaged_artifact_is_refused(data: SeriesArrays, tmp_path: Path) -> None:
    fitted = fit_fully("seasonal_naive", data, DAILY)
    artifact.save(fitted, tmp_path / "model")
    (tmp_path / "model" / artifact.ARRAYS).write_bytes(b"x")
    with pytest.raises(ArtifactError):
        check_parity(fitted, tmp_path / "model", judged(data, fitted), "demo")


def test_the_request_holds_every_input_of_the_windows() -> None:
    data = known_set()
    model = transparent(data.contract, data.ids, seen=[])
    model.stats = data.stats
    windows = windows_at(data, np.array([0, 2]), np.array([60, 90]), 24, TASK.horizon)
    with app_on_loopback(served(model)) as url:
        answer = httpx.post(f"{url}/v1/forecast", json=request_of(windows, LEVELS))
    assert answer.status_code == 200
    assert model.seen is not None
    (seen,) = model.seen
    for name in ("origin_us", "y", "observed", "past", "future", "static", "scale"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(windows, name), err_msg=name)


def test_the_port_is_closed_afterwards() -> None:
    with app_on_loopback(served(transparent(plain_contract()))) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/readyz")
