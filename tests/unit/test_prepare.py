"""From files to a prepared set and back into arrays, in this process."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, origins_in
from flts_ray.prepare.calendar import calendar_features
from flts_ray.prepare.loading import PreparedSet, open_prepared
from flts_ray.prepare.run import prepare
from flts_ray.prepare.steps import attempt
from tests.raw_files import contents, load_config, write_load


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_load(tmp_path / "in")
    return load_config(tmp_path)


def test_every_series_is_prepared_or_quarantined(config: Config) -> None:
    made = prepare(config)
    assert sorted(made.ids()) == ["s0", "s1", "s2", "s3", "s4"]
    left_out = {row["unique_id"]: row["code"] for row in made.quarantine().to_pylist()}
    assert left_out == {"flat": "constant", "huge": "failed", "short": "too_short"}
    assert made.manifest.quarantine == {"constant": 1, "failed": 1, "too_short": 1}
    assert made.manifest.input_rows == 5 * 240 + 240 + 240 + 5
    assert made.manifest.series == 5
    assert sum(made.manifest.splits.values()) == made.manifest.rows == 5 * 240


def test_arrays_hold_what_the_files_said(config: Config) -> None:
    data = prepare(config).arrays(["s3", "s1"])
    assert data.ids == ("s3", "s1")
    assert data.y[data.rows(0)].tolist() == [30 + i % 24 + i % 5 for i in range(240)]
    assert data.past[data.rows(1), 0].tolist() == [i % 9 for i in range(240)]
    assert data.contract.future[-1] == "workday"
    assert data.future[data.rows(1), -1].tolist() == [float(i % 3 == 0) for i in range(240)]
    assert (data.valid_end.tolist(), data.train_end.tolist()) == ([204, 204], [173, 173])
    ds = steps_after(data.start_us[0], np.arange(240), data.contract)
    calendar = calendar_features(ds, "Europe/Berlin", "1h", "DE")
    np.testing.assert_array_equal(data.future[data.rows(0), :-1], calendar)
    assert len(origins_in(data, "test", 24, 6)[0]) > 0


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_a_sample_holds_so_many_of_the_series(config: Config, most: int) -> None:
    made = prepare(config)
    whole, some = made.arrays(), made.sample(most)
    assert some.n_series == most and made.sample(most).ids == some.ids
    rows = [whole.stats.row_of[name] for name in some.ids]
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(some.y, whole.take(rows).y)
    np.testing.assert_array_equal(some.stats.scale, whole.stats.scale[rows])


def test_a_sample_does_not_go_by_the_alphabet(tmp_path: Path) -> None:
    names = [f"{region}/cell-{i:02}" for region in ("east", "north", "west") for i in range(20)]
    (tmp_path / "in").mkdir()
    lines = [
        f"2024-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z,{name},{hour % 24 + hour % 5}"
        for name in names
        for hour in range(240)
    ]
    (tmp_path / "in" / "load.csv").write_text("\n".join(["ds,unique_id,y", *lines]) + "\n")
    raw = {
        "name": "many",
        "root": str(tmp_path / "root"),
        "data": {"path": str(tmp_path / "in"), "id": "unique_id", "frequency": "1h"},
        "prepare": {"engine": "local", "buckets": 1},
        "task": {"horizon": 6},
    }
    made = prepare(parse_config(raw))
    regions = [name.split("/")[0] for name in made.sample(30).ids]
    assert len(made.buckets()) == 1
    assert all(4 <= regions.count(region) <= 16 for region in ("east", "north", "west"))


def test_a_sample_of_few_series_is_the_set(config: Config) -> None:
    made = prepare(config)
    assert made.sample(5).ids == made.sample(1000).ids == made.ids()


def test_a_sample_reads_no_more_buckets_than_it_needs(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = prepare(config), list[str]()
    load = PreparedSet._load

    def noted(self: PreparedSet, names: Sequence[str]) -> SeriesArrays:
        read.extend(names)
        return load(self, names)

    monkeypatch.setattr(PreparedSet, "_load", noted)
    first = made.bucket(made.buckets()[0]).n_series
    read.clear()
    made.sample(first)
    assert read == [made.buckets()[0]]


def test_a_census_tells_of_every_series(config: Config) -> None:
    made = prepare(config)
    first = ("s3", "s1")
    census = made.census(first)
    assert census.stats.ids[:2] == first
    assert census.stats.ids[2:] == tuple(name for name in made.ids() if name not in first)
    whole = made.arrays(census.stats.ids)
    for name in ("mean", "std", "scale", "clip_lo", "clip_hi"):
        np.testing.assert_array_equal(getattr(census.stats, name), getattr(whole.stats, name))
    begins = steps_after(whole.start_us, whole.valid_end, whole.contract)
    np.testing.assert_array_equal(census.test_us, begins)


def test_all_arrays_are_those_of_each_series(config: Config) -> None:
    made = prepare(config)
    whole = made.arrays()
    assert whole.ids == made.ids()
    for i, name in enumerate(whole.ids):
        one = made.arrays([name])
        np.testing.assert_array_equal(whole.y[whole.rows(i)], one.y)
        np.testing.assert_array_equal(whole.future[whole.rows(i)], one.future)
        assert whole.stats.scale[i] == one.stats.scale[0]


def test_static_text_becomes_codes_of_sorted_categories(config: Config) -> None:
    made = prepare(config)
    assert made.manifest.categories == {"region": ["east", "north", "west"]}
    data = made.arrays(["s0", "s1", "s2", "s3"])
    assert data.contract.static == ("floor", "region")
    assert data.static[:, 1].tolist() == [1.0, 2.0, 0.0, 1.0]
    assert data.static[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_same_hash_is_made_once(config: Config) -> None:
    calls: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(f"{stage} {done}/{total}")

    first = prepare(config, progress=progress)
    assert calls[0] == "split 0/3"
    assert "prepare 3/3" in calls
    calls.clear()
    again = prepare(config, progress=progress)
    assert again == first
    assert calls == []
    prepare(config, force=True, progress=progress)
    assert calls != []


def test_two_runs_give_the_same_bytes(config: Config, tmp_path: Path) -> None:
    first = contents(prepare(config))
    second = contents(prepare(config.model_copy(update={"root": str(tmp_path / "other")})))
    assert first == second
    before = contents(prepare(config))
    assert contents(prepare(config, force=True)) == before


def test_no_file_tells_the_place_or_the_machine(config: Config, tmp_path: Path) -> None:
    manifest = (Path(prepare(config).location) / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert {one["name"] for one in json.loads(manifest)["inputs"]} == {"a.csv", "b.csv", "c.csv"}


def test_the_number_of_buckets_changes_no_series(config: Config) -> None:
    several = prepare(config)
    policy = config.prepare.model_copy(update={"buckets": 1})
    single = prepare(config.model_copy(update={"prepare": policy}))
    assert several.hash != single.hash
    first, second = several.arrays(["s0", "s4"]), single.arrays(["s0", "s4"])
    np.testing.assert_array_equal(first.y, second.y)
    np.testing.assert_array_equal(first.stats.clip_hi, second.stats.clip_hi)


def test_nothing_is_left_of_the_spilled_pieces(config: Config) -> None:
    prepare(config)
    assert not list(Path(config.root).rglob("*.arrow"))


def test_nothing_is_left_of_a_failed_run(config: Config, tmp_path: Path) -> None:
    (tmp_path / "in" / "d.csv").write_text("time,id,load\n2024-01-01T00:00:00Z,x,1\n")
    (tmp_path / "in" / "e.csv").write_text("time,id,load\n2024-01-01T00:00:00Z,x,1\n")
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert "d.csv" in str(caught.value)
    assert "e.csv" in str(caught.value)
    assert not [path for path in Path(config.root).rglob("*") if path.is_file()]


def test_a_damaged_set_is_made_again(config: Config) -> None:
    made = prepare(config)
    victim = next(Path(made.location).glob("data/*.parquet"))
    before = victim.read_bytes()
    victim.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        made.arrays()
    prepare(config)
    assert victim.read_bytes() == before


def test_a_changed_byte_is_refused(config: Config) -> None:
    made = prepare(config)
    victim = next(Path(made.location).glob("series/*.parquet"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="SHA-256"):
        made.arrays()


def test_open_prepared_finds_the_set_by_its_hash(config: Config) -> None:
    made = prepare(config)
    opened = open_prepared(config.root, made.hash)
    assert isinstance(opened, PreparedSet)
    assert opened == made
    assert opened.ids() == made.ids()
    with pytest.raises(ArtifactError, match="no complete prepared set"):
        open_prepared(config.root, "ff" * 32)


def test_unknown_series_are_named_with_a_suggestion(config: Config) -> None:
    with pytest.raises(DataError) as caught:
        prepare(config).arrays(["s1", "s33", "flat"])
    assert caught.value.field == "unique_id"
    assert "s33: unknown; did you mean s3?" in str(caught.value)
    assert "flat: in quarantine, every value is 7" in str(caught.value)


def test_names_are_compared_once_and_not_in_a_large_set(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    compare = difflib.get_close_matches

    def counted(name: str, known: Sequence[str], n: int) -> list[str]:
        seen.append(name)
        return compare(name, known, n)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    made = prepare(config)
    with pytest.raises(DataError, match=r"s44: unknown$"):
        made.arrays(["flat", "s33", "s44"])
    assert seen == ["s33"]
    monkeypatch.setattr("flts_ray.prepare.loading.COMPARED", made.manifest.series - 1)
    monkeypatch.setattr(PreparedSet, "ids", lambda self: pytest.fail("all names were read"))
    with pytest.raises(DataError, match=r"s33: unknown$"):
        made.arrays(["s33"])
    assert seen == ["s33"]


def test_all_quarantined_shows_the_counts(config: Config) -> None:
    task = config.task.model_copy(update={"horizon": 5000})
    with pytest.raises(DataError, match="every series was quarantined") as caught:
        prepare(config.model_copy(update={"task": task}))
    assert "too_short: 8 series" in str(caught.value)
    (report,) = Path(config.root).rglob("quarantine.parquet")
    assert str(report) in str(caught.value)
    assert not list(Path(config.root).rglob("manifest.json"))


def test_unknown_holiday_code_is_refused_before_any_work(config: Config) -> None:
    policy = config.prepare.model_copy(update={"holidays": "AU-VCI"})
    with pytest.raises(ConfigError, match="AU-VIC"):
        prepare(config.model_copy(update={"prepare": policy}))


def test_test_files_are_the_test_span(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    write_load(tmp_path / "test", begin=240, length=48)
    data: dict[str, Any] = {"test_path": str(tmp_path / "test")}
    made = prepare(load_config(tmp_path, data=data))
    arrays = made.arrays(["s0"])
    assert (arrays.lengths.tolist(), arrays.valid_end.tolist()) == ([288], [240])
    assert made.manifest.splits["test"] == 48 * made.manifest.series


def test_undeclared_frequency_is_inferred(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    made = prepare(load_config(tmp_path, data={"frequency": None}))
    assert made.contract.freq == "1h"
    assert made.contract.season == 24


def test_local_engine_needs_no_ray(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert prepare(config).manifest.series == 5


def test_errors_for_the_user_cross_processes_as_values() -> None:
    def step(index: int) -> dict[str, Any]:
        raise DataError("bad row", field="ds")

    told = attempt(step, 3)
    assert json.loads(json.dumps(told)) == {
        "index": 3,
        "error": {"kind": "DataError", "message": "bad row", "field": "ds"},
    }


def test_unlike_kinds_of_a_static_column_are_refused(config: Config, tmp_path: Path) -> None:
    head, *lines = (tmp_path / "in" / "b.csv").read_text().splitlines()
    numbered = [line.rpartition(",")[0] + ",7" for line in lines]
    (tmp_path / "in" / "b.csv").write_text("\n".join([head, *numbered]))
    with pytest.raises(DataError, match="column region: text in some files"):
        prepare(config)


def test_an_empty_static_column_is_unknown(config: Config, tmp_path: Path) -> None:
    head, *lines = (tmp_path / "in" / "b.csv").read_text().splitlines()
    emptied = [line.rpartition(",")[0] + "," for line in lines]
    (tmp_path / "in" / "b.csv").write_text("\n".join([head, *emptied]))
    made = prepare(config)
    assert made.manifest.categories == {"region": ["north", "west"]}
    assert made.arrays(["s1", "s2", "s3"]).static[:, 1].tolist() == [1.0, -1.0, -1.0]


def test_rows_at_and_after_until_are_left_out(tmp_path: Path) -> None:
    rows = "\n".join(
        f"2024-01-{1 + h // 24:02d} {h % 24:02d}:00,{h % 24 + h / 100}" for h in range(600)
    )
    (tmp_path / "load.csv").write_text(f"ds,y\n{rows}\n")
    raw = {
        "name": "cut",
        "root": str(tmp_path / "store"),
        "data": {
            "path": str(tmp_path / "load.csv"),
            "time_zone": "Europe/Berlin",
            "until": "2024-01-21",
        },
        "task": {"horizon": 6},
    }
    data = prepare(parse_config(raw)).arrays()
    assert data.lengths.tolist() == [480]
