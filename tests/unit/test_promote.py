from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from flts_ray import promote
from flts_ray.config import Config, SplitConfig, parse_config
from flts_ray.errors import (
    ArtifactError,
    ConfigError,
    Conflict,
    DataError,
    GateRefused,
    Unavailable,
)
from flts_ray.evaluate.finalists import Judged
from flts_ray.evaluate.leakage import AuditResult
from flts_ray.events import Kind, message_of
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import PreparedSet
from flts_ray.prepare.run import prepare
from flts_ray.promote import (
    conclude,
    decide,
    judge_together,
    load_version,
    promote_version,
    roll_back,
    seen_test_span,
    task_of,
    verdict_on,
)
from flts_ray.registry import ModelVersion, Registry
from flts_ray.serve.parity import ParityResult
from flts_ray.services import Services
from flts_ray.store import Store
from flts_ray.tracking import TrackingClient
from flts_ray.tune.progress import StudyView
from tests.raw_files import load_config, write_load
from tests.served import true_calendar
from tests.synthetic import seasonal_set
from tests.unit.test_registry import MemoryMlflow

NOW = datetime(2024, 5, 1, tzinfo=UTC)
FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("seasonal_naive", {}),
    "poor": ("ar", {"ridge": 4.0}),
    "good": ("ar", {}),
    "worse": ("seasonal_naive", {"season": 7}),
}


@dataclass(frozen=True)
class MemoryServices(Services):
    """Services whose registry asks a tracking server in memory."""

    mlflow: MemoryMlflow = field(default_factory=MemoryMlflow)

    def registry(self) -> Registry:
        return Registry(cast(TrackingClient, self.mlflow), self.store, self.config.name, "ann")


@dataclass
class Told:
    """Events that are remembered."""

    seen: list[tuple[Kind, Mapping[str, Any]]] = field(default_factory=list)

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        self.seen.append((kind, data))


