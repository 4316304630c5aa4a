from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.sources import files
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_batches, read_input

Reader = Callable[..., pa.Table]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Writes content (text, bytes or a table) to a file and reads it with the given fields."""

    def act(content: str | bytes | pa.Table, name: str = "load.csv", **fields: Any) -> pa.Table:
        path = tmp_path / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        data = DataConfig(path=str(path), **fields)
        return read_input(find_inputs(data)[0], data)

    return act


def refused(read: Reader, content: str | bytes | pa.Table, **fields: Any) -> str:
    with pytest.raises(DataError) as error:
        read(content, **fields)
    return str(error.value)


def stamps(table: pa.Table) -> list[str]:
    return [f"{moment:%d %H:%M}" for moment in table.column("ds").to_pylist()]


def rows(count: int, bad: dict[int, str] | None = None) -> str:
    """Hourly rows from line 2 on; `bad` replaces whole lines by their number."""
    start = np.datetime64("2020-01-01T00")
    lines = ["ds,y", *(f"{start + np.timedelta64(i, 'h')}:00,{i}.5" for i in range(count))]
    for number, text in (bad or {}).items():
        lines[number - 1] = text
    return "\n".join(lines) + "\n"


def test_long_csv(read: Reader) -> None:
    table = read(
        "id,when,load,temp,holiday,kind,other\n"
        "b,2020-01-01 00:00,1.5,20,True,house,x\n"
        "a,2020-01-01T01:00:00Z,,-inf,false,,y\n"
        "b,2020-01-01 00:00,NaN,1e3,0,flat,\n",
        time="when",
        id="id",
        target="load",
        covariates={"temp": "past", "holiday": "known_future", "kind": "static"},
    )
    assert table.schema.to_string() == (
        "unique_id: string\nds: timestamp[us, tz=UTC]\ny: double\ntemp: double\n"
        "holiday: double\nkind: string\nis_test: bool\norder: int64"
    )
    assert table.column("unique_id").to_pylist() == ["b", "a", "b"]
    assert stamps(table) == ["01 00:00", "01 01:00", "01 00:00"]
    np.testing.assert_array_equal(table.column("y"), [1.5, np.nan, np.nan])
    assert table.column("temp").to_pylist() == [20, -np.inf, 1000]
    assert table.column("holiday").to_pylist() == [1, 0, 0]
    assert table.column("kind").to_pylist() == ["house", None, "flat"]
    assert table.column("order").to_pylist() == [0, 1, 2]
    assert table.column("y").null_count == 0


def test_wide_files_give_a_series_for_each_target(read: Reader) -> None:
    content = "ds,up,down\n2020-01-01,1,2\n2020-01-02,3,4\n"
    wide = {"layout": "wide", "targets": ("down", "up")}
    table = read(content, **wide)
    assert table.column("unique_id").to_pylist() == ["down", "down", "up", "up"]
    assert table.column("y").to_pylist() == [2, 4, 1, 3]
    assert table.column("order").to_pylist() == [0, 1, 0, 1]
    table = read(content, name="lte_North_7.csv", id_from_path="lte_([A-Za-z]+)", **wide)
    assert set(table.column("unique_id").to_pylist()) == {"North/down", "North/up"}
    table = read("ds,s,up,down\n2020-01-01,x,1,2\n", id="s", **wide)
    assert table.column("unique_id").to_pylist() == ["x/down", "x/up"]


def test_a_file_without_ids_is_one_series_named_after_it(read: Reader) -> None:
    assert set(read(rows(3), name="north.csv").column("unique_id").to_pylist()) == {"north"}


def test_order_and_test_mark(tmp_path: Path) -> None:
    (tmp_path / "x_test.csv").write_text(rows(2))
    data = DataConfig(path=str(tmp_path), test_path=str(tmp_path / "x_test.csv"))
    table = read_input(find_inputs(data)[0], data, order_base=1000)
    assert table.column("order").to_pylist() == [1000, 1001]
    assert table.column("is_test").to_pylist() == [True, True]
    assert set(table.column("unique_id").to_pylist()) == {"x"}


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_usual_dialects(read: Reader, mark: str) -> None:
    text = f'\ufeff"ds"{mark}y\r\n"2020-01-01"{mark}1\r\n\r\n2020-01-02{mark}2\r\n\r\n\r\n'
    for table in (read(text), read(gzip.compress(text.encode()), name="load.csv.gz")):
        assert table.column("y").to_pylist() == [1, 2]
        assert table.column("order").to_pylist() == [0, 2]


def test_typed_parquet(read: Reader) -> None:
    table = pa.table(
        {
            "ds": pa.array([0, 3_600_000], pa.timestamp("ms")),
            "id": pa.array([7, 8], pa.int16()),
            "y": pa.array([1, None], pa.int32()),
            "on": [True, None],
            "zone": pa.array(["a", "b"]).dictionary_encode(),
            "size": pa.array(["1", "x"]),
        }
    )
    covariates = {"on": "past", "zone": "static", "size": "static"}
    found = read(table, name="t.parquet", id="id", covariates=covariates, time_zone="Europe/Berlin")
    assert found.column("unique_id").to_pylist() == ["7", "8"]
    assert stamps(found) == ["31 23:00", "01 00:00"]
    np.testing.assert_array_equal(found.column("y"), [1, np.nan])
    np.testing.assert_array_equal(found.column("on"), [1, np.nan])
    assert found.column("zone").to_pylist() == ["a", "b"]
    assert found.column("size").to_pylist() == ["1", "x"]


def test_static_numbers_are_numbers_in_every_batch(
    read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 200)
    body = "".join(
        f"2020-01-{day:02d},1,{day},{day if day < 28 else 'x'}\n" for day in range(1, 31)
    )
    covariates = {"n": "static", "mixed": "static"}
    table = read("ds,y,n,mixed\n" + body, covariates=covariates)
    assert (table.column("n").type, table.column("mixed").type) == (pa.float64(), pa.string())
    assert table.column("mixed").to_pylist()[-4:] == ["27", "x", "x", "x"]


def test_batches_are_bounded_and_make_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 500)
    (tmp_path / "x.csv").write_text(rows(200))
    data = DataConfig(path=str(tmp_path))
    item = find_inputs(data)[0]
    parts = list(read_batches(item, data))
    assert len(parts) > 5 and max(map(len, parts)) < 50
    assert pa.concat_tables(parts).equals(read_input(item, data))
    assert read_input(item, data).column("order").to_pylist() == list(range(200))


def test_the_repeated_hour_is_told_apart_across_batches(
    read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 50)
    clock = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    body = "".join(
        f"2014-04-06 {time},{name},{i}\n" for i, time in enumerate(clock) for name in "ab"
    )
    table = read("ds,id,y\n" + body, id="id", time_zone="Australia/Melbourne")
    expected = ["14:30", "15:00", "15:30", "16:00", "16:30", "17:00"]
    assert stamps(table)[::2] == stamps(table)[1::2] == [f"05 {time}" for time in expected]
    assert table.column("order").to_pylist() == list(range(12))


def test_the_zone_of_stamps_may_differ_from_the_zone_of_the_load(read: Reader) -> None:
    zones = {"time_zone": "Australia/Melbourne", "stamp_time_zone": "UTC"}
    assert stamps(read("ds,y\n2014-04-06 02:00,1\n", **zones)) == ["06 02:00"]


@pytest.mark.parametrize("line", [2, 37, 400])
def test_one_bad_stamp_is_named(read: Reader, line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1000)
    text = refused(read, rows(500, {line: "2020-13-01,1"}))
    assert "load.csv: 1 problem" in text
    assert f"line {line}, column 'ds': '2020-13-01': is no time; write 2014-01-31" in text


def test_every_problem_is_in_one_error(read: Reader) -> None:
    bad = {3: "yesterday,1", 5: ",2", 8: "2020-01-01 06:00,high", 9: '2020-01-01 07:00,"1,5"'}
    text = refused(read, rows(20, bad | {10: '2020-01-01 08:00,"1.234,5"', 12: "2020-01-01"}))
    assert "6 problem(s)" in text
    assert "line 3, column 'ds': 'yesterday'" in text
    assert "line 5, column 'ds': empty: every row needs a time" in text
    assert "line 8, column 'y': 'high': write a number" in text
    assert "line 9, column 'y': '1,5': numbers need a decimal point, not a comma" in text
    assert "line 10, column 'y': '1.234,5'" in text and "thousands separators" in text
    assert "line 12: 1 fields, the header has 2" in text


def test_lines_are_right_after_blank_and_broken_ones(read: Reader) -> None:
    bad = {4: "", 6: "2020-01-01", 7: "   ", 9: "x,1", 11: "1,2,3", 15: "2020-01-01 00:00,oops"}
    text = refused(read, rows(20, bad))
    assert "4 problem(s)" in text
    for place in ("line 6:", "line 9, column 'ds'", "line 11:", "line 15, column 'y'"):
        assert place in text


def test_at_most_twenty_problems_are_shown(read: Reader) -> None:
    text = refused(read, rows(1000, dict.fromkeys(range(100, 900), "bad,1")))
    assert "800 problem(s)" in text and "... and 780 more" in text
    assert text.count("'bad'") == 20


def test_missing_columns_say_what_was_meant(read: Reader) -> None:
    text = refused(read, "Ds,yy,temperature\n2020,1,2\n", covariates={"temp": "past"})
    assert "column 'ds' (data.time) is missing; did you mean 'Ds'? set data.time" in text
    assert "column 'y' (data.target) is missing; did you mean 'yy'?" in text
    assert "column 'temp' (data.covariates) is missing; did you mean 'temperature'?" in text
    assert "columns: 'Ds', 'yy', 'temperature'" in text
    assert "data.targets" in refused(read, rows(2), layout="wide", targets=("up",))
    assert "data.id" in refused(read, rows(2), id="station")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"ds,y\n", "no rows"),
        (b"ds,y", "no rows"),
        (b"ds,y\n\n\n,\n", "no rows"),
        (bytes(range(256)) * 50, "no UTF-8 text"),
        (b"PK\x03\x04\0\0\0\0" * 99, "no UTF-8 text"),
        ("ds,y\n".encode("utf-16"), "no UTF-8 text"),
        (b"ds^y\n2020-01-01^1\n", "'ds^y'"),
        (b"ds,y,y\n2020-01-01,1,2\n", "column 'y' (data.target) is there 2 times"),
        (b"ds,y\n2020-01-0\xe4,1\n", "CSV text in UTF-8"),
    ],
)
def test_hostile_csv(read: Reader, content: bytes, message: str) -> None:
    text = refused(read, content)
    assert message in text and "load.csv" in text


def test_text_that_is_not_wanted_may_be_of_any_encoding(read: Reader) -> None:
    table = read("ds,y,name\n2020-01-01,1,Köln\n".encode("latin-1"))
    assert table.column("y").to_pylist() == [1]


def test_damaged_files(read: Reader) -> None:
    whole = gzip.compress(rows(5000).encode())
    assert "load.csv.gz" in refused(read, whole[:-200], name="load.csv.gz")
    assert "cannot be read" in refused(read, b"no gzip", name="load.csv.gz")
    for content in (b"", b"PAR1 and no more", rows(9).encode()):
        assert "cannot be read as Parquet" in refused(read, content, name="load.parquet")


def test_parquet_without_rows(read: Reader) -> None:
    table = pa.table({"ds": pa.array([], pa.timestamp("us")), "y": pa.array([], pa.float64())})
    assert "no rows" in refused(read, table, name="load.parquet")


def test_wrong_types_in_parquet(read: Reader) -> None:
    table = pa.table({"ds": [1.5, None], "y": [True, None], "id": [[1], [2]]})
    text = refused(read, table, name="load.parquet", id="id")
    assert "row 1, column 'ds': 1.5" in text and "row 2, column 'ds': empty" in text
    assert "row 1, column 'y': True" in text and "row 2, column 'y'" not in text
    assert "row 2, column 'id': [2]: series names are text" in text


def test_rows_without_a_series_name(read: Reader) -> None:
    text = refused(read, "ds,y,id\n2020-01-01,1,a\n2020-01-02,1, \n2020-01-03,1,\n", id="id")
    assert "2 problem(s)" in text and "line 3, column 'id': empty: every row needs" in text
    table = pa.table({"ds": ["2020-01-01"], "y": [1.0], "id": pa.array([None], pa.string())})
    assert "row 1, column 'id'" in refused(read, table, name="x.parquet", id="id")


def test_covariates_may_not_take_the_panels_names(read: Reader) -> None:
    text = refused(read, "t,v,y\n2020,1,1\n", time="t", target="v", covariates={"y": "past"})
    assert "'y'" in text and "rename" in text


def test_a_vanished_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(rows(2))
    data = DataConfig(path=str(path))
    item = find_inputs(data)[0]
    path.unlink()
    with pytest.raises(DataError, match=r"x\.csv: cannot be read"):
        read_input(item, data)
