"""How a serving replica learns of the champion and fetches it, without MLflow's weight.

Design choices: one REST call of MLflow through httpx, because importing MLflow costs a replica
more than a second and 150 MB; a fetched model appears in the cache by a rename, under its digest,
so replicas of one machine share it and never see half of it; whatever is in the cache is checked
against its manifest before use and fetched again if it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.models import artifact
from flts_ray.store import NotFound, Store

KEEP = 3
"""Models that stay in the cache: the champion, the one before it, and one that is loading."""
ABANDONED_S = 3600.0
PART = ".part-"
ALIAS_PATH = "/api/2.0/mlflow/registered-models/alias"


@dataclass(frozen=True)
class ChampionRef:
    """Which model is champion. `artifact_key` is the store prefix of its files.

    `lean_key` and `lean_digest` are those of its export; empty for a model that has none.
    `created_ms` is when it was registered, milliseconds since 1970.
    """

    version: int
    digest: str
    kind: str
    prepared_hash: str
    artifact_key: str
    run_id: str
    lean_key: str = ""
    lean_digest: str = ""
    created_ms: int = 0

    @property
    def lean(self) -> ChampionRef:
        """The same version, whose files are those of its export where there is one."""
        if not self.lean_key:
            return self
        return replace(self, artifact_key=self.lean_key, digest=self.lean_digest)


class ChampionReader:
    """Reads the champion alias of `name` and keeps fetched models in `cache`."""

    def __init__(
        self,
        mlflow_uri: str,
        store_uri: str,
        name: str,
        cache: Path,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._uri = mlflow_uri.rstrip("/")
        self._store = Store.open(store_uri)
        self._name = name
        self._cache = Path(cache)
        self._http = httpx.Client(timeout=httpx.Timeout(5.0, connect=2.0), transport=transport)

    def current(self, alias: str = "champion") -> ChampionRef | None:
        """The champion now, or who has another alias; None where nobody has it.

        Raises Unavailable where MLflow does not answer, ArtifactError for a version that was
        registered by other means.
        """
        query = {"name": self._name, "alias": alias}
        try:
            answer = self._http.get(self._uri + ALIAS_PATH, params=query)
        except httpx.HTTPError as error:
            raise self._away(f"{type(error).__name__}: {error}") from error
        if answer.status_code == 200 and (version := _json(answer).get("model_version")):
            return _reference(version)
        if _json(answer).get("error_code") in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):
            return None
        raise self._away(f"status {answer.status_code}: {answer.text[:200]}")

    def fetch(self, ref: ChampionRef) -> Path:
        """A folder with the model's files, from the cache or the store.

        Raises ArtifactError if the stored files are not those that were registered.
        """
        folder = self._cache / ref.digest
        with suppress(FileNotFoundError):
            os.utime(folder)  # before it is read, so that another replica does not clear it away
        if not _is_intact(folder, ref.digest):
            self._download(ref, folder)
        self._prune()
        return folder

    def close(self) -> None:
        self._http.close()

    def _download(self, ref: ChampionRef, folder: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=PART) as made:
            part = Path(made) / "model"
            try:
                self._store.download_dir(ref.artifact_key, part)
            except NotFound as error:
                raise ArtifactError(
                    f"version {ref.version} is registered, but its files are gone: {error}"
                ) from None
            found = verify(part)
            if found != ref.digest:
                raise ArtifactError(
                    f"{ref.artifact_key}: holds model {found[:12]}, but version {ref.version} was "
                    f"registered as {ref.digest[:12]}; restore the folder from a backup"
                )
            _put_in_place(part, folder, ref.digest)

    def _prune(self) -> None:
        used = {entry: _used(entry) for entry in self._cache.iterdir()}
        models = [entry for entry in used if not entry.name.startswith(PART)]
        old = sorted(models, key=used.__getitem__, reverse=True)[KEEP:]
        limit = time.time() - ABANDONED_S
        parts = [e for e in used if e.name.startswith(PART) and used[e] < limit]
        for entry in old + parts:
            shutil.rmtree(entry, ignore_errors=True)  # another replica may do the same

    def _away(self, what: str) -> Unavailable:
        return Unavailable(
            f"MLflow at {self._uri} does not tell the champion of {self._name!r} ({what}); start "
            "it there, or set mlflow.uri to a running server"
        )


def verify(folder: Path) -> str:
    """Check every file of a model folder against its manifest; return the model's digest.

    Nothing but the manifest is parsed. Raises ArtifactError naming a file that differs.
    """
    digest = artifact.digest(folder)
    try:
        listed = json.loads((folder / artifact.MANIFEST).read_bytes())["files"]
        expected = {str(name): str(entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder}: its manifest cannot be read ({error!r})") from None
    found = {path.name for path in folder.iterdir()} - {artifact.MANIFEST}
    if found != set(expected):
        odd = ", ".join(sorted(found ^ set(expected)))
        raise ArtifactError(f"{folder}: files missing or added: {odd}; restore the folder")
    for name, sha256 in expected.items():
        with open(folder / name, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise ArtifactError(
                    f"{folder / name}: the bytes are not those that were saved; restore the folder"
                )
    return digest


def _is_intact(folder: Path, digest: str) -> bool:
    try:
        return folder.is_dir() and verify(folder) == digest
    except (ArtifactError, OSError):
        return False


def _put_in_place(part: Path, folder: Path, digest: str) -> None:
    """Rename into the cache; a good copy that another replica was quicker with is kept."""
    try:
        os.replace(part, folder)
    except OSError:
        if _is_intact(folder, digest):
            return
        os.replace(folder, part.with_name("damaged"))
        os.replace(part, folder)


def _used(entry: Path) -> float:
    """When it was last used; now, if another replica is just removing it."""
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _json(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else, as another server may give."""
    try:
        raw = answer.json()
    except ValueError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _reference(raw: Mapping[str, Any]) -> ChampionRef:
    tags = {tag["key"]: tag.get("value", "") for tag in raw.get("tags", ())}
    version = int(raw["version"])
    try:
        return ChampionRef(
            version=version,
            digest=tags["digest"],
            kind=tags["kind"],
            prepared_hash=tags["prepared_hash"],
            artifact_key=tags["artifact_key"],
            run_id=str(raw.get("run_id", "")),
            lean_key=tags.get("lean_key", ""),
            lean_digest=tags.get("lean_digest", ""),
            created_ms=int(raw.get("creation_timestamp", 0)),
        )
    except KeyError as error:
        raise ArtifactError(
            f"{raw.get('name')} version {version}: tag {error} is missing, so it was not "
            "registered by flts; promote one that was (`flts history` lists them)"
        ) from None
