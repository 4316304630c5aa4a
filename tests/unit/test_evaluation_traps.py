"""Ways in which an evaluation of forecasts goes wrong unseen, and that ours does not.

Windows that get lost, figures that follow the size of a batch, forecasts that know the future,
scales that know the test span, and a level that moves away between training and test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import load_config
from flts_ray.evaluate.backtest import Backtest, Origins, backtest, choose_origins
from flts_ray.evaluate.leakage import fit_audit, leakage_audit
from flts_ray.evaluate.scoreboard import score_board
from flts_ray.models.base import KINDS, Compute, Fitted, Task, fit_fully
from flts_ray.prepare.arrays import SeriesArrays, origins_in
from flts_ray.prepare.kernel import prepare_bucket
from flts_ray.prepare.run import prepare
from flts_ray.prepare.stats import training_stats
from tests.raw_tables import raw_table, rules
from tests.synthetic import seasonal_set

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FLTS_DATA", ROOT.parent / "shared" / "data"))
TASK = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))
SMALL: dict[str, dict[str, Any]] = {
    kind: {"epochs": 2, "hidden": 8, "windows_per_epoch": 512, "lookback": 48}
    for kind in ("gru", "lstm")
}
NETWORKS = tuple(SMALL)
NAIVE_SHARE = 0.75
"""Of the error of repeating the last day: what a network may have on the uplink at most."""


def files(name: str) -> Path:
    """The folder of the public data sets, or a skip that says where they were looked for."""
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in {DATA}; set FLTS_DATA to the folder of the data sets")
    return DATA


def prepared(config: str, name: str, root: Path) -> SeriesArrays:
    os.environ.setdefault("FLTS_DATA", str(files(name)))
    overrides = [f"root={root}", "prepare.engine=local"]
    return prepare(load_config(ROOT / "configs" / config, overrides)).arrays()


@pytest.fixture(scope="module")
def etth1(tmp_path_factory: pytest.TempPathFactory) -> SeriesArrays:
    return prepared("etth1.yaml", "ETTh1.csv", tmp_path_factory.mktemp("etth1"))


@pytest.fixture(scope="module")
def lte(tmp_path_factory: pytest.TempPathFactory) -> SeriesArrays:
    return prepared("lte.yaml", "lte_ElBorn.csv", tmp_path_factory.mktemp("lte"))


# Windows


@pytest.mark.parametrize(("horizon", "count"), [(96, 2785), (192, 2689), (336, 2545), (720, 2161)])
def test_etth1_has_all_its_test_windows(etth1: SeriesArrays, horizon: int, count: int) -> None:
    origins = choose_origins(etth1, "test", 720, horizon, stride=1)
    assert np.bincount(origins.series).tolist() == [count] * 7
    first, last = origins.positions.min(), origins.positions.max()
    assert (first, last + horizon) == (11_520, 14_400)


def test_etth1_has_the_usual_borders(etth1: SeriesArrays) -> None:
    assert etth1.train_end.tolist() == [8_640] * 7
    assert etth1.valid_end.tolist() == [11_520] * 7
    assert etth1.lengths.tolist() == [14_400] * 7
    for series in range(7):
        known = etth1.y[etth1.rows(series)][:8_640]
        assert etth1.stats.mean[series] == pytest.approx(known.mean(), rel=1e-12)
        assert etth1.stats.std[series] == pytest.approx(known.std(), rel=1e-12)


# Batches


@cache
def fitted(kind: str) -> Fitted:
    return fit_fully(kind, seasonal_set(length=500), TASK, SMALL.get(kind, {}), Compute(seed=3))


def figures(kind: str, data: SeriesArrays, result: Backtest) -> dict[str, float]:
    return dict(score_board(kind, kind, result, data.stats).overall)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_batch_changes_no_figure(kind: str) -> None:
    data, model = seasonal_set(length=500), fitted(kind)
    origins = choose_origins(data, "test", 168, TASK.horizon, stride=4)
    n = len(origins)
    whole = backtest(model, data, origins, chunk=n)
    expected = figures(kind, data, whole)
    for chunk in (1, 7, 64, n - 1):
        assert n % chunk or chunk == 1  # the last batch is a part of one
        found = backtest(model, data, origins, chunk=chunk)
        assert len(found) == n
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-11)
        again = figures(kind, data, found)
        assert again.keys() == expected.keys()
        for name, value in expected.items():
            assert again[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


# The future


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_after_the_origin_influences_a_forecast(kind: str) -> None:
    data = seasonal_set(length=500)
    origins = choose_origins(data, "test", 168, TASK.horizon, stride=5)
    assert origins.positions.max() + TASK.horizon < 500
    result = leakage_audit(fitted(kind), data, origins, max_origins=12)
    assert result.passed, result.first_violation


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_test_span_influences_a_fit(kind: str) -> None:
    data = seasonal_set(length=500)
    origins = choose_origins(data, "test", 168, TASK.horizon, stride=20)

    def fit(given: SeriesArrays) -> Fitted:
        return fit_fully(kind, given, TASK, SMALL.get(kind, {}), Compute(seed=3))

    result = fit_audit(fit, data, origins)
    assert result.passed, result.first_violation


# Scales


def later_spans(length: int, train_end: int) -> Iterator[np.ndarray]:
    """What may follow a training span: other noise, another level, holes, huge values."""
    rng = np.random.default_rng(0)
    size = length - train_end - 1
    yield rng.normal(10.0, 1.0, size)
    yield rng.normal(1e6, 1e5, size)
    yield np.where(rng.random(size) < 0.2, np.nan, rng.normal(10.0, 1.0, size))
    yield rng.normal(10.0, 1e9, size)


def test_statistics_bounds_and_imputation_see_the_training_span_alone() -> None:
    length, train_end = 200, 144
    rng = np.random.default_rng(1)
    training = rng.normal(10.0, 1.0, train_end)
    training[[20, 21, 90]] = np.nan
    training[50] = 500.0  # an outlier, so that there are bounds that cut something
    seen = []
    for later in later_spans(length, train_end):
        values = [*training.tolist(), *later.tolist(), 10.0]
        made = prepare_bucket(raw_table({"a": values}), rules(max_missing=0.5))
        (row,) = made.series.to_pylist()
        assert row["train_end"] == train_end
        stats = {name: row[name] for name in ("mean", "std", "scale", "clip_lo", "clip_hi")}
        rows = made.data.slice(0, train_end)
        seen.append((stats, rows["y"].to_pylist(), rows["observed"].to_pylist()))
    assert seen[0][0]["clip_hi"] < 500.0
    assert all(one == seen[0] for one in seen[1:])


FIXED: dict[str, dict[str, Any]] = {
    "seasonal_naive": {},
    "ar": {"lags": 24, "ridge": 0.1, "calendar": True, "pooling": "global", "reach": 0},
    "gru": {**SMALL["gru"], "epochs": 1, "skip": "none"},
    "lstm": {**SMALL["lstm"], "epochs": 1, "skip": "none"},
    "prophet": {"regressors": "all"},
}
"""Parameters that leave nothing of the maps and weights for validation to choose."""
TRAINED = {
    "seasonal_naive": (),
    "ar": ("values", "future", "bias", "center", "spread"),
    "gru": ("net.", "columns."),
    "lstm": ("net.", "columns."),
    "prophet": ("curve_",),
}
"""Arrays that are learned on the training span, by the beginning of their names."""


def other_later_spans(data: SeriesArrays) -> SeriesArrays:
    """The same training span; values, marks and covariates of all that follows are others."""
    rng = np.random.default_rng(5)
    later = np.zeros(len(data.y), dtype=bool)
    for series in range(data.n_series):
        later[data.rows(series)][data.train_end[series] :] = True
    return replace(
        data,
        y=np.where(later, 1e4 * rng.random(len(later)), data.y),
        observed=np.where(later, rng.random(len(later)) < 0.8, data.observed),
        past=np.where(later[:, None], np.float32(700), data.past),
        future=np.where(later[:, None], np.float32(30), data.future),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_sees_the_training_span_alone(kind: str) -> None:
    data = seasonal_set(length=500)
    states = []
    for given in (data, other_later_spans(data)):
        model = fit_fully(kind, given, TASK, FIXED[kind], Compute(seed=3))
        arrays = model.state()[1].items()
        states.append({name: a for name, a in arrays if name.startswith(TRAINED[kind])})
        assert model.stats is given.stats
    assert states[0].keys() == states[1].keys()
    assert states[0] or kind == "seasonal_naive"
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), name


# Levels


def moved(factor: float) -> SeriesArrays:
    """A set whose level moves by a factor where the test span begins, with bounds as prepared."""
    length = 750
    data = seasonal_set(2, length=length, covariates=False)
    y = data.y.copy()
    bounds = []
    for series in range(data.n_series):
        own = y[data.rows(series)]
        own[data.valid_end[series] :] *= factor
        found = training_stats(own, np.ones(length, bool), data.train_end[series], 24, 3.0)
        bounds.append((found.clip_lo, found.clip_hi))
    low, high = np.asarray(bounds).T
    return replace(data, y=y, stats=replace(data.stats, clip_lo=low, clip_hi=high))


def error_of(kind: str, data: SeriesArrays, origins: Origins, horizon: int, **params: Any) -> float:
    """Mean absolute error of the median in units of the level of the series; all is finite."""
    task = Task(horizon, TASK.levels)
    result = backtest(fit_fully(kind, data, task, params, Compute(seed=3)), data, origins)
    assert np.isfinite(result.mean).all() and np.isfinite(result.quantiles).all()
    assert (np.diff(result.quantiles, axis=2) >= 0).all()
    level = np.asarray(
        [np.nanmean(np.abs(result.actual[origins.series == i])) for i in range(data.n_series)]
    )
    missed = np.abs(result.median - result.actual) / level[origins.series, None]
    return float(np.nanmean(missed))


@pytest.mark.parametrize("factor", [100.0, 0.01])
@pytest.mark.parametrize("kind", ["ar", *NETWORKS])
def test_a_level_that_moved_by_two_orders_breaks_nothing(kind: str, factor: float) -> None:
    data = moved(factor)
    assert (data.stats.clip_hi < 100.0 * data.stats.mean).all()
    settled = Origins(*origins_in(data, "test", 120, TASK.horizon))
    settled = settled.part(settled.positions >= data.valid_end[0] + 120)
    naive = error_of("seasonal_naive", data, settled, TASK.horizon)
    found = error_of(kind, data, settled, TASK.horizon, **SMALL.get(kind, {}))
    assert naive < 0.3
    assert found < naive


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_uplink_of_real_cells_breaks_no_network(lte: SeriesArrays, kind: str) -> None:
    data = lte.take([i for i, name in enumerate(lte.ids) if name.endswith("up")])
    for series in range(data.n_series):
        y = data.y[data.rows(series)]
        low, high = (np.nanpercentile(y[: data.train_end[series]], q) for q in (10, 99.9))
        assert high > 100.0 * low  # two orders of magnitude within one series
    origins = choose_origins(data, "test", 720, 30)
    naive = error_of("seasonal_naive", data, origins, 30)
    small = {**SMALL[kind], "epochs": 1, "lookback": 120, "max_lags": 120}
    assert error_of(kind, data, origins, 30, **small) < NAIVE_SHARE * naive
