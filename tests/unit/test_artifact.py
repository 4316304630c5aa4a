"""Artifacts come back bit by bit, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Task, fit_fully
from flts_ray.prepare.arrays import SeriesStats, origins_in, windows_at
from tests.synthetic import seasonal_set

NAMES = (artifact.MANIFEST, artifact.MODEL, artifact.ARRAYS)
TASK = Task(6, (0.1, 0.5, 0.9))


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_fully("ar", seasonal_set(), TASK, {"lags": 24})


@pytest.fixture
def folder(fitted: Fitted, tmp_path: Path) -> Path:
    artifact.save(fitted, tmp_path / "model")
    return tmp_path / "model"


def reseal(folder: Path) -> None:
    """Write the manifest that belongs to the files as they are."""
    listed = {}
    for name in (artifact.MODEL, artifact.ARRAYS):
        body = (folder / name).read_bytes()
        listed[name] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
    raw = {"files": listed, "format": artifact.FORMAT}
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    (folder / artifact.MANIFEST).write_text(text)


def edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    raw = json.loads((folder / artifact.MODEL).read_text())
    change(raw)
    (folder / artifact.MODEL).write_text(json.dumps(raw))
    reseal(folder)


def test_a_loaded_model_is_the_saved_one(fitted: Fitted, folder: Path) -> None:
    data = seasonal_set()
    series, origins = origins_in(data, "test", fitted.spec.lookback, 6)
    windows = windows_at(data, series, origins, fitted.spec.lookback, 6)
    loaded = artifact.load(folder)
    expected, found = fitted.forecast(windows), loaded.forecast(windows)
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()
    assert loaded.spec.contract == fitted.spec.contract
    assert loaded.spec.task == fitted.spec.task
    assert loaded.stats.ids == fitted.stats.ids


def test_same_model_same_bytes(fitted: Fitted, folder: Path, tmp_path: Path) -> None:
    again = artifact.save(artifact.load(folder), tmp_path / "again")
    assert again == artifact.digest(folder)
    for name in NAMES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_digest_is_that_of_the_manifest(fitted: Fitted, tmp_path: Path) -> None:
    found = artifact.save(fitted, tmp_path / "model")
    body = (tmp_path / "model" / artifact.MANIFEST).read_bytes()
    assert found == artifact.digest(tmp_path / "model") == hashlib.sha256(body).hexdigest()


def test_saving_replaces_a_folder_and_leaves_nothing_beside_it(
    fitted: Fitted, folder: Path
) -> None:
    (folder / "stray").write_text("x")
    artifact.save(fitted, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    artifact.load(folder)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_refused(fitted: Fitted, name: str, data: st.DataObject) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        artifact.save(fitted, folder)
        body = bytearray((folder / name).read_bytes())
        at = data.draw(st.integers(0, len(body) - 1), label="byte")
        body[at] ^= data.draw(st.integers(1, 255), label="flip")
        (folder / name).write_bytes(bytes(body))
        with pytest.raises(ArtifactError, match=r"json|safetensors"):
            artifact.load(folder)


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    body = (folder / artifact.MANIFEST).read_bytes()
    for at in range(len(body)):
        for flip in (1, 32):
            changed = bytearray(body)
            changed[at] ^= flip
            (folder / artifact.MANIFEST).write_bytes(bytes(changed))
            with pytest.raises(ArtifactError):
                artifact.load(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: the file is missing; restore"):
        artifact.load(folder)


def test_an_added_file_is_named(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.pkl: the file does not belong"):
        artifact.load(folder)


def test_a_changed_file_is_named(folder: Path) -> None:
    with open(folder / artifact.ARRAYS, "ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"arrays\.safetensors: the bytes are not those"):
        artifact.load(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such model folder"):
        artifact.load(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read"):
        artifact.digest(tmp_path / "none")


def test_unknown_format_version(folder: Path) -> None:
    edit(folder, lambda raw: raw.update(format=2))
    with pytest.raises(ArtifactError, match="unknown format version 2"):
        artifact.load(folder)


def test_unknown_kind(folder: Path) -> None:
    edit(folder, lambda raw: raw.update(kind="arr"))
    with pytest.raises(ArtifactError, match=r"model\.json: .*unknown model kind; did you mean ar"):
        artifact.load(folder)


def test_nan_in_json(folder: Path) -> None:
    edit(folder, lambda raw: raw.update(state={"volatility": [1, float("nan")]}))
    with pytest.raises(ArtifactError, match=r"model\.json: .*NaN is no JSON number"):
        artifact.load(folder)


def test_fields_of_another_model(folder: Path) -> None:
    edit(folder, lambda raw: raw.update(state={}))
    with pytest.raises(ArtifactError, match="the files hold no ar model"):
        artifact.load(folder)


def test_a_state_with_nan_is_not_saved(fitted: Fitted, tmp_path: Path) -> None:
    class Broken:
        spec, stats = fitted.spec, fitted.stats
        forecast = fitted.forecast

        def state(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
            return {"loss": float("nan")}, {}

    with pytest.raises(ArtifactError, match="the model's state is no JSON"):
        artifact.save(Broken(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_over_the_bound_is_not_read(folder: Path) -> None:
    with open(folder / artifact.MANIFEST, "r+b") as file:
        file.truncate(artifact.MAX_BYTES[artifact.MANIFEST] + 1)
    with pytest.raises(ArtifactError, match=r"manifest\.json: 65537 bytes are more than the bound"):
        artifact.load(folder)


def test_arrays_that_are_none(folder: Path) -> None:
    (folder / artifact.ARRAYS).write_bytes(b"\x80\x04." * 100)
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"arrays\.safetensors: cannot be read"):
        artifact.load(folder)


@given(st.lists(st.text(), min_size=1, max_size=20, unique=True))
def test_any_id_comes_back(ids: list[str]) -> None:
    numbers = np.linspace(-1, 1, len(ids))
    stats = SeriesStats(tuple(ids), numbers, numbers, numbers, numbers, np.full(len(ids), np.inf))
    found, state = artifact._unpack(artifact._pack(stats, {"w": numbers[:0]}), Path("arrays"))
    assert found.ids == tuple(ids)
    assert found.clip_hi.tobytes() == stats.clip_hi.tobytes()
    assert state["w"].shape == (0,)
