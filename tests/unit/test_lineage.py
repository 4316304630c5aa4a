"""From a version back to offsets, over every link."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flts_ray.errors import ArtifactError, DataError, Unavailable
from flts_ray.ingest.compact import compact
from flts_ray.jobs.lineage import lineage_lines, trace
from flts_ray.prepare.loading import PreparedSet
from flts_ray.prepare.manifest import MANIFEST_NAME
from flts_ray.prepare.run import prepare
from flts_ray.prepare.steps import remove_folder
from flts_ray.registry import ModelVersion
from flts_ray.sources.snapshot import snapshot_name
from flts_ray.sources.table_log import entry_key
from flts_ray.store import Store
from tests.raw_files import load_config, write_load
from tests.streamed_load import EPOCH, TOPIC, load_rows, store_rows, table_config


class Known:
    """A registry with one version, champion or not."""

    name = "load"

    def __init__(self, version: ModelVersion, champion: bool = True) -> None:
        self._version = version
        self._champion = champion

    def version(self, n: int) -> ModelVersion:
        if n != self._version.version:
            raise DataError(f"load has no version {n}", field="version")
        return self._version

    def champion(self) -> ModelVersion | None:
        return self._version if self._champion else None


def version_of(prepared: PreparedSet) -> ModelVersion:
    reference = prepared.manifest.snapshot
    return ModelVersion(
        version=3,
        kind="ridge",
        digest="d" * 64,
        run_id="run7",
        prepared_hash=prepared.hash,
        artifact_key="models/load/d",
        created_at=datetime(2024, 5, 1, tzinfo=UTC),
        snapshot=snapshot_name(reference) if reference else "",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(table_config(tmp_path).root)


@pytest.fixture
def prepared(tmp_path: Path, store: Store) -> PreparedSet:
    ends: dict[int, int] = {}
    for begin in (0, 100, 200):
        ends = store_rows(store, load_rows(begin, 100), ends)
        compact(store, TOPIC, EPOCH)
    return prepare(table_config(tmp_path, data={"snapshot": 2}))


def test_the_champion_leads_back_to_every_segment(store: Store, prepared: PreparedSet) -> None:
    found = trace(Known(version_of(prepared)), store)
    assert found.snapshot is not None
    assert found.snapshot.number == 2
    assert [one.partition for one in found.segments] == [0, 0, 1, 1]
    for partition, (begin, end) in found.snapshot.ranges.items():
        mine = [one for one in found.segments if one.partition == partition]
        assert (mine[0].begin, mine[0].end, mine[1].end) == (begin, mine[1].begin, end)
    for one in found.segments:
        assert store.exists(one.key)
    assert sum(one.rows for one in found.segments) == found.snapshot.rows
    text = "\n".join(lineage_lines(found))
    end = found.snapshot.ranges[0][1]
    assert f"partition 0: offsets [0, {end}) in 2 segments" in text
    assert "load version 3: ridge, run run7" in text
    assert prepared.location in text
    assert found.segments[0].key not in text
    assert found.segments[0].key in "\n".join(lineage_lines(found, every_segment=True))
    assert found.to_json()["snapshot"] == prepared.manifest.snapshot


def test_a_version_can_be_named(store: Store, prepared: PreparedSet) -> None:
    known = Known(version_of(prepared), champion=False)
    assert trace(known, store, 3).version.version == 3
    with pytest.raises(DataError, match="no version 4"):
        trace(known, store, 4)
    with pytest.raises(Unavailable, match="no champion yet"):
        trace(known, store)


def test_a_model_of_files_leads_to_the_files(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    found = trace(Known(version_of(prepare(config))), Store.open(config.root))
    assert (found.snapshot, found.segments) == (None, ())
    assert [line.split(":")[0] for line in lineage_lines(found)][2:] == [
        "file a.csv", "file b.csv", "file c.csv"
    ]  # fmt: skip
    assert found.to_json()["snapshot"] is None


def test_the_version_itself_leads_back_when_the_prepared_set_is_gone(
    store: Store, prepared: PreparedSet
) -> None:
    before = trace(Known(version_of(prepared)), store)
    remove_folder(store, f"prepared/{prepared.hash[:16]}")
    after = trace(Known(version_of(prepared)), store)
    assert (after.snapshot, after.segments) == (before.snapshot, before.segments)
    assert "removed from" in "\n".join(lineage_lines(after))
    nameless = Known(replace(version_of(prepared), snapshot=""))
    with pytest.raises(ArtifactError, match="names no snapshot"):
        trace(nameless, store)


def test_links_that_contradict_each_other_are_told(store: Store, prepared: PreparedSet) -> None:
    key = f"prepared/{prepared.hash[:16]}/{MANIFEST_NAME}"
    end = prepared.manifest.snapshot["ranges"]["0"][1] if prepared.manifest.snapshot else 0
    store.put(key, store.get(key).replace(str(end).encode(), str(end + 1).encode()))
    with pytest.raises(ArtifactError, match="holds other offsets"):
        trace(Known(version_of(prepared)), store)


def test_a_lost_log_is_told(store: Store, prepared: PreparedSet) -> None:
    store.delete(entry_key(TOPIC, EPOCH, 2))
    with pytest.raises(ArtifactError, match="its snapshot is gone"):
        trace(Known(version_of(prepared)), store)
