"""Rows of a set of files, told by one footer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.config import parse_config
from flts_ray.prepare.density import rows_expected
from flts_ray.prepare.run import prepare
from flts_ray.sources.inputs import Input, find_inputs


def inputs_of(folder: Path, pattern: str) -> list[Input]:
    raw = {"name": "load", "data": {"path": f"{folder}/{pattern}", "id": "unique_id"}}
    return find_inputs(parse_config(raw).data)


def write_flat(folder: Path, rows: int, name: str = "a") -> None:
    ds = pa.array([i * 3_600_000_000 for i in range(rows)], pa.timestamp("us", "UTC"))
    columns = {"unique_id": ["s"] * rows, "ds": ds, "y": [float(i % 5) for i in range(rows)]}
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def test_rows_of_equal_files_are_those_of_one_times_their_number(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_flat(tmp_path, 500, name)
    assert rows_expected(inputs_of(tmp_path, "*.parquet")) == 1500
    assert rows_expected(inputs_of(tmp_path, "*.parquet"), targets=2) == 3000


def test_the_largest_file_tells_how_dense_they_are(tmp_path: Path) -> None:
    write_flat(tmp_path, 20_000)
    write_flat(tmp_path, 1, "b")
    found = inputs_of(tmp_path, "*.parquet")
    share = found[1].size / found[0].size
    assert rows_expected(found) == round(20_000 * (1 + share))


def test_text_and_damaged_files_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("unique_id,ds,y\ns,2024-01-01T00:00,1\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    assert rows_expected(inputs_of(tmp_path, "*")) == 0
    assert rows_expected([]) == 0


def test_dense_files_make_more_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(tmp_path, 400)
    monkeypatch.setattr("flts_ray.prepare.buckets.BUCKET_ROWS", 100)
    config = parse_config(
        {
            "name": "load",
            "root": str(tmp_path / "root"),
            "data": {"path": f"{tmp_path}/*.parquet", "id": "unique_id", "frequency": "1h"},
            "prepare": {"engine": "local"},
        }
    )
    made = prepare(config)
    assert made.manifest.buckets == 4
    assert made.manifest.rows == 400
