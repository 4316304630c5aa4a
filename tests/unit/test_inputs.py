from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.sources.inputs import find_inputs


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"ds,y\n{name},1\n")


def found(path: Any, folder: Path, **fields: Any) -> list[str]:
    return [
        os.path.relpath(item.uri, folder) for item in find_inputs(DataConfig(path=path, **fields))
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "a.csv", "b.csv.gz", "sub/c.parquet", "sub/d.tsv", "readme.txt")
    write(tmp_path, ".hidden.csv", "_SUCCESS.csv", "_temporary/e.csv", ".git/f.csv")
    return tmp_path


def test_a_folder_is_searched_for_known_files(folder: Path) -> None:
    assert found(str(folder), folder) == ["a.csv", "b.csv.gz", "sub/c.parquet", "sub/d.tsv"]
    assert found(str(folder), folder, format="parquet") == ["sub/c.parquet"]


def test_globs_and_lists(folder: Path) -> None:
    assert found(f"{folder}/*.csv", folder) == ["a.csv"]
    assert found(f"{folder}/**/*.parquet", folder) == ["sub/c.parquet"]
    assert found((f"{folder}/sub", f"{folder}/a.csv", f"{folder}/sub/../a.csv"), folder) == [
        "a.csv",
        "sub/c.parquet",
        "sub/d.tsv",
    ]


def test_a_named_file_is_taken_whatever_its_name(folder: Path) -> None:
    assert found(f"{folder}/_SUCCESS.csv", folder) == ["_SUCCESS.csv"]
    write(folder, "odd[1].csv")
    assert found(f"{folder}/odd[1].csv", folder) == ["odd[1].csv"]
    assert found(f"{folder}/readme.txt", folder, format="csv") == ["readme.txt"]
    with pytest.raises(DataError, match=r"readme\.txt.*data\.format"):
        find_inputs(DataConfig(path=f"{folder}/readme.txt"))


def test_relative_and_home_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert found("a.csv", folder) == found("~/a.csv", folder) == ["a.csv"]


def test_nothing_found_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        find_inputs(DataConfig(path=str(tmp_path / "*.csv")))
    text = str(error.value)
    assert str(tmp_path / "*.csv") in text and os.getcwd() in text and ".parquet" in text
    with pytest.raises(DataError, match="matches no file"):
        find_inputs(DataConfig(path=str(tmp_path)))


def test_a_file_that_both_paths_match_is_a_test_file(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "a_test.csv")
    inputs = find_inputs(DataConfig(path=str(tmp_path), test_path=f"{tmp_path}/*_test.csv"))
    assert [(item.name, item.is_test) for item in inputs] == [
        ("a.csv", False),
        ("a_test.csv", True),
    ]


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    data = DataConfig(path=str(tmp_path))
    (tmp_path / "a.csv").write_text("ds,y\n")
    (tmp_path / "b.csv").write_text("ds,y\n")
    (tmp_path / "c.csv").write_text("ds,z\n")
    os.utime(tmp_path / "b.csv", (1, 1))
    a, b, c = find_inputs(data)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert (a.size, len(a.fingerprint)) == (5, 64)


def test_series_names_from_files(tmp_path: Path) -> None:
    write(tmp_path, "north.csv", "north_test.csv", "south.csv.gz")

    def series(**fields: Any) -> list[str]:
        test = f"{tmp_path}/*_test.csv"
        return [
            item.series
            for item in find_inputs(DataConfig(path=str(tmp_path), test_path=test, **fields))
        ]

    assert series() == ["north", "north", "south"]
    assert series(id_from_path=r"^([a-z])") == ["n", "n", "s"]
    assert series(id="station") == ["", "", ""]
    assert series(layout="wide", targets=("up",)) == ["north", "north", "south"]
    with pytest.raises(DataError, match=r"id_from_path.*north"):
        series(id_from_path=r"^(sou)")


def test_a_wide_file_and_its_test_file_need_no_name(tmp_path: Path) -> None:
    write(tmp_path, "load.csv", "load_test.csv")
    data = DataConfig(
        path=f"{tmp_path}/load.csv",
        test_path=f"{tmp_path}/load_test.csv",
        layout="wide",
        targets=("up",),
    )
    assert [item.series for item in find_inputs(data)] == ["", ""]


def test_formats_by_ending(tmp_path: Path) -> None:
    (tmp_path / "x.CSV.GZ").write_bytes(gzip.compress(b"ds,y\n"))
    write(tmp_path, "y.parquet")
    assert [item.format for item in find_inputs(DataConfig(path=str(tmp_path)))] == [
        "csv",
        "parquet",
    ]
