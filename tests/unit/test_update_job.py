"""An update: what is new, judged on what nobody has seen, promoted as it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flts_ray import promote
from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, Conflict, Unavailable
from flts_ray.evaluate.finalists import judge_all
from flts_ray.jobs import update as job
from flts_ray.jobs.update import UpdateReport, update_champion
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, fit_fully, forecaster
from flts_ray.models.memory import seen_positions
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.promote import load_version, task_of
from flts_ray.registry import Registry
from flts_ray.runs import StudyRuns
from flts_ray.serve.parity import ParityResult
from flts_ray.store import Store
from tests.served import true_calendar
from tests.synthetic import seasonal_set
from tests.unit.test_promote import InMemory, MemoryServices, Notes, Told, crown

NOW = datetime(2024, 5, 1, tzinfo=UTC)
CONFIG = parse_config({"name": "load", "data": {"path": "x.csv"}, "task": {"horizon": 6}})


@cache
def rows() -> SeriesArrays:
    """Two series whose known event begins to matter more at step 600."""
    data = true_calendar(seasonal_set(n_series=2, length=1400, noise=0.2))
    y, event = data.y.copy(), data.contract.future.index("event")
    for i in range(2):
        later = slice(data.rows(i).start + 600, data.rows(i).stop)
        y[later] += 2.0 * 10.0**i * data.future[later, event]
    return replace(data, y=y)


def until(train: int, valid: int, end: int) -> SeriesArrays:
    """The first `end` steps of both series, with their spans."""
    data = rows()
    kept = np.concatenate([np.arange(end) + data.offsets[i] for i in range(2)])
    return replace(
        data,
        offsets=np.arange(3) * end,
        train_end=np.full(2, train),
        valid_end=np.full(2, valid),
        y=data.y[kept],
        observed=data.observed[kept],
        future=data.future[kept],
        past=data.past[kept],
    )


@cache
def fitted() -> Fitted:
    data = until(400, 560, 700)
    found = fit_fully("ar", data, task_of(CONFIG), {"lags": 24})
    return forecaster("ar").refit(found, data, Compute())


@dataclass
class Runs:
    """A tracking server's runs that are remembered."""

    started: list[Mapping[str, str]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def start_study(self, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        self.started.append(params)
        return f"run-{len(self.started)}"

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        self.folders.append(folder)

    def log_epoch(self, *given: Any) -> None:
        """Scores are tested where they are logged."""

    def log_table(self, *given: Any) -> None:
        """Tables are tested where they are logged."""

    def end_study(self, run_id: str, status: str) -> None:
        self.ended.append(status)


@dataclass
class Place:
    services: MemoryServices
    runs: Runs
    told: Told
    monkeypatch: pytest.MonkeyPatch
    config: Config = CONFIG

    def given(self, data: SeriesArrays, name: str = "newer") -> None:
        """What preparation finds."""
        made = InMemory(data, self.services.store.root, name)
        prepared = SimpleNamespace(
            arrays=made.arrays, root=made.root, hash=name, manifest=SimpleNamespace(snapshot=None)
        )
        self.monkeypatch.setattr(job, "run_prepare", lambda *given: prepared)

    def update(self, *, dry_run: bool = False) -> UpdateReport:
        return update_champion(self.config, self.services, Notes(), NOW, dry_run=dry_run)

    @property
    def registry(self) -> Registry:
        return self.services.registry()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    told, runs = Told(), Runs()
    store = Store.open(str(tmp_path / "store"))
    services = replace(MemoryServices(CONFIG, tmp_path, store, "memory://"), events=told)
    artifact.save(fitted(), tmp_path / "first")
    version = services.registry().add_version(tmp_path / "first", "run", "prep")
    crown(services, version)
    monkeypatch.setattr(StudyRuns, "connect", lambda *given: runs)
    monkeypatch.setattr(promote, "check_parity", lambda *given: ParityResult(0.0, 8, True))
    made = Place(services, runs, told, monkeypatch)
    made.given(until(900, 1000, 1400))
    return made


def test_an_update_becomes_champion_with_who_when_why(place: Place) -> None:
    report = place.update()
    assert (report.outcome, report.news.steps, report.before.version) == ("promoted", 880, 1)
    champion = place.registry.champion()
    assert champion is not None and champion == report.version and champion.version == 2
    entry = place.registry.history()[-1]
    assert (entry.action, entry.champion, entry.previous) == ("promote", 2, 1)
    assert (entry.by, entry.at) == ("ann", "2024-05-01T00:00:00.000+00:00")
    assert entry.reason == report.reason
    assert "update of version 1 (ar)" in report.reason and "not worse than" in report.reason
    assert entry.decision is not None
    record = place.registry.decision(entry.decision)
    assert (record["version"], record["champion_version"]) == (2, 1)
    assert (record["digest"], record["prepared_hash"]) == (champion.digest, "newer")
    assert record["parity"]["passed"] is True
    assert [kind for kind, _ in place.told.seen] == ["model-selected"]
    (about,) = place.runs.started
    assert (about["updated_from"], about["new_steps"]) == ("1", "880")
    assert place.runs.ended == ["FINISHED"]


def test_what_was_judged_is_promoted_and_has_not_seen_the_test_span(place: Place) -> None:
    report = place.update()
    assert report.version is not None
    promoted = load_version(place.services, report.version).fitted
    data = until(900, 1000, 1400)
    np.testing.assert_array_equal(seen_positions(promoted, data), [1000, 1000])
    own = forecaster("ar").update(fitted(), data, Compute(seed=CONFIG.tune.seed))
    np.testing.assert_array_equal(promoted.state()[1]["values"], own.state()[1]["values"])


def test_an_update_of_the_bands_leaves_the_maps_as_they_were(place: Place) -> None:
    gate = CONFIG.gate.model_copy(update={"update_learns": "bands", "update_margin": 0.5})
    place.config = CONFIG.model_copy(update={"gate": gate})
    report = place.update()
    assert report.version is not None
    promoted = load_version(place.services, report.version).fitted
    data = until(900, 1000, 1400)
    np.testing.assert_array_equal(seen_positions(promoted, data), [1000, 1000])
    mine, before = promoted.state()[1], fitted().state()[1]
    np.testing.assert_array_equal(mine["values"], before["values"])
    own = forecaster("ar").follow(fitted(), data).state()[1]
    np.testing.assert_array_equal(mine["band_pooled"], own["band_pooled"])
    assert (mine["band_pooled"] != before["band_pooled"]).any()


def test_updating_again_finds_nothing_new(place: Place) -> None:
    place.update()
    history = place.registry.history()
    again = place.update()
    assert again.outcome == "nothing_new"
    assert "nothing new: version 2 (ar) has seen everything before 2020-" in again.reason
    assert place.registry.history() == history
    assert len(place.runs.started) == 1


def test_less_than_a_horizon_waits(place: Place) -> None:
    place.given(until(400, 565, 705))
    report = place.update()
    assert (report.outcome, report.news.steps) == ("waiting", 10)
    assert "one horizon of them (6)" in report.reason
    assert len(place.registry.history()) == 1


def test_a_dry_run_judges_and_changes_nothing(place: Place) -> None:
    report = place.update(dry_run=True)
    assert report.outcome == "would_promote"
    assert report.told.startswith("would be promoted: update of version 1 (ar)")
    assert len(place.registry.versions()) == len(place.registry.history()) == 1
    assert len(place.registry.decisions()) == 1
    assert (place.runs.started, place.told.seen) == ([], [])


def spoiled(fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
    """An update that doubles every forecast."""
    found: Any = forecaster("ar").update(fitted, data, compute)
    maps = [replace(one, values=2 * one.values + 1) for one in found.maps]
    changed: Fitted = replace(found, maps=maps)
    return changed


def test_a_worse_update_is_refused_and_registered_once(place: Place) -> None:
    place.monkeypatch.setattr(job, "updater", lambda kind: SimpleNamespace(update=spoiled))
    report = place.update()
    assert report.outcome == "refused"
    assert "it may be worse than version 1 (ar)" in report.reason
    assert report.version is not None and report.version.version == 2
    champion = place.registry.champion()
    assert champion is not None and champion.version == 1
    refusals = [r for r in place.registry.decisions().values() if not r["accepted"]]
    assert [r["version"] for r in refusals] == [2]
    assert place.told.seen == []
    assert place.update().version == report.version
    assert len(place.runs.started) == 1


def test_somebody_elses_promotion_wins(place: Place, tmp_path: Path) -> None:

    def meanwhile(*given: Any) -> Any:
        artifact.save(fit_fully("seasonal_naive", until(400, 560, 700), task_of(CONFIG)),
                      tmp_path / "other")  # fmt: skip
        crown(place.services, place.registry.add_version(tmp_path / "other", "r", "prep"))
        return judge_all(*given)

    place.monkeypatch.setattr(job, "judge_all", meanwhile)
    with pytest.raises(Conflict, match="promoted version 2 meanwhile"):
        place.update()
    champion = place.registry.champion()
    assert champion is not None and champion.version == 2


def test_a_champion_of_another_task_is_a_configuration_error(place: Place) -> None:
    place.config = parse_config({**CONFIG.model_dump(), "task": {"horizon": 7}})
    with pytest.raises(ConfigError, match="horizon 7 against 6"):
        place.update()


def test_without_a_champion_there_is_nothing_to_update(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "empty"))
    services = MemoryServices(CONFIG, tmp_path, store, "memory://")
    with pytest.raises(Unavailable, match="no champion yet"):
        update_champion(CONFIG, services, Notes(), NOW)


@pytest.mark.parametrize(
    ("outcome", "code"), [("promoted", 0), ("nothing_new", 0), ("waiting", 0), ("refused", 3)]
)
def test_the_exit_code_says_whether_the_gate_refused(
    outcome: Any, code: int, place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (version,) = place.registry.versions()
    report = UpdateReport(outcome, "because", version, job.NewRows(1, 1, 0))
    place.monkeypatch.setattr(job, "run", lambda *given, **named: report)
    place.monkeypatch.setattr(job, "load_config", lambda *given: CONFIG)
    place.monkeypatch.setattr(job, "interrupt_on_sigterm", lambda: None)
    assert job.main(["--config", "x.yaml"]) == code
    assert capsys.readouterr().out == "because\n"
