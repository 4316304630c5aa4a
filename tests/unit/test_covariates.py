"""Covariates: a missing future value is named, labels are learned and mean the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import ArtifactError, DataError
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Task, fit_fully
from flts_ray.panel import UNKNOWN_CATEGORY, Contract
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at
from flts_ray.prepare.covariates import check_ahead, check_future, recoded
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
LABELS = ("calm", "eager", "wild")
TRAINED: dict[str, dict[str, Any]] = {
    kind: {"epochs": 1, "hidden": 8, "windows_per_epoch": 256} for kind in ("gru", "lstm")
}
READERS = ("ar", "gru", "lstm", "prophet")
"""Kinds that read known-future covariates."""


def with_hole(series: int, steps: list[int]) -> SeriesArrays:
    data = seasonal_set()
    future = data.future.copy()
    future[data.offsets[series] + np.asarray(steps), 2] = np.nan
    return replace(data, future=future)


def test_a_hole_before_the_test_span_is_named() -> None:
    check_future(seasonal_set())
    check_future(with_hole(1, [480, 599]))
    with pytest.raises(DataError) as caught:
        check_future(with_hole(1, [3, 479, 500]))
    assert caught.value.field == "known_future.event"
    assert "known_future.event: series s1 has no value at 2020-09-13T15:00:00Z" in str(caught.value)
    assert "(step 3 of its 600), and 1 more are missing" in str(caught.value)


@pytest.mark.parametrize("rows_at_once", [1, 1000, 10**6])
def test_the_first_hole_is_named_and_all_are_counted_whatever_is_looked_at_at_once(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.prepare.arrays.ROWS_AT_ONCE", rows_at_once)
    data = with_hole(0, [470, 599])
    future = data.future.copy()
    future[data.offsets[2] + np.array([5, 6]), 2] = np.nan
    with pytest.raises(DataError, match=r"series s0 .*step 470 of its 600\), and 2 more are"):
        check_future(replace(data, future=future))


def test_a_hole_in_the_horizon_is_named() -> None:
    data = with_hole(2, [100, 110])
    at = (np.array([0, 2]), np.array([108, 108]), 24, 6)
    with pytest.raises(DataError) as caught:
        check_ahead(windows_at(data, *at))
    assert caught.value.field == "known_future.event"
    assert "series s2 has no value at 2020-09-18T02:00:00Z (step 3 of the horizon)" in str(
        caught.value
    )
    check_ahead(windows_at(data, np.array([2]), np.array([104]), 24, 6))


def test_nothing_is_missing_where_nothing_is_known_ahead() -> None:
    data = seasonal_set(covariates=False)
    check_future(data)
    check_ahead(windows_at(data, np.array([0]), np.array([100]), 24, 6))


@pytest.mark.parametrize("kind", READERS)
def test_a_fit_names_the_missing_future_value(kind: str) -> None:
    with pytest.raises(DataError, match=r"known_future\.event: series s1 .*step 400 of its 600"):
        fit_fully(kind, with_hole(1, [400]), TASK, TRAINED.get(kind, {}))


@pytest.mark.parametrize("kind", READERS)
def test_a_forecast_names_the_missing_future_value(kind: str) -> None:
    fitted = fit_fully(kind, seasonal_set(), TASK, TRAINED.get(kind, {}))
    at = (np.array([0, 1]), np.array([500, 500]), fitted.spec.lookback, TASK.horizon)
    with pytest.raises(DataError, match=r"known_future\.event: series s1 .*step 2 of the horizon"):
        fitted.forecast(windows_at(with_hole(1, [501]), *at))


def labelled_set(labels: tuple[str, ...] = LABELS, n_series: int = 9) -> SeriesArrays:
    """Series that answer an event by their label: not at all, upwards or downwards.

    Two static columns: a number that tells nothing, and the label.
    """
    plain = seasonal_set(n_series, length=400)
    rng = np.random.default_rng(1)
    kinds = [LABELS[i % 3] for i in range(n_series)]
    effect = np.repeat([{"calm": 0.0, "eager": 2.0, "wild": -2.0}[k] for k in kinds], 400)
    level = np.repeat(10.0 ** (np.arange(n_series) % 3), 400)
    event = plain.future[:, 2].astype(float)
    y = plain.y + level * event * (effect - 0.5)
    scale = np.asarray([np.abs(np.diff(y[plain.rows(i)][:240])).mean() for i in range(n_series)])
    contract = Contract(
        freq="1h",
        season=24,
        calendar=plain.contract.calendar,
        known_future=("event",),
        static=("height", "mood"),
        categories=((), labels),
    )
    codes = [contract.code_of("mood", kind) for kind in kinds]
    static = np.column_stack([rng.random(n_series), codes]).astype(np.float32)
    past = np.zeros((len(y), 0), dtype=np.float32)
    stats = replace(plain.stats, scale=scale)
    return replace(plain, contract=contract, y=y, static=static, past=past, stats=stats)


@cache
def learned() -> Fitted:
    params = {"epochs": 10, "hidden": 24, "batch": 32, "lookback": 24, "lr": 0.01, "patience": 20}
    return fit_fully("gru", labelled_set(), TASK, params, Compute())


def held(data: SeriesArrays) -> tuple[Windows, np.ndarray]:
    lookback = learned().spec.lookback
    series, origins = origins_in(data, "test", lookback, TASK.horizon, stride=3)
    windows = windows_at(data, series, origins, lookback, TASK.horizon)
    return windows, actuals_at(data, series, origins, TASK.horizon)


def error_of(windows: Windows, actual: np.ndarray) -> float:
    """Scaled error where the event is on."""
    event = windows.future[:, windows.lookback :, windows.contract.future.index("event")] > 0
    missed = np.abs(learned().forecast(windows).median - actual) / windows.scale[:, None]
    return float(missed[event].mean())


def with_labels(windows: Windows, code: float) -> Windows:
    static = windows.static.copy()
    static[:, 1] = code
    return replace(windows, static=static)


def test_the_network_learns_what_a_label_means() -> None:
    windows, actual = held(labelled_set())
    told, untold = error_of(windows, actual), error_of(with_labels(windows, -1.0), actual)
    assert told < 0.7 * untold
    other = with_labels(windows, 0.0)
    assert told < 0.7 * error_of(other, actual)


def test_every_unseen_label_shares_one_row() -> None:
    windows, _ = held(labelled_set())
    missing = learned().forecast(with_labels(windows, UNKNOWN_CATEGORY))
    for code in (3.0, 17.0):
        again = learned().forecast(with_labels(windows, code))
        assert again.mean.tobytes() == missing.mean.tobytes()
    assert np.isfinite(missing.quantiles).all()


def test_labels_that_another_set_numbers_anew_mean_the_same() -> None:
    windows, _ = held(labelled_set())
    more = labelled_set(("angry", "calm", "dull", "eager", "wild"))
    others, _ = held(more)
    assert others.static[:, 1].tolist() != windows.static[:, 1].tolist()
    expected, found = learned().forecast(windows), learned().forecast(others)
    assert found.mean.tobytes() == expected.mean.tobytes()
    unknown = recoded(with_labels(others, 2.0), learned().spec.contract)
    assert unknown.static[:, 1].tolist() == [UNKNOWN_CATEGORY] * len(others)


def test_a_model_with_labels_is_stored(tmp_path: Path) -> None:
    artifact.save(learned(), tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    windows, _ = held(labelled_set())
    assert loaded.forecast(windows).mean.tobytes() == learned().forecast(windows).mean.tobytes()
    assert loaded.spec.contract == labelled_set().contract


def test_labels_that_are_not_those_of_the_contract_are_refused() -> None:
    from flts_ray.models.recurrent_stored import read_values

    values, _ = learned().state()
    with pytest.raises(ArtifactError, match="not those of its contract"):
        read_values(learned().spec, {**values, "categories": [0, 4]}, series=0)


def test_a_network_of_one_series_has_no_labels() -> None:
    params = {"epochs": 1, "group": "per_series", "lookback": 24}
    fitted = fit_fully("gru", labelled_set(), TASK, params)
    assert fitted.state()[0]["categories"] == []
    windows, _ = held(labelled_set())
    assert np.isfinite(fitted.forecast(windows).mean).all()


def test_codes_follow_the_sorted_labels() -> None:
    contract = Contract("1h", 24, static=("floor", "region"), categories=((), ("east", "west")))
    assert contract.labels == {"region": ("east", "west")}
    assert [contract.code_of("region", one) for one in ("east", "west", "north", None)] == [
        0.0,
        1.0,
        UNKNOWN_CATEGORY,
        UNKNOWN_CATEGORY,
    ]
    assert Contract.from_json(contract.to_json()) == contract
