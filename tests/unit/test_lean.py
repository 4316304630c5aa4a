"""Lean artifacts: what replicas load, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from flts_ray.errors import ArtifactError
from flts_ray.models import artifact, onnx_export, onnx_graph
from flts_ray.models.base import Fitted, fit_fully
from flts_ray.models.blend import Blend, WeightTable, blend_of
from flts_ray.models.lean import lean_copy, load_lean
from flts_ray.models.onnx_fitted import FittedOnnx
from tests.unit.test_onnx_export import TASK, data, furthest, trained, windows


@cache
def blended() -> Fitted:
    linear = fit_fully("ar", data(), TASK)
    members = [("ar", linear), ("gru", trained("gru")), ("own", trained("lstm, one a series"))]
    rows = np.zeros(len(data().ids), np.int64)
    shift = np.full((6, 5), 0.01)
    return blend_of(members, WeightTable.of(np.array([[0.4, 0.4, 0.2]]), rows, shift))


MODELS: dict[str, Callable[[], Fitted]] = {
    "gru": lambda: trained("gru"),
    "lstm": lambda: trained("lstm"),
    "blend": blended,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full and a lean artifact of every model."""
    root = tmp_path_factory.mktemp("models")
    for name, made in MODELS.items():
        artifact.save(made(), root / name)
        with lean_copy(root / name) as lean:
            artifact.save(load_lean(lean), root / f"{name}-lean")
    return root


@pytest.mark.parametrize("name", MODELS)
def test_a_lean_model_forecasts_what_the_full_one_does(name: str, folders: Path) -> None:
    full, light = artifact.load(folders / name), load_lean(folders / f"{name}-lean")
    assert light.spec == full.spec
    assert light.stats.ids == full.stats.ids
    assert furthest(light, full, windows(full)) < 2e-6


def test_networks_are_exported_and_stored_without_their_weights(folders: Path) -> None:
    light = load_lean(folders / "gru-lean")
    assert isinstance(light, FittedOnnx)
    assert not [name for name in light.state()[1] if name.startswith("net.")]
    members = load_lean(folders / "blend-lean")
    assert isinstance(members, Blend)
    assert [type(one) is FittedOnnx for one in members.members] == [False, True, True]


def test_a_model_without_networks_is_lean_as_it_is(tmp_path: Path) -> None:
    linear = fit_fully("ar", data(), TASK)
    digest = artifact.save(linear, tmp_path / "ar")
    with lean_copy(tmp_path / "ar") as lean:
        assert lean == tmp_path / "ar"
    assert artifact.save(load_lean(tmp_path / "ar"), tmp_path / "again") == digest


def test_the_same_model_has_the_same_lean_artifact(folders: Path) -> None:
    with lean_copy(folders / "blend") as lean:
        assert artifact.digest(lean) == artifact.digest(folders / "blend-lean")
        place = lean
    assert not place.exists()


def test_an_artifact_without_an_export_is_served_as_it_was_trained(folders: Path) -> None:
    with capture_logs() as logs:
        full = load_lean(folders / "gru")
    assert not isinstance(full, FittedOnnx)
    assert [(log["event"], log["kind"]) for log in logs] == [("network_not_exported", "gru")]
    assert furthest(full, trained("gru"), windows(full)) == 0.0


def test_what_replicas_run_is_no_artifact_to_go_on_from(folders: Path) -> None:
    with pytest.raises(ArtifactError, match="gru model"):
        artifact.load(folders / "gru-lean")


@pytest.mark.parametrize("name", ["gru", "blend"])
@pytest.mark.parametrize("file", [artifact.MANIFEST, artifact.MODEL, artifact.ARRAYS])
def test_no_byte_can_change_unnoticed(name: str, file: str, folders: Path, tmp_path: Path) -> None:
    source = folders / f"{name}-lean"
    broken = tmp_path / "model"
    broken.mkdir()
    for one in source.iterdir():
        (broken / one.name).write_bytes(one.read_bytes())
    body = (source / file).read_bytes()
    for at in {*range(0, len(body), max(1, len(body) // 40)), len(body) - 1}:
        (broken / file).write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        with pytest.raises(ArtifactError, match=str(tmp_path)):
            load_lean(broken)
    (broken / file).write_bytes(body[: len(body) // 2])
    with pytest.raises(ArtifactError):
        load_lean(broken)
    (broken / file).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_lean(broken)


def test_damage_is_noticed_before_the_graph_is_parsed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    body = (folders / "gru-lean" / artifact.ARRAYS).read_bytes()
    for one in (folders / "gru-lean").iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    at = body.index(b"flts-ray")  # the graph names what made it
    (tmp_path / artifact.ARRAYS).write_bytes(body[:at] + b"X" + body[at + 1 :])
    with pytest.raises(ArtifactError, match="SHA-256"):
        load_lean(tmp_path)


def test_an_export_that_differs_from_its_network_is_refused(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = onnx_graph.in_onnx_order

    def careless(cell: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ordered = exact(cell, weights)
        return ordered | {"head.bias": ordered["head.bias"] + np.float32(1e-4)}

    monkeypatch.setattr(onnx_export, "in_onnx_order", careless)
    with pytest.raises(ArtifactError, match="golden windows"), lean_copy(folders / "gru"):
        pass
