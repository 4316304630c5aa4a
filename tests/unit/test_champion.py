from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from flts_ray.champion import KEEP, ChampionReader, ChampionRef, verify
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.store import Store
from tests.synthetic import seasonal_set

TAGS = {
    "digest": "d" * 64,
    "kind": "ar",
    "prepared_hash": "p",
    "artifact_key": "models/load/" + "d" * 64,
}
REF = ChampionRef(3, TAGS["digest"], "ar", "p", TAGS["artifact_key"], "r")
Answer = Callable[[httpx.Request], httpx.Response]


def _version(tags: dict[str, str]) -> dict[str, object]:
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    return {"model_version": {"name": "load", "version": "3", "run_id": "r", "tags": listed}}


def _reader(tmp_path: Path, answer: Answer | None = None) -> ChampionReader:
    transport = httpx.MockTransport(answer or (lambda request: httpx.Response(500)))
    store, cache = str(tmp_path / "store"), tmp_path / "cache"
    return ChampionReader("http://mlflow:5000/", store, "load", cache, transport=transport)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More models than the cache keeps."""
    root = tmp_path_factory.mktemp("models")
    for seed in range(KEEP + 1):
        data = seasonal_set(length=200, seed=seed)
        artifact.save(fit_fully("seasonal_naive", data, Task(4, (0.1, 0.5, 0.9))), root / str(seed))
    return sorted(root.iterdir())


def _stored(tmp_path: Path, folder: Path) -> ChampionRef:
    digest = artifact.digest(folder)
    key = f"models/load/{digest}"
    Store.open(str(tmp_path / "store")).upload_dir(folder, key)
    return ChampionRef(3, digest, "seasonal_naive", "p", key, "r")


def test_the_champion_is_read_from_the_alias(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json=_version(TAGS))

    assert _reader(tmp_path, answer).current() == REF
    assert asked == [
        "http://mlflow:5000/api/2.0/mlflow/registered-models/alias?name=load&alias=champion"
    ]


@pytest.mark.parametrize(
    ("status", "code"), [(404, "RESOURCE_DOES_NOT_EXIST"), (400, "INVALID_PARAMETER_VALUE")]
)
def test_no_model_and_no_alias_mean_no_champion(tmp_path: Path, status: int, code: str) -> None:
    refusal = {"error_code": code, "message": "not found"}
    assert _reader(tmp_path, lambda _: httpx.Response(status, json=refusal)).current() is None


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: httpx.Response(503, text="busy"),
        lambda _: httpx.Response(404, text="<html>another server</html>"),
        lambda _: httpx.Response(403, text="Invalid Host header"),
        lambda _: httpx.Response(500, json=["odd"]),
        lambda _: httpx.Response(200, text="<html>another server</html>"),
    ],
)
def test_a_server_that_does_not_tell_is_unavailable(tmp_path: Path, answer: Answer) -> None:
    with pytest.raises(Unavailable, match=r"http://mlflow:5000 .*'load'"):
        _reader(tmp_path, answer).current()


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(Unavailable, match="connection refused"):
        _reader(tmp_path, refuse).current()


def test_a_version_registered_by_other_means_is_named(tmp_path: Path) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=_version({"kind": "ar"}))

    with pytest.raises(ArtifactError, match="load version 3: tag 'digest' is missing"):
        _reader(tmp_path, answer).current()


def test_a_fetched_model_is_the_stored_one_and_is_fetched_once(
    tmp_path: Path, models: list[Path]
) -> None:
    ref = _stored(tmp_path, models[0])
    reader = _reader(tmp_path)
    folder = reader.fetch(ref)
    assert artifact.load(folder).spec == artifact.load(models[0]).spec
    shutil.rmtree(tmp_path / "store")
    assert reader.fetch(ref) == folder
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [ref.digest]


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.MODEL, artifact.ARRAYS])
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, models: list[Path], name: str) -> None:
    ref = _stored(tmp_path, models[0])
    folder = _reader(tmp_path).fetch(ref)
    (folder / name).write_bytes(b"x")
    assert verify(_reader(tmp_path).fetch(ref)) == ref.digest


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.MODEL, artifact.ARRAYS])
def test_a_damaged_store_is_refused_and_nothing_is_kept(
    tmp_path: Path, models: list[Path], name: str
) -> None:
    ref = _stored(tmp_path, models[0])
    stored = tmp_path / "store" / ref.artifact_key / name
    stored.write_bytes(stored.read_bytes().replace(b'"', b" ", 1) + b" ")
    with pytest.raises(ArtifactError):
        _reader(tmp_path).fetch(ref)
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_models_files_under_the_key_are_refused(tmp_path: Path, models: list[Path]) -> None:
    ref = _stored(tmp_path, models[0])
    shutil.rmtree(tmp_path / "store" / ref.artifact_key)
    shutil.copytree(models[1], tmp_path / "store" / ref.artifact_key)
    with pytest.raises(ArtifactError, match="registered as"):
        _reader(tmp_path).fetch(ref)


def test_files_that_are_gone_are_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="version 3 is registered, but its files are gone"):
        _reader(tmp_path).fetch(REF)


def test_a_file_added_to_a_model_is_refused(tmp_path: Path, models: list[Path]) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    (copy / "extra.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"extra\.bin"):
        verify(copy)


def test_the_cache_keeps_the_models_used_last(tmp_path: Path, models: list[Path]) -> None:
    reader = _reader(tmp_path)
    references = [_stored(tmp_path, folder) for folder in models]
    for age, ref in enumerate(references[:KEEP]):
        folder = reader.fetch(ref)
        os.utime(folder, (age, age))
    reader.fetch(references[0])
    reader.fetch(references[KEEP])
    kept = {entry.name for entry in (tmp_path / "cache").iterdir()}
    assert kept == {ref.digest for ref in references} - {references[1].digest}


def test_a_download_of_a_killed_replica_is_cleared_away_later(
    tmp_path: Path, models: list[Path]
) -> None:
    ref = _stored(tmp_path, models[0])
    cache = tmp_path / "cache"
    for name, age_s in ((".part-old", 7200), (".part-running", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    _reader(tmp_path).fetch(ref)
    assert {entry.name for entry in cache.iterdir()} == {ref.digest, ".part-running"}


def test_replicas_of_one_machine_may_fetch_at_once(tmp_path: Path, models: list[Path]) -> None:
    ref = _stored(tmp_path, models[0])
    barrier, found = threading.Barrier(6), list[str]()

    def run() -> None:
        reader = _reader(tmp_path)
        barrier.wait()
        found.append(verify(reader.fetch(ref)))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ref.digest] * 6


def test_a_replica_that_reads_the_champion_loads_no_heavy_library() -> None:
    program = (
        "import sys, flts_ray.champion\n"
        "print([name for name in ('mlflow', 'torch', 'ray', 'prophet') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
