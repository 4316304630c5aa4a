from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.errors import DataError
from flts_ray.jobs.forecast_bucket import REFUSED
from flts_ray.jobs.forecast_output import OutputFolder

TABLE = pa.table({"unique_id": ["a", "b"], "mean": [1.0, 2.0]})
NOBODY = REFUSED.empty_table()
SOMEBODY = pa.table([["c"], ["y"], ["short"]], schema=REFUSED)


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(str(tmp_path / "out"))


def names(tmp_path: Path) -> list[str]:
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in found)


def test_a_complete_folder_reads_as_one_table_of_forecasts(
    folder: OutputFolder, tmp_path: Path
) -> None:
    assert folder.begin("x", force=False) is None
    files = [*folder.write(0, TABLE, NOBODY), *folder.write(3, TABLE, SOMEBODY)]
    assert folder.manifest() is None
    folder.finish({"of": "x", "files": files})
    assert names(tmp_path) == [
        "_manifest.json", "_refused/part-00003.parquet", "part-00000.parquet",
        "part-00003.parquet",
    ]  # fmt: skip
    for file in files:
        data = (tmp_path / "out" / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    assert pq.read_table(tmp_path / "out").num_rows == 4
    assert pq.read_table(tmp_path / "out" / "_refused" / "part-00003.parquet").equals(SOMEBODY)


def test_the_same_again_is_found_and_other_forecasts_are_kept(
    folder: OutputFolder, tmp_path: Path
) -> None:
    folder.begin("x", force=False)
    folder.write(0, TABLE, NOBODY)
    manifest = {"of": "x", "version": "3"}
    folder.finish(manifest)
    assert folder.begin("x", force=False) == manifest
    with pytest.raises(DataError, match=r"forecasts by version 3 of another .* --force"):
        folder.begin("y", force=False)
    assert names(tmp_path) == ["_manifest.json", "part-00000.parquet"]
    assert folder.begin("y", force=True) is None
    assert names(tmp_path) == ["_unfinished.json"]


def test_what_was_begun_but_not_finished_is_begun_anew(
    folder: OutputFolder, tmp_path: Path
) -> None:
    folder.begin("x", force=False)
    folder.write(7, TABLE, SOMEBODY)
    assert folder.begin("y", force=False) is None
    assert names(tmp_path) == ["_unfinished.json"]


def test_a_folder_with_anything_else_is_left_alone(folder: OutputFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("part-00000.parquet", "load.csv"):
        (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(DataError, match=r"it holds load\.csv and more; choose another folder"):
        folder.begin("x", force=False)
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps({"entries": []}))
    with pytest.raises(DataError, match=r"_manifest\.json is not one of forecasts"):
        folder.begin("x", force=False)
    folder.begin("x", force=True)
    assert names(tmp_path) == ["_unfinished.json", "load.csv"]
