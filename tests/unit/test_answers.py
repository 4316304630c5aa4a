from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.errors import DataError
from flts_ray.jobs.answers import check_output, write_answers

ANSWERS = [
    {
        "forecast_id": f"id{n}",
        "model": {"name": "demo", "version": "3", "kind": "ar"},
        "units": "MW",
        "forecasts": [
            {
                "unique_id": f"s{n}",
                "ds": ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"],
                "mean": [1.5, 2.5],
                "median": [1.0, 2.0],
                "quantiles": {"0.1": [0.5, 1.5], "0.9": [2.0, 3.0]},
                **({"cold_start": True} if n == 1 else {}),
            }
        ],
    }
    for n in range(2)
]
COLUMNS = [
    "unique_id", "ds", "mean", "median", "q0.1", "q0.9", "cold_start", "model_version",
    "forecast_id",
]  # fmt: skip


def test_csv_has_one_row_a_series_and_step(tmp_path: Path) -> None:
    assert write_answers(ANSWERS, tmp_path / "out.csv") == 4
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == COLUMNS
    assert rows[0]["cold_start"] == "False"
    assert list(rows[3].values()) == [
        "s1", "2024-01-01T01:00:00Z", "2.5", "2.0", "1.5", "3.0", "True", "3", "id1",
    ]  # fmt: skip


def test_parquet_holds_the_same_with_types(tmp_path: Path) -> None:
    assert write_answers(ANSWERS, tmp_path / "out.PARQUET") == 4
    table = pq.read_table(tmp_path / "out.PARQUET")
    assert table.column_names == COLUMNS
    assert table.schema.field("ds").type == pa.timestamp("us", tz="UTC")
    last = table.slice(3).to_pylist()[0]
    assert last["ds"] == datetime(2024, 1, 1, 1, tzinfo=UTC)
    assert (last["unique_id"], last["q0.9"], last["cold_start"]) == ("s1", 3.0, True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("out.xlsx", r"must be \.csv or \.parquet"), ("no/out.csv", "no such folder")],
)
def test_a_file_that_cannot_be_written_is_told_beforehand(
    tmp_path: Path, name: str, problem: str
) -> None:
    with pytest.raises(DataError, match=rf"--output .*{name}: .*{problem}"):
        check_output(tmp_path / name)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(DataError, match=r"--output .*out\.csv"):
        write_answers(ANSWERS, tmp_path / "out.csv")
