"""The registry against a small in-memory MLflow; the real one is in the integration test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from flts_ray.champion import ChampionReader, ChampionRef
from flts_ray.errors import ArtifactError, Conflict, DataError, GateRefused, Unavailable
from flts_ray.models import artifact, onnx_fitted
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.lean import load_lean
from flts_ray.models.onnx_fitted import FittedOnnx
from flts_ray.registry import Registry
from flts_ray.store import Store
from flts_ray.tracking import AlreadyThere, Missing, TrackingClient
from tests.synthetic import seasonal_set

NOW = datetime(2024, 5, 1, tzinfo=UTC)
YES = {"accepted": True, "reason": "beats both"}


class Page(list[Any]):
    token: str | None = None


@dataclass
class MemoryMlflow:
    """The calls of MlflowClient that a registry makes; `after` runs once an alias was set."""

    uri: str = "memory://"
    names: set[str] = field(default_factory=set)
    versions: list[SimpleNamespace] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    after: Callable[[], None] = lambda: None

    def create_registered_model(self, name: str) -> None:
        if name in self.names:
            raise AlreadyThere(name)
        self.names.add(name)

    def create_model_version(self, name: str, source: str, **given: Any) -> SimpleNamespace:
        given.pop("await_creation_for")
        number = str(len(self.versions) + 1)
        made = SimpleNamespace(
            name=name, version=number, source=source, creation_timestamp=1_700_000_000_500, **given
        )
        self.versions.append(made)
        return made

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        for known in self.versions:
            if known.version == version:
                return known
        raise Missing(f"version {version}")

    def search_model_versions(self, text: str, max_results: int, page_token: str | None) -> Page:
        return Page(reversed(self.versions))

    def get_registered_model(self, name: str) -> SimpleNamespace:
        if name not in self.names:
            raise Missing(name)
        return SimpleNamespace(aliases=dict(self.aliases))

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.get_model_version(name, version).tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.get_model_version(name, version)
        self.aliases[alias] = version
        self.after()

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        del self.aliases[alias]


@pytest.fixture
def mlflow() -> MemoryMlflow:
    return MemoryMlflow()


@pytest.fixture
def registry(tmp_path: Path, mlflow: MemoryMlflow) -> Registry:
    return _registry(tmp_path, mlflow)


def _registry(tmp_path: Path, mlflow: MemoryMlflow, by: str = "ann") -> Registry:
    store = Store.open(str(tmp_path / "store"))
    return Registry(cast(TrackingClient, mlflow), store, "load", by)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "naive"
    fitted = fit_fully("seasonal_naive", seasonal_set(length=200), Task(4, (0.1, 0.5, 0.9)))
    artifact.save(fitted, folder)
    return folder


def _add(registry: Registry, model: Path, count: int) -> None:
    for i in range(count):
        registry.add_version(model, f"run{i}", "prep")


def test_a_version_carries_what_serving_needs_and_its_files_are_stored(
    registry: Registry, mlflow: MemoryMlflow, model: Path, tmp_path: Path
) -> None:
    made = registry.add_version(model, "run0", "prep", {"note": "first"})
    digest = artifact.digest(model)
    assert (made.version, made.kind, made.digest) == (1, "seasonal_naive", digest)
    assert (made.run_id, made.prepared_hash) == ("run0", "prep")
    assert made.artifact_key == f"models/load/{digest}"
    assert made.created_at == datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)
    stored = tmp_path / "store" / made.artifact_key
    assert (stored / artifact.MODEL).read_bytes() == (model / artifact.MODEL).read_bytes()
    assert mlflow.versions[0].source == "runs:/run0/model"
    assert mlflow.versions[0].tags["note"] == "first"
    assert registry.version(1) == made


def test_the_same_model_of_the_same_run_is_registered_once(registry: Registry, model: Path) -> None:
    first = registry.add_version(model, "run0", "prep")
    assert registry.add_version(model, "run0", "prep") == first
    assert registry.add_version(model, "run1", "prep").version == 2
    assert [version.version for version in registry.versions()] == [1, 2]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "gru"
    quick = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64}
    artifact.save(
        fit_fully("gru", seasonal_set(length=200), Task(4, (0.1, 0.5, 0.9)), quick), folder
    )
    return folder


def test_a_network_is_stored_with_its_export(
    registry: Registry, mlflow: MemoryMlflow, network: Path, tmp_path: Path
) -> None:
    made = registry.add_version(network, "run0", "prep")
    assert made.digest == artifact.digest(network)
    tags = mlflow.versions[0].tags
    stored = tmp_path / "store" / tags["lean_key"]
    assert artifact.digest(stored) == tags["lean_digest"] == made.lean_digest != made.digest
    assert isinstance(load_lean(stored), FittedOnnx)
    ref = reference(mlflow, 1)
    assert (ref.digest, ref.lean.digest) == (made.digest, made.lean_digest)
    assert ref.lean.artifact_key == tags["lean_key"]


def test_a_model_without_networks_has_no_export(
    registry: Registry, mlflow: MemoryMlflow, model: Path
) -> None:
    made = registry.add_version(model, "run0", "prep")
    assert made.lean_digest == ""
    assert reference(mlflow, 1).lean == reference(mlflow, 1)
    assert registry.export(made, model) == made


def test_a_version_without_an_export_gets_one(
    registry: Registry, mlflow: MemoryMlflow, network: Path
) -> None:
    made = registry.add_version(network, "run0", "prep")
    for name in ("lean_key", "lean_digest"):
        del mlflow.versions[0].tags[name]
    older = registry.version(1)
    assert older.lean_digest == ""
    assert registry.export(older, network) == made == registry.version(1)


def test_a_network_that_cannot_be_exported_is_registered_without(
    registry: Registry, mlflow: MemoryMlflow, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_fitted, "TOLERANCE", 0.0)
    with capture_logs() as logs:
        made = registry.add_version(network, "run0", "prep")
    assert made.lean_digest == ""
    assert [log["event"] for log in logs] == ["export_failed"]
    assert "golden windows" in logs[0]["problem"]


def reference(mlflow: MemoryMlflow, version: int) -> ChampionRef:
    """What a replica reads of a version."""
    found = mlflow.versions[version - 1]
    tags = [{"key": key, "value": value} for key, value in found.tags.items()]
    answer = {"model_version": {"version": str(version), "name": "load", "tags": tags}}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    reader = ChampionReader("http://mlflow", "", "load", Path(), transport=transport)
    ref = reader.current()
    assert ref is not None
    return ref


def test_a_damaged_model_is_not_registered(
    registry: Registry, mlflow: MemoryMlflow, model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / artifact.ARRAYS).write_bytes((model / artifact.ARRAYS).read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=artifact.ARRAYS):
        registry.add_version(damaged, "run0", "prep")
    assert mlflow.versions == []


def test_a_version_registered_by_other_means_is_left_out_and_refused(
    registry: Registry, mlflow: MemoryMlflow, model: Path
) -> None:
    mlflow.create_model_version("load", "runs:/x/y", run_id="x", tags={}, await_creation_for=0)
    _add(registry, model, 1)
    assert [version.version for version in registry.versions()] == [2]
    with pytest.raises(ArtifactError, match="version 1 was not registered by flts"):
        registry.version(1)


def test_an_unknown_version_is_a_data_error(registry: Registry, model: Path) -> None:
    _add(registry, model, 1)
    with pytest.raises(DataError, match="no version 9"):
        registry.promote(9, YES, None, NOW)
    with pytest.raises(DataError, match="no version 9"):
        registry.set_challenger(9)
    assert registry.history() == []


def test_promotion_and_rollback_move_the_aliases(
    registry: Registry, mlflow: MemoryMlflow, model: Path
) -> None:
    _add(registry, model, 3)
    assert registry.champion() is None
    registry.promote(1, YES, None, NOW)
    registry.set_challenger(2, NOW)
    assert mlflow.aliases == {"champion": "1", "challenger": "2"}
    registry.promote(2, YES, 1, NOW)
    assert mlflow.aliases == {"champion": "2", "previous": "1"}
    registry.rollback(NOW, "worse at night")
    assert mlflow.aliases == {"champion": "1", "previous": "2"}
    champion = registry.champion()
    assert champion is not None
    assert champion.version == 1
    assert registry.challenger() is None
    actions = [(e.n, e.action, e.champion, e.reason, e.by) for e in registry.history()]
    assert actions == [
        (1, "promote", 1, "beats both", "ann"),
        (2, "challenge", 1, None, "ann"),
        (3, "promote", 2, "beats both", "ann"),
        (4, "rollback", 1, "worse at night", "ann"),
    ]


def test_the_entry_points_to_the_decision_it_was_made_on(registry: Registry, model: Path) -> None:
    _add(registry, model, 1)
    entry = registry.promote(1, YES, None, NOW)
    assert entry.decision is not None
    assert registry.decision(entry.decision) == YES


def test_a_refused_decision_is_kept_but_promotes_nothing(
    registry: Registry, model: Path, tmp_path: Path
) -> None:
    _add(registry, model, 1)
    refused = {"accepted": False, "reason": "no better than seasonal_naive"}
    with pytest.raises(GateRefused, match="no better than seasonal_naive"):
        registry.promote(1, refused, None, NOW)
    assert registry.champion() is None
    assert registry.decision(registry.record_decision(refused)) == refused
    assert len(list((tmp_path / "store/registry/load/decisions").iterdir())) == 1


def test_a_promotion_judged_against_an_older_champion_loses(
    registry: Registry, mlflow: MemoryMlflow, model: Path, tmp_path: Path
) -> None:
    _add(registry, model, 3)
    other = _registry(tmp_path, mlflow, by="bob")
    other.promote(2, YES, None, NOW)
    with pytest.raises(Conflict, match=r"somebody promoted version 2 meanwhile .*by bob"):
        registry.promote(3, YES, None, NOW)
    assert mlflow.aliases == {"champion": "2"}


def test_rollback_without_a_previous_champion_is_unavailable(
    registry: Registry, model: Path
) -> None:
    _add(registry, model, 1)
    registry.promote(1, YES, None, NOW)
    with pytest.raises(Unavailable):
        registry.rollback(NOW, "x")


@pytest.mark.parametrize("method", ["champion", "challenger", "history"])
def test_reading_repairs_aliases_that_do_not_follow_the_log(
    registry: Registry, mlflow: MemoryMlflow, model: Path, method: str
) -> None:
    _add(registry, model, 3)
    registry.promote(1, YES, None, NOW)
    registry.promote(2, YES, 1, NOW)
    mlflow.aliases = {"champion": "3", "challenger": "1"}
    getattr(registry, method)()
    assert mlflow.aliases == {"champion": "2", "previous": "1"}
    assert registry.repair() == []


def test_aliases_overwritten_by_a_slower_promotion_are_set_again(
    registry: Registry, mlflow: MemoryMlflow, model: Path, tmp_path: Path
) -> None:
    _add(registry, model, 3)
    registry.promote(1, YES, None, NOW)
    other = _registry(tmp_path, mlflow, by="bob")

    def overtake() -> None:
        mlflow.after = lambda: None
        other.promote(3, YES, 2, NOW)
        mlflow.aliases = {"champion": "2", "previous": "1"}

    mlflow.after = overtake
    registry.promote(2, YES, 1, NOW)
    assert mlflow.aliases == {"champion": "3", "previous": "2"}


def test_naming_a_challenger_survives_a_promotion_at_the_same_time(
    registry: Registry, mlflow: MemoryMlflow, model: Path, tmp_path: Path
) -> None:
    _add(registry, model, 3)
    registry.promote(1, YES, None, NOW)
    overtaken = _registry(tmp_path, mlflow)
    log = overtaken._log
    stale = log.newest()
    answers = iter([stale])
    newest = log.newest
    log.newest = lambda: next(answers, None) or newest()  # type: ignore[method-assign]
    registry.promote(2, YES, 1, NOW)
    entry = overtaken.set_challenger(3, NOW)
    assert (entry.n, entry.champion, entry.challenger) == (3, 2, 3)


def test_without_entries_aliases_set_by_hand_are_left_alone(
    registry: Registry, mlflow: MemoryMlflow, model: Path
) -> None:
    _add(registry, model, 1)
    mlflow.aliases = {"champion": "1"}
    assert registry.champion() is None
    assert mlflow.aliases == {"champion": "1"}


def test_a_log_that_names_what_mlflow_lost_is_an_artifact_error(
    registry: Registry, mlflow: MemoryMlflow, model: Path
) -> None:
    _add(registry, model, 1)
    registry.promote(1, YES, None, NOW)
    mlflow.names.clear()
    with pytest.raises(ArtifactError, match="promotion log of load"):
        registry.champion()


def test_a_version_remembers_the_snapshot_it_was_trained_on(
    registry: Registry, model: Path
) -> None:
    assert registry.add_version(model, "run0", "prep").snapshot == ""
    tags = {"snapshot": "load/0123456789abcdef/7"}
    assert registry.add_version(model, "run1", "prep", tags).snapshot == tags["snapshot"]
