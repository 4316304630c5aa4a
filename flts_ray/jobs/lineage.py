"""From a model version back to the offsets it was trained on.

Design choices: each link stands where it was written (version, prepared set, log of the table), so
nothing is kept twice; where the prepared set was removed, the version itself names the snapshot;
links that contradict each other are an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Protocol

from flts_ray.config import Config
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.jobs.session import open_session
from flts_ray.prepare.loading import find_prepared
from flts_ray.prepare.manifest import Manifest, set_folder
from flts_ray.registry import ModelVersion
from flts_ray.sources.snapshot import parse_snapshot_name, snapshot_reference
from flts_ray.sources.table_log import HeldSegment, LogEntry, entries_upto, read_entry
from flts_ray.store import NotFound, Store


class Versions(Protocol):
    """The part of the registry that is asked."""

    name: str

    def version(self, n: int) -> ModelVersion: ...
    def champion(self) -> ModelVersion | None: ...


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    manifest: of its prepared set; None if that was removed. snapshot: the state of the table it
    was prepared from; None if it was prepared from files, which `manifest.inputs` lists.
    segments: all segments of the snapshot, by partition and offset.
    """

    name: str
    version: ModelVersion
    location: str
    manifest: Manifest | None
    snapshot: LogEntry | None
    segments: tuple[HeldSegment, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with everything but the files of the prepared set and the table."""
        version = asdict(self.version) | {"created_at": self.version.created_at.isoformat()}
        return {
            "name": self.name,
            "version": version,
            "prepared": {"hash": self.version.prepared_hash, "location": self.location},
            "inputs": None if self.manifest is None else self.manifest.inputs,
            "snapshot": None if self.snapshot is None else snapshot_reference(self.snapshot),
            "segments": [asdict(segment) for segment in self.segments],
        }


def lineage(config: Config, version: int | None = None) -> Lineage:
    """Where a version comes from, the champion for None.

    Raises DataError for an unknown version, Unavailable without a champion or a service,
    ArtifactError if a link is broken.
    """
    with open_session(config) as services:
        return trace(services.registry(), services.store, version)


def trace(versions: Versions, store: Store, number: int | None = None) -> Lineage:
    """Follow the links from a version in `store`. Raises like `lineage`."""
    version = versions.champion() if number is None else versions.version(number)
    if version is None:
        raise Unavailable(
            f"{versions.name} has no champion yet; `flts train` makes one, or name a version that "
            "`flts history` lists"
        )
    prepared = find_prepared(store.root, version.prepared_hash)
    manifest = prepared.manifest if prepared else None
    snapshot = _snapshot(store, version, manifest)
    held = (
        [one for entry in entries_upto(store, snapshot) for one in entry.segments]
        if snapshot
        else []
    )
    return Lineage(
        versions.name,
        version,
        store.uri(set_folder(version.prepared_hash)),
        manifest,
        snapshot,
        tuple(sorted(held, key=lambda one: (one.partition, one.begin))),
    )


def _snapshot(store: Store, version: ModelVersion, manifest: Manifest | None) -> LogEntry | None:
    if manifest is None and not version.snapshot:
        raise ArtifactError(
            f"version {version.version} was trained on the prepared set "
            f"{version.prepared_hash[:16]}, which is not in {store.root}, and names no snapshot; "
            "restore the set's folder"
        )
    if manifest is not None and manifest.snapshot is None:
        return None
    known = manifest.snapshot if manifest else None
    named = known or parse_snapshot_name(version.snapshot)
    try:
        entry = read_entry(store, named["topic"], named["epoch"], named["number"])
    except NotFound as error:
        raise ArtifactError(f"version {version.version}: its snapshot is gone: {error}") from None
    if known is not None and snapshot_reference(entry) != known:
        raise ArtifactError(
            f"snapshot {entry.number} of topic {entry.topic} holds other offsets than those that "
            f"version {version.version} was prepared from; restore the table's log"
        )
    return entry


def lineage_lines(found: Lineage, every_segment: bool = False) -> Iterator[str]:
    """What to print: a line a link, a line a partition, a line a segment if wanted."""
    version, manifest = found.version, found.manifest
    made = version.created_at.isoformat(timespec="seconds")
    yield f"{found.name} version {version.version}: {version.kind}, run {version.run_id}, {made}"
    if manifest is None:
        yield f"prepared set {version.prepared_hash[:16]}: removed from {found.location}"
    else:
        yield (
            f"prepared set {version.prepared_hash[:16]}: {manifest.series} series, "
            f"{manifest.rows:,} rows, {found.location}"
        )
    if found.snapshot is not None:
        yield from _snapshot_lines(found, found.snapshot, every_segment)
    elif manifest is not None:
        for one in manifest.inputs:
            yield f"file {one['name']}: {one['size']:,} bytes, fingerprint {one['fingerprint']}"


def _snapshot_lines(found: Lineage, entry: LogEntry, every_segment: bool) -> Iterator[str]:
    where = f"topic {entry.topic}, epoch {entry.epoch}"
    yield f"snapshot {entry.number} of {where}: {entry.rows:,} rows"
    for partition, group in groupby(found.segments, key=lambda one: one.partition):
        held = list(group)
        begin, end = entry.ranges[partition]
        rows, bad, lost = (
            sum(getattr(one, name) for one in held) for name in ("rows", "bad_rows", "lost")
        )
        yield (
            f"partition {partition}: offsets [{begin}, {end}) in {len(held)} segments: {rows:,} "
            f"rows, {bad:,} dead letters, {lost:,} lost"
        )
        for one in held if every_segment else ():
            yield f"  {one.key}: [{one.begin}, {one.end}), {one.rows:,} rows"
