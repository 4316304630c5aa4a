"""A blend as champion on a real Ray and a real MLflow: made, compared, looked up, taken back.

The tests of this module share one root and run in order.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flts_ray.cli import app
from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.jobs.diff import diff, who_serves
from flts_ray.jobs.series_rollback import rollback_series
from flts_ray.jobs.session import open_session
from flts_ray.models.base import Forecast
from flts_ray.models.blend import Blend
from flts_ray.pipeline import TrainReport, judge_again, train
from flts_ray.prepare.arrays import windows_at
from flts_ray.promote import load_version
from flts_ray.services import Services
from flts_ray.tracking import TrackingClient
from tests.integration.test_pipeline import NOW, ROWS, Notes, clock, later, settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def write_input(path: Path) -> None:
    """A series that wanders, which short lags forecast best, and one that keeps to the day."""
    rng, begin = np.random.default_rng(3), datetime(2024, 1, 1, tzinfo=UTC)
    steps, event = np.arange(ROWS), (rng.random(ROWS) < 0.2).astype(int)
    day = np.sin(2 * np.pi * steps / 24)
    load = {
        "north": 50 + np.cumsum(rng.standard_normal(ROWS)) + 0.2 * day,
        "south": 200 * (3 + day + 0.5 * event + 0.4 * rng.standard_normal(ROWS)),
    }
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ds", "id", "load", "event"])
        for name, values in load.items():
            for i in steps:
                stamp = (begin + timedelta(hours=int(i))).isoformat()
                rows.writerow([stamp, name, f"{values[i]:.5f}", event[i]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("blend")
    write_input(made / "in" / "load.csv")
    return made


def configured(folder: Path, *, blend: bool) -> Config:
    models = {
        "seasonal_naive": {}, "ar": {"params": {"ridge": 3.0, "lags": 5}}, "prophet": {},
    }  # fmt: skip
    changes = {
        "models": models,
        "tune": {"budget_s": 300, "validation_stride": 2},
        # A wide gate: what is tested is the way of a blend, not how much evidence it takes.
        "gate": {"level": 0.4},
        "blend": {"enabled": blend},
    }
    return parse_config(settings(folder) | changes)


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return configured(folder, blend=True)


@pytest.fixture(scope="module")
def services(config: Config) -> Iterator[Services]:
    with open_session(config, ray=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def single(folder: Path, services: Services) -> TrainReport:
    return train(configured(folder, blend=False), services, Notes(), clock)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def blended(config: Config, services: Services, single: TrainReport, notes: Notes) -> TrainReport:
    return train(config, services, notes, clock, resume=True)


def forecast_of(services: Services, report: TrainReport, n: int, series: str) -> Forecast:
    fitted = load_version(services, services.registry().version(n)).fitted
    data = report.prepared.arrays([series])
    at = np.array([0, 0]), np.array([1300, 1400])
    return fitted.forecast(windows_at(data, *at, fitted.spec.lookback, fitted.spec.task.horizon))


def same_bits(one: Forecast, other: Forecast) -> bool:
    return (
        one.mean.tobytes() == other.mean.tobytes()
        and one.quantiles.tobytes() == other.quantiles.tobytes()
    )


def test_without_a_blend_a_single_model_is_champion(single: TrainReport) -> None:
    assert single.promoted
    assert single.version.kind != "blend"
    assert "blend" not in [one.name for one in single.judged]


def test_the_blend_is_judged_like_all_others_and_promoted(
    services: Services, single: TrainReport, blended: TrainReport, notes: Notes
) -> None:
    assert [one.name for one in blended.judged][-1] == "blend"
    assert any(step.startswith("Blend: ") and "it beats" in step for step in notes.steps)
    assert all(one.audit.passed for one in blended.judged)
    assert blended.candidate == "blend"
    assert blended.promoted
    assert (blended.version.kind, blended.version.version) == ("blend", 2)
    assert services.registry().champion() == blended.version
    key = services.registry().history()[-1].decision
    assert key is not None
    assert services.registry().decision(key)["parity"]["passed"] is True
    fitted = load_version(services, blended.version).fitted
    assert isinstance(fitted, Blend)
    assert 2 <= len(fitted.members) <= 4


def test_its_run_holds_what_it_is_made_of(services: Services, blended: TrainReport) -> None:
    run = TrackingClient(services.mlflow_uri).get_run(blended.version.run_id)
    assert run.info.run_name == "blend"
    assert run.info.status == "FINISHED"
    weights = [float(v) for k, v in run.data.params.items() if k.startswith("weight.")]
    assert sum(weights) == pytest.approx(1.0, abs=1e-3)
    assert "test/rmse" in run.data.metrics


def test_training_again_finds_it_and_judging_again_too(
    config: Config, services: Services, blended: TrainReport
) -> None:
    again = train(config, services, Notes(), clock, resume=True)
    assert again.version == blended.version
    assert len(services.registry().versions()) == 2
    judged, champion = judge_again(config, services, Notes())
    assert champion is not None
    assert champion.board.overall == judged[-1].board.overall


def test_two_versions_are_compared(
    services: Services, single: TrainReport, blended: TrainReport
) -> None:
    found = diff(services, 1, 2)
    assert found.versions == ((1, single.version.kind), (2, "blend"))
    assert (found.same_data, found.series) == (True, 2)
    assert len(found.weights[1]) > 1
    for change in found.changed:
        assert None not in change.test
        assert None not in change.validation


def test_one_series_goes_back_and_a_plain_rollback_takes_that_back(
    services: Services, single: TrainReport, blended: TrainReport
) -> None:
    done = rollback_series(services, "north", 1, later(), "bad nights")
    registry = services.registry()
    assert (done.version.version, done.before.version) == (3, 2)
    assert registry.champion() == done.version
    assert done.version.prepared_hash == blended.version.prepared_hash
    entry = registry.history()[-1]
    assert (entry.action, entry.champion, entry.previous) == ("promote", 3, 2)
    assert "series north back to version 1" in (entry.reason or "")
    assert "bad nights" in (entry.reason or "")
    for series, n in (("north", 1), ("south", 2)):
        mine = forecast_of(services, blended, 3, series)
        assert same_bits(mine, forecast_of(services, blended, n, series))
    (now,) = who_serves(services, "north")
    assert (now.version, now.own, list(now.members)) == (3, True, [single.version.kind])
    (then,) = who_serves(services, "north", [1])
    assert (now.test, now.validation) == (then.test, then.validation)
    changed = diff(services, 2, 3).changed
    assert [one.series for one in changed] == ["north"]
    with pytest.raises(DataError, match="same members with the same weights"):
        rollback_series(services, "north", 1, later(), "again")
    assert registry.rollback(NOW, "no").champion == 2


def test_the_commands_show_it(
    folder: Path, config: Config, services: Services, blended: TrainReport
) -> None:
    path = folder / "flts.yaml"
    raw = config.model_dump(mode="json")
    path.write_text(json.dumps(raw | {"mlflow": {"uri": services.mlflow_uri}}))
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
    told = runner.invoke(app, ["diff", "2", "3", "-c", str(path)])
    assert told.exit_code == 0, told.output
    assert "1 of 2 series are served otherwise" in told.stdout
    asked = runner.invoke(app, ["series", "south", "-c", str(path), "--json"])
    (line,) = json.loads(asked.stdout)
    assert line["version"] == 2
    back = runner.invoke(app, ["rollback", "--series", "south", "--to", "1", "-c", str(path)])
    assert back.exit_code == 0, back.output
    assert back.stdout.startswith("champion is version 4: series south back to version 1")
    half = runner.invoke(app, ["rollback", "--series", "south", "-c", str(path)])
    assert half.exit_code == 2
    assert "--series and --to go together" in half.stderr
