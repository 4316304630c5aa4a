"""The champion learns newer rows of its file, with a real MLflow and forecasts over HTTP."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import parse_config
from flts_ray.jobs.session import open_session
from flts_ray.jobs.update import update_champion
from flts_ray.models import artifact
from flts_ray.models.base import Compute, fit_fully, forecaster
from flts_ray.models.memory import seen_positions
from flts_ray.narrate import LogNarrator
from flts_ray.prepare.run import prepare
from flts_ray.promote import load_version, promote_version, task_of
from flts_ray.runs import StudyRuns
from flts_ray.services import Services
from flts_ray.tracking import TrackingClient

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

BEGIN, NOW = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)


def write_rows(path: Path, steps: int, names: tuple[str, ...] = ("north", "south")) -> None:
    """Hourly load that follows the day, and an announced event more and more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ds", "id", "load", "event"])
        for number, name in enumerate(names):
            rng = np.random.default_rng(number)
            event, noise = (rng.random(4000) < 0.2).astype(int), rng.standard_normal(4000)
            for i in range(steps):
                told = 0.5 + (i > 900)
                load = 10 * (3 + np.sin(2 * np.pi * i / 24) + told * event[i] + 0.1 * noise[i])
                stamp = (BEGIN + timedelta(hours=i)).isoformat()
                rows.writerow([stamp, name, f"{load:.5f}", event[i]])


def settings(folder: Path) -> dict[str, Any]:
    return {
        "name": "load",
        "root": str(folder / "root"),
        "data": {
            "path": str(folder / "in" / "load.csv"),
            "id": "id",
            "target": "load",
            "frequency": "1h",
            "covariates": {"event": "known_future"},
        },
        "task": {"horizon": 12},
        "prepare": {"engine": "local"},
    }


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    write_rows(tmp_path / "in" / "load.csv", 1000)
    with open_session(parse_config(settings(tmp_path))) as opened:
        yield opened


def first_champion(services: Services) -> None:
    """A linear model as a training would have refitted and promoted it."""
    config, prepared = services.config, prepare(services.config)
    data = prepared.arrays()
    fitted = fit_fully("ar", data, task_of(config), {"lags": 24})
    artifact.save(forecaster("ar").refit(fitted, data, Compute()), services.folder / "made")
    runs = StudyRuns.connect(services.mlflow_uri, config.name, config.name)
    version = services.registry().add_version(
        services.folder / "made", runs.start_study({}, {}), prepared.hash
    )
    promote_version(config, services, prepared, version.version, NOW, LogNarrator())


def test_newer_rows_and_a_new_series_make_a_new_champion(
    services: Services, tmp_path: Path
) -> None:
    first_champion(services)
    config, narrator = services.config, LogNarrator()
    same = update_champion(config, services, narrator, NOW)
    assert same.outcome == "nothing_new"

    write_rows(tmp_path / "in" / "load.csv", 1600, ("north", "south", "west"))
    asked = update_champion(config, services, narrator, NOW, dry_run=True)
    assert (asked.outcome, asked.news.series) == ("would_promote", 1)
    assert len(services.registry().versions()) == 1

    done = update_champion(config, services, narrator, NOW)
    assert done.outcome == "promoted" and done.version is not None
    champion, client = services.registry().champion(), TrackingClient(services.mlflow_uri)
    assert champion == done.version
    assert client.get_registered_model("load").aliases == {"champion": "2", "previous": "1"}
    tags = client.get_model_version("load", "2").tags
    assert (tags["trial"], tags["updated_from"], tags["new_series"]) == ("update", "1", "1")
    run = client.get_run(done.version.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["test/rmse"] > 0

    loaded = load_version(services, done.version).fitted
    data = prepare(config).arrays()
    assert "west" in loaded.stats.ids
    np.testing.assert_array_equal(seen_positions(loaded, data), data.valid_end)
    entries = services.registry().history()
    assert [entry.champion for entry in entries] == [1, 2]
    assert update_champion(config, services, narrator, NOW).outcome == "nothing_new"
    assert services.registry().history() == entries
