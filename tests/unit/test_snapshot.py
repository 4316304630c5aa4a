"""Preparing from a snapshot of the table, in the words of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.ingest.compact import compact
from flts_ray.prepare.loading import open_prepared
from flts_ray.prepare.manifest import Manifest
from flts_ray.prepare.run import prepare
from flts_ray.sources.snapshot import (
    find_snapshot,
    find_source,
    parse_snapshot_name,
    snapshot_name,
)
from flts_ray.sources.table_log import LogEntry, table_folder
from flts_ray.store import Store
from tests.raw_files import contents, load_config, write_load
from tests.segments import bad
from tests.streamed_load import EPOCH, TOPIC, load_rows, store_rows, table_config


def filled(
    folder: Path, *parts: Sequence[dict[str, Any]], **sections: dict[str, Any]
) -> tuple[Config, LogEntry]:
    """A table made of one compaction a part."""
    config = table_config(folder, **sections)
    store = Store.open(config.root)
    ends: dict[int, int] = {}
    for part in parts:
        ends = store_rows(store, part, ends)
        entry = compact(store, TOPIC, EPOCH)
    return config, entry


def test_a_snapshot_gives_the_arrays_of_the_files(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    from_files = prepare(load_config(tmp_path))
    config, entry = filled(tmp_path, load_rows())
    made = prepare(config)
    assert made.ids() == from_files.ids()
    assert made.quarantine() == from_files.quarantine()
    assert made.manifest.categories == {"region": ["east", "north", "west"]}
    ours, theirs = made.arrays(), from_files.arrays()
    for name in ("y", "observed", "future", "past", "static", "start_us", "train_end"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert made.manifest.input_rows == entry.rows == from_files.manifest.input_rows


def test_the_manifest_names_the_offsets(tmp_path: Path) -> None:
    config, entry = filled(tmp_path, load_rows(0, 100), load_rows(100, 140))
    made = prepare(config)
    assert made.manifest.snapshot == {
        "topic": TOPIC, "epoch": EPOCH, "number": 2,
        "ranges": {"0": [0, 846], "1": [0, 844]},
    }  # fmt: skip
    assert open_prepared(config.root, made.hash).manifest == made.manifest
    assert [one["fingerprint"] for one in made.manifest.inputs] == [f.sha256 for f in entry.files]


def test_files_leave_no_trace_of_snapshots_in_the_manifest(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    manifest = prepare(load_config(tmp_path)).manifest
    assert manifest.snapshot is None
    assert b"snapshot" not in manifest.to_json()
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_preparing_the_same_snapshot_again_gives_the_same_bytes(tmp_path: Path) -> None:
    config, _ = filled(tmp_path, load_rows(0, 120), load_rows(120, 120))
    first = contents(prepare(config))
    assert contents(prepare(config, force=True)) == first
    pinned = table_config(tmp_path, data={"snapshot": 2})
    assert contents(prepare(pinned)) == first
    elsewhere, _ = filled(tmp_path / "b", load_rows(0, 120), load_rows(120, 120))
    assert contents(prepare(elsewhere)) == first


def test_an_older_snapshot_stays_what_it_was(tmp_path: Path) -> None:
    config, entry = filled(tmp_path, load_rows())
    first = contents(prepare(config))
    late = [{**row, "y": 5.0} for row in load_rows(30, 4)]
    store_rows(Store.open(config.root), late, {p: end for p, (_, end) in entry.ranges.items()})
    compact(Store.open(config.root), TOPIC, EPOCH)
    old = prepare(table_config(tmp_path, data={"snapshot": 1}), force=True)
    assert contents(old) == first
    newest = prepare(config)
    assert newest.hash != old.hash
    at = 30
    assert newest.arrays(["s0"]).y[at] == 5.0 != old.arrays(["s0"]).y[at]


def test_names_of_file_columns_do_not_matter_to_a_table(tmp_path: Path) -> None:
    config, _ = filled(tmp_path, load_rows())
    named = table_config(
        tmp_path, data={"time": "when", "id": "who", "target": "mw", "stamp_time_zone": "UTC"}
    )
    assert prepare(named).hash == prepare(config).hash


@pytest.mark.parametrize("few", [1, 2])
def test_many_small_files_are_split_in_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    config, _ = filled(tmp_path, load_rows())
    whole = contents(prepare(config))
    monkeypatch.setattr("flts_ray.prepare.run.FEW_STEPS", few)
    seen: list[tuple[str, int, int]] = []
    made = prepare(config, force=True, progress=lambda *call: seen.append(call))
    assert contents(made) == whole
    split = [done for stage, done, _ in seen if stage == "split"]
    assert split == [[0, 10], [0, 5, 10]][few - 1]


def test_frequency_is_inferred_over_dates(tmp_path: Path) -> None:
    daily = [row for row in load_rows(0, 24 * 60) if row["ds"].hour == 0]
    config, _ = filled(
        tmp_path,
        daily,
        data={"frequency": None, "time_zone": "UTC"},
        prepare={"holidays": None},
        task={"horizon": 3},
    )
    assert prepare(config).contract.freq == "1D"


def test_a_covariate_that_came_later_is_missing_before(tmp_path: Path) -> None:
    config = table_config(tmp_path, prepare={"max_missing": 0.9})
    store = Store.open(config.root)
    without = {name: role for name, role in _roles().items() if name != "temperature"}
    ends = store_rows(store, load_rows(0, 120), {}, without)
    store_rows(store, load_rows(120, 120), ends)
    compact(store, TOPIC, EPOCH)
    source = find_source(config)
    assert source.inputs[0].lacks == {"temperature"}
    assert source.inputs[-1].lacks == frozenset()
    made = prepare(config)
    assert made.arrays(["s1"]).past[120:, 0].tolist() == [i % 9 for i in range(120, 240)]


def _roles() -> dict[str, Any]:
    return dict(table_config(Path("x")).data.covariates)


def test_labels_that_look_like_numbers_on_one_date_stay_labels(tmp_path: Path) -> None:
    rows = [{**row, "region": "7"} if row["ds"].day == 26 else row for row in load_rows()]
    config, _ = filled(tmp_path, rows)
    assert prepare(config).manifest.categories == {"region": ["east", "north", "west"]}


def test_a_misspelt_covariate_is_told(tmp_path: Path) -> None:
    config, _ = filled(tmp_path, load_rows(), data={"covariates": {"temperatur": "past"}})
    with pytest.raises(DataError, match="did you mean 'temperature'"):
        prepare(config)


def test_without_a_table_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"flts ingest run.*flts ingest compact"):
        prepare(table_config(tmp_path))


def test_an_unknown_number_is_told_with_those_there_are(tmp_path: Path) -> None:
    config, _ = filled(tmp_path, load_rows(), data={"snapshot": 7})
    with pytest.raises(DataError, match="snapshots 1 to 1, not 7"):
        prepare(config)


def test_dead_letters_alone_make_nothing_to_prepare(tmp_path: Path) -> None:
    from tests.segments import segment

    config = table_config(tmp_path)
    store = Store.open(config.root)
    data, info = segment(0, 1, [bad(0)])
    store.put_new(info.key, data)
    compact(store, info.topic, info.epoch)
    with pytest.raises(DataError, match="flts dlq list"):
        prepare(config)


def test_swept_files_are_told(tmp_path: Path) -> None:
    config, entry = filled(tmp_path, load_rows())
    store = Store.open(config.root)
    store.delete(f"{table_folder(TOPIC, EPOCH)}/{entry.files[3].path}")
    with pytest.raises(DataError, match="1 of 10 files are gone"):
        prepare(config)


def test_altered_files_are_told(tmp_path: Path) -> None:
    config, entry = filled(tmp_path, load_rows())
    store = Store.open(config.root)
    key = f"{table_folder(TOPIC, EPOCH)}/{entry.files[3].path}"
    data = store.get(key)
    altered = data.replace(b"parquet-cpp", b"parquet-CPP")
    assert altered != data
    store.put(key, altered)  # as readable and as long as before
    with pytest.raises(DataError, match=r"changed since it was written \(SHA-256") as told:
        prepare(config)
    assert told.value.field == "data.snapshot"


@pytest.mark.parametrize(
    "data", [{"layout": "wide", "targets": ["a"]}, {"test_path": "x.csv"}], ids=["wide", "test"]
)
def test_settings_of_files_do_not_go_with_a_snapshot(data: dict[str, Any]) -> None:
    config = parse_config({"name": "x", "data": {"snapshot": 1, **data}})
    with pytest.raises(ConfigError, match=r"data\.snapshot reads the table"):
        find_source(config)


def test_the_newest_life_of_the_topic_is_read(tmp_path: Path) -> None:
    config, _ = filled(tmp_path, load_rows())
    store = Store.open(config.root)
    again = "0000000000000001"
    store_rows(store, load_rows(0, 24), {}, epoch=again)
    compact(store, TOPIC, again)
    assert find_snapshot(store, TOPIC, "latest").epoch == again


def test_a_snapshot_has_a_name() -> None:
    reference = {"topic": "a.b-c", "epoch": "0f", "number": 12, "ranges": {}}
    assert parse_snapshot_name(snapshot_name(reference)) == {
        "topic": "a.b-c", "epoch": "0f", "number": 12
    }  # fmt: skip
    for wrong in ("", "load", "load/0f/x", "load/0f"):
        with pytest.raises(ArtifactError, match="names no snapshot"):
            parse_snapshot_name(wrong)
