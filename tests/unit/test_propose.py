from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from math import gcd
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flts_ray.config import Config, load_config
from flts_ray.errors import ConfigError, DataError
from flts_ray.evaluate.backtest import choose_origins
from flts_ray.evaluate.gate import MIN_BLOCKS
from flts_ray.prepare.run import prepare
from flts_ray.sources.guess import Guess, guess_columns
from flts_ray.sources.propose import model_name, propose

HOURS = 1500
BEGIN = datetime(2024, 1, 1)


def stamp(i: int) -> str:
    return (BEGIN + timedelta(hours=i)).isoformat(sep=" ")


def load(i: int, at: int = 0) -> float:
    return 10 + at + i % 24 + (i * 7919 % 1000) / 1000


def write(path: Path, head: str, rows: Iterable[Iterable[Any]], mark: str = ",") -> str:
    lines = [head.replace(",", mark), *(mark.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def written(folder: Path, path: str, name: str | None = None) -> Config:
    """The proposed configuration, read back from its file, with its root in the folder."""
    target = folder / "flts.yaml"
    target.write_text(propose(path, name or model_name(path)), encoding="utf-8")
    return load_config(target, [f"root={folder / 'root'}"])


def long_rows(count: int = HOURS) -> list[tuple[object, ...]]:
    return [
        (f"cell {s}", stamp(i), load(i, s), i % 9, int(i % 5 == 0), s)
        for s in range(2)
        for i in range(count)
    ]


Writer = Callable[[Path], str]


def long_csv(folder: Path) -> str:
    return write(folder / "load.csv", "cell,ds,y,temperature,workday,floor", long_rows())


def one_series(folder: Path) -> str:
    rows = [(stamp(i), load(i), i % 9, f"cloud {i % 3}") for i in range(HOURS)]
    return write(folder / "Großverbrauch 7 (MW).csv", "Zeit,Demand (MW),temp: °C,sky", rows, ";")


def wide_csv(folder: Path) -> str:
    rows = [(stamp(i), load(i), load(i, 1), load(i, 2), i % 7, i % 2) for i in range(HOURS)]
    return write(folder / "wide.csv", "date,MT_001,MT_002,#3: yes,dow,on", rows)


def parquet(folder: Path) -> str:
    moments = [BEGIN + timedelta(hours=i // 2) for i in range(2 * HOURS)]
    table = pa.table(
        {
            "": list(range(2 * HOURS)),
            "measured at": pa.array(moments, pa.timestamp("ns")),
            "meter_reading": [load(i // 2, i % 2) for i in range(2 * HOURS)],
            "meter": pa.array([100 + i % 2 for i in range(2 * HOURS)], pa.int32()),
        }
    )
    pq.write_table(table, folder / "p.parquet")
    return str(folder / "p.parquet")


def epochs(folder: Path) -> str:
    rows = [(1_700_000_000 + 3600 * i, 200_000_000 + i % 24) for i in range(HOURS)]
    return write(folder / "bytes.csv", "bytes,ts", [(b, a) for a, b in rows])


def several_files(folder: Path) -> str:
    (folder / "in").mkdir()
    for name in ("north", "south"):
        write(
            folder / "in" / f"{name}.csv", "time,value", [(stamp(i), load(i)) for i in range(800)]
        )
    return str(folder / "in")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (long_csv, ("ds", "cell", ("y",), {"temperature": "past", "workday": "known_future",
                                           "floor": "static"})),
        (one_series, ("Zeit", None, ("Demand (MW)",), {"temp: °C": "past"})),
        (wide_csv, ("date", None, ("MT_001", "MT_002", "#3: yes"), {"dow": "known_future",
                                                                    "on": "past"})),
        (parquet, ("measured at", "meter", ("meter_reading",), {})),
        (epochs, ("ts", None, ("bytes",), {})),
        (several_files, ("time", None, ("value",), {})),
    ],
)  # fmt: skip
def test_the_proposal_reads_back_and_prepares(
    tmp_path: Path, make: Writer, expected: tuple[object, ...]
) -> None:
    path = make(tmp_path)
    guess = guess_columns(path)
    assert (guess.time, guess.id, guess.targets, dict(guess.others)) == expected
    config = written(tmp_path, path)
    assert config.data.frequency == "1h"
    made = prepare(config)
    assert made.manifest.quarantine == {}
    series = 2 if make in (long_csv, parquet, several_files) else len(guess.targets)
    assert made.manifest.series == series


def test_the_suggested_covariates_are_right_once_uncommented(tmp_path: Path) -> None:
    text = propose(long_csv(tmp_path), "load")
    lines = [line.replace("  # covariates", "  covariates") for line in text.splitlines()]
    lines = [line.replace("  #   ", "    ") for line in lines]
    read = yaml.safe_load("\n".join(lines))["data"]["covariates"]
    assert read == {"temperature": "past", "workday": "known_future", "floor": "static"}


def table(folder: Path, head: str, rows: Iterable[Iterable[Any]]) -> Guess:
    return guess_columns(write(folder / "t.csv", head, rows))


def test_a_row_number_names_no_series(tmp_path: Path) -> None:
    guess = table(tmp_path, "id,ds,y", [(i, stamp(i), load(i)) for i in range(100)])
    assert (guess.id, guess.targets) == (None, ("y",))


def test_a_reading_names_no_series(tmp_path: Path) -> None:
    rows = [(stamp(i), 10 * s + i % 9, s) for i in range(100) for s in range(3)]
    guess = table(tmp_path, "ds,meter_reading,meter", rows)
    assert (guess.id, guess.targets) == ("meter", ("meter_reading",))


def test_labels_that_vary_beside_unique_times_name_no_series(tmp_path: Path) -> None:
    rows = [(stamp(i), load(i), ("sun", "rain")[i % 2]) for i in range(100)]
    assert table(tmp_path, "ds,kw,weather", rows).id is None


def test_the_finer_of_two_labels_names_the_series(tmp_path: Path) -> None:
    rows = [
        (stamp(i), f"area {s // 2}", f"box {s}", load(i, s)) for i in range(100) for s in range(4)
    ]
    assert table(tmp_path, "ds,region,box,kw", rows).id == "box"


def test_a_single_telling_name_is_the_target(tmp_path: Path) -> None:
    rows = [(stamp(i), i % 9, load(i), load(i)) for i in range(100)]
    assert table(tmp_path, "ds,oil,netLoad,gas", rows).targets == ("netLoad",)
    assert table(tmp_path, "date,HUFL,OT,LULL", rows).targets == ("OT",)
    assert table(tmp_path, "ds,a_load,b_load,gas", rows).targets == ("a_load", "b_load")


def test_an_id_column_keeps_the_layout_long(tmp_path: Path) -> None:
    rows = [(stamp(i), f"s{s}", load(i), load(i)) for i in range(100) for s in range(2)]
    assert table(tmp_path, "ds,site,first,second", rows).targets == ("first",)


def test_a_few_bad_rows_do_not_hide_what_a_column_is(tmp_path: Path) -> None:
    rows = [(stamp(i) if i != 50 else "soon", load(i) if i != 60 else "?") for i in range(100)]
    guess = table(tmp_path, "ds,y", rows)
    assert (guess.time, guess.targets) == ("ds", ("y",))


def test_an_unclear_frequency_is_left_to_the_user(tmp_path: Path) -> None:
    minutes = [i // 3 * 210 + (0, 50, 120)[i % 3] for i in range(40)]
    rows = [((BEGIN + timedelta(minutes=m)).isoformat(), load(m)) for m in minutes]
    path = write(tmp_path / "t.csv", "ds,y", rows)
    assert written(tmp_path, path).data.frequency is None
    assert "set it" in propose(path, "t")


@pytest.mark.parametrize(
    ("rows", "horizon", "test"),
    [(30, 1, 0.15), (480, 7, 0.15), (600, 11, 0.15), (1000, 24, 0.2), (5000, 24, 0.15)],
)
def test_the_horizon_leaves_enough_of_them_to_judge(
    tmp_path: Path, rows: int, horizon: int, test: float
) -> None:
    path = write(tmp_path / "t.csv", "ds,y", [(stamp(i), load(i)) for i in range(rows)])
    config = written(tmp_path, path)
    assert (config.task.horizon, config.split.test) == (horizon, test)


def test_the_gate_has_windows_enough_for_what_is_proposed(tmp_path: Path) -> None:
    weeks = [(BEGIN + timedelta(weeks=i)).isoformat() for i in range(150)]
    config = written(
        tmp_path, write(tmp_path / "t.csv", "ds,y", [(at, load(i)) for i, at in enumerate(weeks)])
    )
    stride = config.task.horizon
    while gcd(stride, 52) > 1:
        stride += 1
    data = prepare(config).arrays()
    origins = choose_origins(data, "test", 52, config.task.horizon, stride)
    assert len(origins) >= MIN_BLOCKS


@pytest.mark.parametrize(("in_turn", "horizon"), [(False, 11), (True, 24)])
def test_the_first_rows_of_a_long_file_tell_how_long_its_series_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_turn: bool, horizon: int
) -> None:
    monkeypatch.setattr("flts_ray.sources.guess.ROWS", 1500)
    rows = [(f"s{s}", stamp(i), load(i, s)) for s in range(3) for i in range(600)]
    rows = sorted(rows, key=lambda row: row[1]) if in_turn else rows
    path = write(tmp_path / "t.csv", "cell,ds,y", rows)
    assert written(tmp_path, path).task.horizon == horizon


def test_a_text_that_belongs_to_the_series_is_static(tmp_path: Path) -> None:
    rows = [
        (f"s{s}", stamp(i), load(i, s), ("urban", "rural")[s % 2], ("sun", "rain")[i % 2])
        for s in range(3)
        for i in range(60)
    ]
    guess = table(tmp_path, "cell,ds,y,kind,weather", rows)
    assert (guess.id, dict(guess.others)) == ("cell", {"kind": "static"})


def test_minutes_do_not_make_a_horizon_of_a_day(tmp_path: Path) -> None:
    rows = [((BEGIN + timedelta(minutes=i)).isoformat(), load(i)) for i in range(5000)]
    assert written(tmp_path, write(tmp_path / "t.csv", "ds,y", rows)).task.horizon == 48


@pytest.mark.parametrize(
    ("head", "rows", "problem"),
    [
        ("a,b", [("x", 1), ("y", 2)], "no column holds times, among 'a', 'b'"),
        ("ds,b", [("2024-01-01", "x"), ("2024-01-02", "y")], "no column holds numbers"),
        ("ds,ds", [("2024-01-01", "1"), ("2024-01-02", "2")], "name of its own"),
        ("ds,y", [], "has a header but no rows"),
    ],
)
def test_what_cannot_be_guessed_is_told(
    tmp_path: Path, head: str, rows: list[tuple[object, ...]], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        propose(write(tmp_path / "t.csv", head, rows), "t")


def test_a_missing_file_and_a_bad_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv' matches no file"):
        propose(str(tmp_path / "none.csv"), "t")
    with pytest.raises(ConfigError, match="name: String should match"):
        propose(long_csv(tmp_path), "My Model")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/Load 2024 (MW).csv.gz", "load-2024-mw"),
        ("s3://bucket/cells/**/*.parquet", "cells"),
        ("数据.csv", "loads"),
        ("a" * 200 + ".csv", "a" * 60),
        ("--x--.csv", "x"),
        ("*.csv", "loads"),
    ],
)
def test_a_model_is_named_after_its_file(path: str, name: str) -> None:
    assert model_name(path) == name
