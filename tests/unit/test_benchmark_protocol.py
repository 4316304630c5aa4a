"""What benchmark and runner exchange arrives as it was sent, and settings follow the task."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy_tasks import few_stride, few_windows, filled
from benchmarks.peers.protocol import LEVELS, ForecastData, TaskData
from benchmarks.peers.run import chosen_windows
from benchmarks.peers.settings import PEERS, settings_of

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-bench" / "bin" / "python"
HORIZON, SEASON = 4, 24


def make_task(n_series: int = 2, length: int = 400, seed: int = 0) -> TaskData:
    """Noisy daily cycles; the last quarter of each series is the test span."""
    rng = np.random.default_rng(seed)
    cycle = np.sin(2 * np.pi * np.arange(length) / SEASON)
    y = (
        10.0 * (1 + np.arange(n_series))[:, None]
        + cycle
        + 0.1 * rng.standard_normal((n_series, length))
    )
    valid_end = length * 3 // 4
    positions = np.arange(valid_end, length - HORIZON + 1)
    series = np.repeat(np.arange(n_series), len(positions))
    hour = 3_600_000_000
    return TaskData(
        name="made",
        horizon=HORIZON,
        season=SEASON,
        ids=np.array([f"s{i}" for i in range(n_series)]),
        offsets=np.arange(n_series + 1) * length,
        train_end=np.full(n_series, length // 2),
        valid_end=np.full(n_series, valid_end),
        y=y.ravel(),
        observed=np.ones(n_series * length, bool),
        wall_us=np.tile(np.arange(length) * hour, n_series),
        series=series,
        positions=np.tile(positions, n_series),
        few=np.tile(np.arange(len(positions)) % 5 == 0, n_series),
        known=np.zeros((n_series * length, 0), np.float32),
        past=np.zeros((n_series * length, 0), np.float32),
    )


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    task = make_task()
    task.save(tmp_path / "task.npz")
    found = TaskData.load(tmp_path / "task.npz")
    assert found.digest() == task.digest()
    assert (found.name, found.horizon, found.season) == ("made", HORIZON, SEASON)
    assert list(tmp_path.iterdir()) == [tmp_path / "task.npz"]


def test_any_changed_number_changes_the_digest() -> None:
    task = make_task()
    y = task.y.copy()
    y[7] += 1e-9
    assert dataclasses.replace(task, y=y).digest() != task.digest()
    assert dataclasses.replace(task, horizon=5).digest() != task.digest()


@pytest.mark.parametrize("with_quantiles", [True, False])
def test_forecasts_are_read_as_they_were_written(tmp_path: Path, with_quantiles: bool) -> None:
    quantiles = np.arange(10.0).reshape(2, 1, 5) if with_quantiles else None
    sent = ForecastData(np.array([1, 4]), np.ones((2, 1)), quantiles, {"fit_cpu_s": 1.5})
    sent.save(tmp_path / "f.npz")
    found = ForecastData.load(tmp_path / "f.npz")
    np.testing.assert_array_equal(found.windows, [1, 4])
    assert found.about == {"fit_cpu_s": 1.5}
    assert (found.quantiles is not None) == with_quantiles
    if found.quantiles is not None:
        np.testing.assert_array_equal(found.quantiles, quantiles)


def test_what_happened_is_looked_up_and_missing_where_nothing_was_observed() -> None:
    task = make_task()
    observed = task.observed.copy()
    observed[301] = False
    actual = dataclasses.replace(task, observed=observed).actual(np.array([0, 97]))
    assert np.isnan(actual[0]).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(actual[1], task.y[700:704])


def test_the_subsample_visits_every_series_and_every_time_of_day() -> None:
    series = np.repeat([0, 1], [5000, 1000])
    stride = few_stride(series, SEASON)
    few = few_windows(series, SEASON)
    assert np.gcd(stride, SEASON) == 1
    assert few[0] and few[5000]
    assert np.diff(np.flatnonzero(few[:5000])).tolist() == [stride] * (few[:5000].sum() - 1)
    assert len(set(np.flatnonzero(few[:5000]) % SEASON)) == SEASON


def test_gaps_hold_the_last_value_before_them() -> None:
    nan = np.nan
    np.testing.assert_array_equal(filled(np.array([nan, 2.0, nan, nan, 5.0])), [2, 2, 2, 2, 5])


def test_settings_are_plain_and_known_models_only() -> None:
    for library, models in PEERS.items():
        for model in models:
            found = settings_of(library, model, 96, 24, known=True, past=False)
            assert json.loads(json.dumps(found)) == found
    with pytest.raises(KeyError, match="NBEATS"):
        settings_of("neuralforecast", "NBEATS", 96, 24, known=False, past=False)


@pytest.mark.parametrize(("known", "past", "variants"), [(False, False, 1), (False, True, 2)])
def test_networks_are_tried_without_covariates_and_with_those_there_are(
    known: bool, past: bool, variants: int
) -> None:
    found = settings_of("darts", "BlockRNN", 96, 24, known, past)["variants"]
    assert [one["covariates"] for one in found] == [False, True][:variants]


def test_models_fitted_at_every_origin_get_the_subsample() -> None:
    task = make_task()
    assert len(chosen_windows(task, "AutoETS")) == task.few.sum()
    assert len(chosen_windows(task, "GRU")) == len(task.series)


@pytest.mark.skipif(not PYTHON.exists(), reason="`make bench-setup` has not been run")
def test_a_runner_answers_for_every_window(tmp_path: Path) -> None:
    task = make_task(length=160)
    task.save(tmp_path / "task.npz")
    words = ["--library", "statsforecast", "--model", "SeasonalNaive", "--budget", "30"]
    words += ["--task", str(tmp_path / "task.npz"), "--output", str(tmp_path / "found.npz")]
    subprocess.run(
        [str(PYTHON), "-m", "benchmarks.peers.run", *words], cwd=ROOT, check=True, timeout=120,
        capture_output=True,
    )  # fmt: skip
    found = ForecastData.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found.windows, np.arange(len(task.series)))
    last_day = [
        task.y[task.rows(int(s))][p - SEASON : p - SEASON + HORIZON]
        for s, p in zip(task.series, task.positions, strict=True)
    ]
    np.testing.assert_allclose(found.mean, last_day, rtol=1e-5)
    assert found.quantiles is not None and found.quantiles.shape[-1] == len(LEVELS)
    assert (np.diff(found.quantiles, axis=-1) >= 0).all()
    assert found.about["predict_cpu_s"] > 0