@dataclass
class Notes:
    """A narrator that remembers."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    stages: list[tuple[str, int, int]] = field(default_factory=list)

    def step(self, title: str, detail: str = "") -> None:
        self.steps.append((title, detail))

    def stage(self, name: str, done: int, total: int) -> None:
        self.stages.append((name, done, total))

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        return nullcontext(lambda view: None)


@dataclass(frozen=True)
class InMemory:
    """A prepared set that was never stored."""

    data: SeriesArrays
    root: str
    hash: str = "prep"

    def arrays(self) -> SeriesArrays:
        return self.data

    def sample(self, most: int) -> SeriesArrays:
        return self.data.take(range(min(most, self.data.n_series)))


@pytest.fixture(scope="module")
def data() -> SeriesArrays:
    return true_calendar(seasonal_set(n_series=2, length=900, noise=0.2))


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config({"name": "load", "data": {"path": "x.csv"}, "task": {"horizon": 6}})


@pytest.fixture(scope="module")
def models(
    data: SeriesArrays, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, params) in FITS.items():
        artifact.save(fit_fully(kind, data, task_of(config), params), folder / name)
    return {name: folder / name for name in FITS}


@pytest.fixture
def services(tmp_path: Path, config: Config) -> MemoryServices:
    return MemoryServices(config, tmp_path, Store.open(str(tmp_path / "store")), "memory://")


@pytest.fixture
def prepared(data: SeriesArrays, tmp_path: Path) -> PreparedSet:
    return cast(PreparedSet, InMemory(data, str(tmp_path / "store")))


@pytest.fixture(autouse=True)
def parity(monkeypatch: pytest.MonkeyPatch) -> list[ParityResult]:
    """What the parity check answers; the real one is tested where it is defined."""
    answers = [ParityResult(0.0, 8, True)]
    monkeypatch.setattr(promote, "check_parity", lambda *given: answers[-1])
    return answers


def add(services: Services, folder: Path, run: str = "run", prep: str = "prep") -> ModelVersion:
    return services.registry().add_version(folder, run, prep)


def crown(services: Services, version: ModelVersion) -> None:
    registry = services.registry()
    before = registry.champion()
    yes = {"accepted": True, "reason": "by hand"}
    registry.promote(version.version, yes, before.version if before else None, NOW)


def judged_pair(
    services: MemoryServices, data: SeriesArrays, version: ModelVersion, models: dict[str, Path]
) -> tuple[Judged, Judged | None, tuple[Judged, ...]]:
    naive = load_version(services, add(services, models["naive"]))
    mine = load_version(services, version)
    judged, champion = judge_together(services.config, services, data, [mine, naive], Notes())
    return judged[0], champion, judged


def test_a_fetched_version_is_the_one_that_was_registered(
    services: MemoryServices, models: dict[str, Path]
) -> None:
    version = add(services, models["good"])
    fetched = load_version(services, version)
    assert (fetched.name, fetched.version) == ("version 1 (ar)", 1)
    assert fetched.digest == version.digest == artifact.digest(models["good"])
    (fetched.folder / artifact.ARRAYS).write_bytes(b"damaged on the way")
    assert load_version(services, version).digest == version.digest
    with pytest.raises(ArtifactError, match=r"registered as"):
        load_version(services, replace(version, digest="0" * 64))


def test_without_a_champion_only_the_finalists_are_judged(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path]
) -> None:
    notes, finalist = Notes(), load_version(services, add(services, models["good"]))
    judged, champion = judge_together(services.config, services, data, [finalist], notes)
    assert ([one.name for one in judged], champion) == (["version 1 (ar)"], None)
    assert notes.steps[0][1].startswith("1 models on")


def test_the_champion_is_judged_on_the_same_windows(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path]
) -> None:
    crown(services, add(services, models["poor"]))
    candidate, champion, judged = judged_pair(services, data, add(services, models["good"]), models)
    assert champion is not None
    assert champion.finalist.version == 1
    assert len(judged) == 2
    np.testing.assert_array_equal(champion.scored.origin_us, candidate.scored.origin_us)


def test_a_champion_of_another_task_is_a_configuration_error(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path]
) -> None:
    finalist = load_version(services, add(services, models["good"]))
    crown(services, add(services, models["poor"]))
    other = replace(data, contract=replace(data.contract, time_zone="Europe/Berlin"))
    with pytest.raises(ConfigError, match=r"version 2 \(ar\) cannot be judged .* time_zone"):
        judge_together(services.config, services, other, [finalist], Notes())


def test_an_accepted_version_becomes_champion_and_its_decision_is_kept(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path]
) -> None:
    version, notes = add(services, models["good"]), Notes()
    made = promote_version(services.config, services, prepared, 1, NOW, notes)
    registry = services.registry()
    assert (made.version, registry.champion()) == (1, version)
    assert "is accepted: it beats the baseline seasonal_naive" in made.reason
    (record,) = registry.decisions().values()
    assert record["accepted"] is True
    assert record["reason"] == made.reason == registry.history()[-1].reason
    assert (record["version"], record["digest"]) == (1, version.digest)
    assert (record["champion_version"], record["prepared_hash"]) == (None, "prep")
    assert record["parity"] == {
        "passed": True, "reason": None, "windows": 8, "max_relative_difference": 0.0,
    }  # fmt: skip
    assert [title for title, _ in notes.steps] == ["Judge", "Parity", "Promoted"]


def test_a_promotion_by_hand_is_told_and_a_refusal_is_not(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path]
) -> None:
    told = Told()
    services = replace(services, events=told)
    config = services.config
    add(services, models["poor"])
    promote_version(config, services, prepared, 1, NOW, Notes())
    add(services, models["good"], "run-2")
    promote_version(config, services, prepared, 2, NOW, Notes())
    add(services, models["worse"])
    with pytest.raises(GateRefused):
        promote_version(config, services, prepared, 3, NOW, Notes())
    assert [kind for kind, _ in told.seen] == ["model-selected"] * 2
    first, second = (dict(data) for _, data in told.seen)
    assert (first["version"], first["previous"]) == (1, None)
    assert 0 < second.pop("score") < first["score"]
    assert second == {
        "run_id": "run-2", "model_uri": "models:/load/2", "model_type": "ar",
        "config_hash": config.digest(), "version": 2, "previous": 1, "entry": 2,
    }  # fmt: skip


def test_the_champion_cannot_be_promoted_again_and_that_is_no_refusal(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path]
) -> None:
    crown(services, add(services, models["good"]))
    made = promote_version(services.config, services, prepared, 1, NOW, Notes())
    assert made.reason == "version 1 (ar) is champion already"
    assert len(services.registry().history()) == 1
    assert len(services.registry().decisions()) == 1


def test_a_version_without_an_export_gets_one(
    services: MemoryServices, prepared: PreparedSet, data: SeriesArrays, tmp_path: Path
) -> None:
    quick = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64, "refit_epochs": 0}
    artifact.save(fit_fully("gru", data, task_of(services.config), quick), tmp_path / "gru")
    made = add(services, tmp_path / "gru")
    crown(services, made)
    for name in ("lean_key", "lean_digest"):
        del services.mlflow.versions[0].tags[name]
    assert services.registry().version(1).lean_digest == ""
    promote_version(services.config, services, prepared, 1, NOW, Notes())
    assert services.registry().version(1) == made
    assert made.lean_digest


def test_an_unknown_version_is_named(services: MemoryServices, prepared: PreparedSet) -> None:
    with pytest.raises(DataError, match="no version 7"):
        promote_version(services.config, services, prepared, 7, NOW, Notes())


def test_what_beats_only_the_baseline_is_refused_and_named_challenger(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path]
) -> None:
    crown(services, add(services, models["good"]))
    poor = add(services, models["poor"])
    with pytest.raises(GateRefused, match=r"does not beat the champion version 1 \(ar\)"):
        promote_version(services.config, services, prepared, 2, NOW, Notes())
    registry = services.registry()
    assert registry.challenger() == poor
    assert registry.history()[-1].champion == 1
    refusal = list(registry.decisions().values())[-1]
    assert (refusal["accepted"], refusal["version"]) == (False, 2)
    assert (refusal["champion_version"], refusal["parity"]) == (1, None)
    entries = len(registry.history())
    with pytest.raises(GateRefused):
        promote_version(services.config, services, prepared, 2, NOW + timedelta(1), Notes())
    assert len(registry.history()) == entries
    assert len(registry.decisions()) == 3


def test_what_does_not_beat_the_baseline_is_no_challenger(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path], data: SeriesArrays
) -> None:
    crown(services, add(services, models["good"]))
    worse = add(services, models["worse"])
    with pytest.raises(GateRefused, match="is refused"):
        promote_version(services.config, services, prepared, worse.version, NOW, Notes())
    assert services.registry().challenger() is None
    assert not list(services.registry().decisions().values())[-1]["accepted"]


def test_a_model_that_fails_the_audit_is_neither_champion_nor_challenger(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path], config: Config
) -> None:
    crown(services, add(services, models["good"]))
    version = add(services, models["poor"])
    candidate, champion, judged = judged_pair(services, data, version, models)
    leaking = replace(candidate, audit=AuditResult(False, 32, "series s0: the forecast changes"))
    decision = decide(config, data, leaking, champion, judged, NOW)
    assert decision.comparisons[0].beaten
    verdict = verdict_on(config, data, leaking, champion, decision)
    assert not verdict.may_challenge
    assert conclude(services.registry(), verdict, version, NOW, Notes()) is None
    assert services.registry().challenger() is None
    assert "leakage audit" in list(services.registry().decisions().values())[-1]["reason"]


@pytest.mark.parametrize("difference", [0.5, math.inf])
def test_a_parity_failure_is_the_reason_of_a_refusal(
    services: MemoryServices,
    prepared: PreparedSet,
    models: dict[str, Path],
    parity: list[ParityResult],
    difference: float,
) -> None:
    add(services, models["good"])
    parity.append(ParityResult(difference, 8, False, "HTTP status 500: no luck"))
    with pytest.raises(GateRefused, match="is refused: HTTP status 500: no luck"):
        promote_version(services.config, services, prepared, 1, NOW, Notes())
    registry = services.registry()
    assert (registry.champion(), registry.challenger()) == (None, None)
    (record,) = registry.decisions().values()
    assert record["accepted"] is False
    assert record["reason"].endswith("is refused: HTTP status 500: no luck")
    assert record["parity"]["reason"] == "HTTP status 500: no luck"
    expected = difference if math.isfinite(difference) else None
    assert record["parity"]["max_relative_difference"] == expected


def test_of_two_promotions_at_once_one_wins(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path], config: Config
) -> None:
    crown(services, add(services, models["poor"], "run0"))
    versions = [add(services, models["good"], run) for run in ("run1", "run2")]
    candidate, champion, judged = judged_pair(services, data, versions[0], models)
    decision = decide(config, data, candidate, champion, judged, NOW)
    verdict = verdict_on(config, data, candidate, champion, decision)
    assert verdict.expected == 1
    barrier, won, lost = threading.Barrier(2), list[bool](), list[str]()

    def run(version: ModelVersion) -> None:
        barrier.wait()
        try:
            entry = conclude(services.registry(), verdict, version, NOW, Notes())
            won.append(entry is not None)
        except Conflict as error:
            lost.append(str(error))

    threads = [threading.Thread(target=run, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = services.registry()
    champion_now = registry.champion()
    assert champion_now is not None
    assert (won, len(lost)) == ([True], 1)
    assert f"promoted version {champion_now.version} meanwhile" in lost[0]
    assert [entry.champion for entry in registry.history()] == [1, champion_now.version]


def prepared_twice(tmp_path: Path) -> tuple[PreparedSet, PreparedSet]:
    """The same rows with a short and with a long test span."""
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    long = config.model_copy(update={"split": SplitConfig(test=0.4)})
    return prepare(config), prepare(long)


def test_a_version_that_has_seen_the_test_span_is_refused(tmp_path: Path) -> None:
    short, long = prepared_twice(tmp_path)
    version = ModelVersion(1, "ar", "d", "r", short.hash, "k", NOW)
    assert seen_test_span(version, short, short.arrays()) is None
    objection = seen_test_span(version, long, long.arrays())
    assert objection is not None
    assert "of series s" in objection
    assert "whose test span begins at 2024-03-31T" in objection
    assert seen_test_span(replace(version, prepared_hash=long.hash), short, short.arrays()) is None


def test_a_version_tells_itself_what_it_has_seen(
    services: MemoryServices, data: SeriesArrays, models: dict[str, Path], tmp_path: Path
) -> None:
    add(services, models["good"], prep="f" * 64)
    early = replace(data, valid_end=data.valid_end - 1)
    prepared = cast(PreparedSet, InMemory(early, str(tmp_path / "store")))
    with pytest.raises(GateRefused, match=r"fitted on values up to 2020-.* of series s0, whose"):
        promote_version(services.config, services, prepared, 1, NOW, Notes())
    gone = cast(PreparedSet, InMemory(data, str(tmp_path / "store")))
    assert promote_version(services.config, services, gone, 1, NOW, Notes()).version == 1


def test_a_version_that_does_not_tell_and_whose_data_are_gone_is_refused_with_a_record(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path], tmp_path: Path
) -> None:
    good: Any = artifact.load(models["good"])
    artifact.save(replace(good, memory=None), tmp_path / "silent")
    add(services, tmp_path / "silent", prep="f" * 64)
    with pytest.raises(GateRefused, match=r"which cannot be read, so .* train on the present"):
        promote_version(services.config, services, prepared, 1, NOW, Notes())
    (record,) = services.registry().decisions().values()
    assert record["accepted"] is False
    assert record["parity"] is None
    assert services.registry().champion() is None


def test_rollbacks_are_told_and_each_is_an_event_of_its_own(
    services: MemoryServices, prepared: PreparedSet, models: dict[str, Path]
) -> None:
    told = Told()
    services = replace(services, events=told)
    add(services, models["poor"])
    promote_version(services.config, services, prepared, 1, NOW, Notes())
    add(services, models["good"], "run-2")
    promote_version(services.config, services, prepared, 2, NOW, Notes())
    for _ in range(2):
        roll_back(services, NOW, "bad nights")
    seen = [dict(data) for kind, data in told.seen if kind == "model-selected"]
    assert [(one["version"], one["previous"]) for one in seen] == [
        (1, None),
        (2, 1),
        (1, 2),
        (2, 1),
    ]
    assert [one["score"] is None for one in seen] == [False, False, True, True]
    assert seen[2]["model_uri"] == "models:/load/1" and seen[3]["run_id"] == "run-2"
    messages = [message_of("model-selected", one, "/flts", "load", NOW) for one in seen]
    assert len({dict(message.headers)["ce_id"] for message in messages}) == 4


def test_a_rollback_that_cannot_be_is_not_told(services: MemoryServices) -> None:
    told = Told()
    with pytest.raises(Unavailable):
        roll_back(replace(services, events=told), NOW, "bad nights")
    assert told.seen == []
