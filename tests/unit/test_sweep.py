"""What a sweep leaves alone although it looked old, and what it finds elsewhere."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyarrow import fs

from flts_ray.ingest.sweep import sweep
from flts_ray.sources.table_log import table_folder
from flts_ray.store import FolderStore
from tests.segments import EPOCH, TOPIC

NOW = datetime.now(UTC)
UNNAMED = f"{table_folder(TOPIC, EPOCH)}/date=2024-01-01/{'a' * 32}.parquet"


class Busy(FolderStore):
    """A store in which a compactor writes a file again right after it was listed."""

    rewritten: str | None = None

    def filesystem(self) -> tuple[fs.FileSystem, str]:
        real, base = super().filesystem()
        return fs.PyFileSystem(Looked(self, real)), base


class Looked(fs.FSSpecHandler):  # type: ignore[misc]
    def __init__(self, store: Busy, real: fs.FileSystem) -> None:
        self.store, self.real = store, real

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(self.real.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        found = list(self.real.get_file_info(selector))
        if self.store.rewritten and selector.recursive:
            self.store.put(self.store.rewritten, b"needed again")
        return found


def put(store: FolderStore, key: str, age: timedelta) -> None:
    store.put(key, b"x")
    stamp = (NOW - age).timestamp()
    os.utime(Path(store.root, key), (stamp, stamp))


def test_a_file_that_was_written_again_since_it_was_listed_stays(tmp_path: Path) -> None:
    store = Busy(str(tmp_path))
    put(store, UNNAMED, timedelta(days=3))
    store.rewritten = UNNAMED
    assert sweep(store, TOPIC, EPOCH, NOW) == []
    assert store.get(UNNAMED) == b"needed again"
    store.rewritten = None
    put(store, UNNAMED, timedelta(days=3))
    assert sweep(store, TOPIC, EPOCH, NOW) == [UNNAMED]
    assert not store.exists(UNNAMED)


def test_a_file_that_went_away_since_it_was_listed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Busy(str(tmp_path))
    put(store, UNNAMED, timedelta(days=3))
    monkeypatch.setattr(store, "put", lambda key, data: store.delete(key))
    store.rewritten = UNNAMED
    assert sweep(store, TOPIC, EPOCH, NOW) == []


def test_what_killed_compactors_spilled_goes_with_its_folder_in_every_life(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    old = [f"spill/table/{TOPIC}/{epoch}/dead/0.arrows" for epoch in (EPOCH, "f" * 16)]
    for key in old:
        put(store, key, timedelta(days=3))
    young = f"spill/table/{TOPIC}/{EPOCH}/alive/0.arrows"
    put(store, young, timedelta(hours=3))
    other = f"spill/table/other/{EPOCH}/dead/0.arrows"
    put(store, other, timedelta(days=3))
    assert sorted(sweep(store, TOPIC, EPOCH, NOW)) == sorted(old)
    assert {item.key for item in store.list()} == {young, other}
    assert [key for key in old if Path(store.root, key).parent.exists()] == []
    assert Path(store.root, young).parent.exists()
