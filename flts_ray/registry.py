"""Model versions in MLflow, and which of them is champion, previous and challenger.

Design choices: the numbered log in the store (`promotions.py`) is the truth and MLflow's aliases
follow it, because MLflow cannot set an alias only if nobody else did; whoever changes the log
sets the aliases and looks again, and whoever reads repairs them first, so a process killed in
between leaves no lasting difference; artifacts are stored under their digest, so registering the
same model twice stores it once; what a damaged folder holds is never registered; networks are
exported for replicas when they are registered, and one whose export differs is served as it was
trained, which costs memory but no forecast.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from flts_ray.champion import verify
from flts_ray.errors import ArtifactError, Conflict, DataError, GateRefused
from flts_ray.models import artifact
from flts_ray.models.lean import lean_copy
from flts_ray.promotions import Entry, PromotionLog, challenged, promoted, rolled_back
from flts_ray.store import Store
from flts_ray.tracking import AlreadyThere, Missing, TrackingClient

ALIASES = ("champion", "previous", "challenger")
ATTEMPTS = 20
"""Times a change that does not depend on the champion is repeated when others write too."""
_log = structlog.get_logger("flts_ray.registry")


@dataclass(frozen=True)
class ModelVersion:
    """A registered model. `artifact_key` is the store prefix of its files.

    `snapshot` (TOPIC/EPOCH/NUMBER) is what it was trained on; "" if that was files. `lean_digest`
    is that of its export for replicas; "" for a model that has none.
    """

    version: int
    kind: str
    digest: str
    run_id: str
    prepared_hash: str
    artifact_key: str
    created_at: datetime
    snapshot: str = ""
    lean_digest: str = ""


class Registry:
    """The versions of one model name. Every method raises Unavailable when MLflow is away."""

    def __init__(self, client: TrackingClient, store: Store, name: str, by: str) -> None:
        self._client = client
        self._store = store
        self.name = name
        self._by = by
        self._log = PromotionLog(store, name)

    @classmethod
    def connect(cls, uri: str, store: Store, name: str, by: str | None = None) -> Registry:
        """`by` is written into the log; None: user@host."""
        return cls(TrackingClient(uri), store, name, by or _who())

    def add_version(
        self,
        artifact_folder: Path,
        run_id: str,
        prepared_hash: str,
        tags: Mapping[str, str] | None = None,
        artifact_path: str = "model",
    ) -> ModelVersion:
        """Store a model and its export, and register it; the same model of the same run is
        registered once.

        `artifact_path` is where the run keeps its own copy. Raises ArtifactError if a file is
        not the one that was saved.
        """
        digest = verify(artifact_folder)
        for known in self.versions():
            if (known.digest, known.run_id) == (digest, run_id):
                return known
        key = f"models/{self.name}/{digest}"
        self._store.upload_dir(artifact_folder, key)
        with suppress(AlreadyThere):
            self._client.create_registered_model(self.name)
        made = self._client.create_model_version(
            self.name,
            source=f"runs:/{run_id}/{artifact_path}",
            run_id=run_id,
            tags={
                **(tags or {}),
                "digest": digest,
                "kind": _kind(artifact_folder),
                "prepared_hash": prepared_hash,
                "artifact_key": key,
                **self._store_export(artifact_folder),
            },
            await_creation_for=0,
        )
        return self.version(int(made.version))

    def export(self, version: ModelVersion, artifact_folder: Path) -> ModelVersion:
        """A version with its export, made from the folder of its files where it has none yet."""
        if not version.lean_digest:
            for key, value in self._store_export(artifact_folder).items():
                self._client.set_model_version_tag(self.name, str(version.version), key, value)
        return self.version(version.version)

    def _store_export(self, artifact_folder: Path) -> dict[str, str]:
        """Tags that tell replicas of the export; none for a model that needs or allows none."""
        try:
            with lean_copy(artifact_folder) as lean:
                if lean == artifact_folder:
                    return {}
                digest = verify(lean)
                key = f"models/{self.name}/{digest}"
                self._store.upload_dir(lean, key)
        except ArtifactError as error:
            _log.warning("export_failed", name=self.name, problem=str(error))
            return {}
        return {"lean_key": key, "lean_digest": digest}

    def version(self, n: int) -> ModelVersion:
        """One version. Raises DataError if there is none with that number."""
        try:
            return _version(self._client.get_model_version(self.name, str(n)))
        except Missing:
            raise DataError(
                f"{self.name} has no version {n}; `flts history` lists them", field="version"
            ) from None

    def versions(self) -> list[ModelVersion]:
        """All versions that were registered by `add_version`, oldest first."""
        found = [_version(raw) for raw in self._raw_versions() if "digest" in raw.tags]
        return sorted(found, key=lambda version: version.version)

    def champion(self) -> ModelVersion | None:
        """The champion by the log; None if nothing was promoted."""
        return self._holder("champion")

    def challenger(self) -> ModelVersion | None:
        """The challenger by the log, if one is named."""
        return self._holder("challenger")

    def history(self) -> list[Entry]:
        """All promotions, rollbacks and challenges, oldest first."""
        self.repair()
        return self._log.entries()

    def promote(
        self,
        version: int,
        decision: Mapping[str, Any],
        expected_champion: int | None,
        now: datetime,
    ) -> Entry:
        """Make `version` champion on the strength of an accepted decision.

        expected_champion: the champion the decision was judged against. Raises GateRefused for
        a decision that does not accept, Conflict if the champion changed meanwhile, DataError
        for an unknown version.
        """
        key = self.record_decision(decision)
        reason = decision.get("reason")
        if decision.get("accepted") is not True:
            raise GateRefused(f"version {version} was not accepted: {reason} (kept as {key})")
        self.version(version)
        last = self._log.newest()
        entry = promoted(last, version, expected_champion, key, reason, now, self._by)
        return self._commit(entry)

    def rollback(self, now: datetime, reason: str) -> Entry:
        """Swap champion and previous; a second rollback goes forward again.

        Raises Unavailable if there is no previous champion, Conflict if somebody else changed
        the champion meanwhile.
        """
        return self._commit(rolled_back(self._log.newest(), reason, now, self._by))

    def set_challenger(self, version: int | None, now: datetime | None = None) -> Entry:
        """Name the challenger; None takes the name away. Raises DataError if unknown."""
        if version is not None:
            self.version(version)
        at = now or datetime.now(UTC)
        for _ in range(ATTEMPTS - 1):
            try:
                return self._commit(challenged(self._log.newest(), version, at, self._by))
            except Conflict:
                continue  # the champion changed; the challenger is the same beside the new one
        return self._commit(challenged(self._log.newest(), version, at, self._by))

    def record_decision(self, decision: Mapping[str, Any]) -> str:
        """Keep a decision, accepted or refused, for ever; return its store key."""
        return self._log.record_decision(decision)

    def decision(self, key: str) -> dict[str, Any]:
        """A recorded decision. Raises ArtifactError if it was altered."""
        return self._log.decision(key)

    def decisions(self) -> dict[str, dict[str, Any]]:
        """Every recorded decision, accepted and refused, by its key; oldest first."""
        return self._log.decisions()

    def repair(self) -> list[str]:
        """Make the aliases follow the newest entry; return those that had to change.

        Without entries nothing is touched: an empty log may be another store by mistake.
        """
        changed: list[str] = []
        entry = self._log.newest()
        while entry is not None:
            changed += self._set_aliases(entry)
            newest = self._log.newest()
            if newest == entry:
                break
            entry = newest  # written by somebody whose aliases may just have been overwritten
        return changed

    def _commit(self, entry: Entry) -> Entry:
        self._log.append(entry)
        self.repair()
        return entry

    def _holder(self, alias: str) -> ModelVersion | None:
        self.repair()
        entry = self._log.newest()
        version = None if entry is None else entry.aliases.get(alias)
        return None if version is None else self.version(version)

    def _set_aliases(self, entry: Entry) -> list[str]:
        wanted = {alias: str(version) for alias, version in entry.aliases.items()}
        try:
            found = self._client.get_registered_model(self.name).aliases
            differing = [a for a in ALIASES if wanted.get(a) != _as_text(found.get(a))]
            for alias in differing:
                if alias in wanted:
                    self._client.set_registered_model_alias(self.name, alias, wanted[alias])
                else:
                    self._client.delete_registered_model_alias(self.name, alias)
        except Missing as error:
            raise ArtifactError(
                f"the promotion log of {self.name} names versions {wanted}, but {error}; restore "
                "MLflow's database or correct mlflow.uri"
            ) from None
        return differing

    def _raw_versions(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_model_versions(
                f"name='{self.name}'", max_results=500, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def _version(raw: Any) -> ModelVersion:
    tags = raw.tags
    if "digest" not in tags:
        raise ArtifactError(
            f"{raw.name} version {raw.version} was not registered by flts; choose one that "
            "`flts history` lists"
        )
    return ModelVersion(
        version=int(raw.version),
        kind=tags["kind"],
        digest=tags["digest"],
        run_id=str(raw.run_id),
        prepared_hash=tags["prepared_hash"],
        artifact_key=tags["artifact_key"],
        created_at=datetime.fromtimestamp(raw.creation_timestamp / 1000, UTC),
        snapshot=tags.get("snapshot", ""),
        lean_digest=tags.get("lean_digest", ""),
    )


def _kind(folder: Path) -> str:
    return str(json.loads((folder / artifact.MODEL).read_bytes())["kind"])


def _as_text(version: Any) -> str | None:
    return None if version is None else str(version)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
