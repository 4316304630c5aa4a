from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.jobs.histories import About, histories
from flts_ray.panel import Contract
from flts_ray.serve.history import RawHistory, lay_history, numbers, parse_stamps
from tests.served import stamps

ROLES = {"event": "known_future", "lagged": "past", "number": "static", "kind": "static"}
CONTRACT = Contract(
    freq="1h", season=24, max_gap=3, known_future=("event",), past=("lagged",), static=("number",)
)
ABOUT = About(horizon=4, lookback=24, contract=CONTRACT)
Row = tuple[object, ...]


def config_of(**data: Any) -> Config:
    columns = {"time": "ds", "id": "unique_id", "covariates": ROLES, "frequency": "1h"}
    return parse_config({"name": "demo", "data": {"path": "unused.csv", **columns, **data}})


def write(path: Path, rows: Iterable[Row]) -> str:
    lines = ["unique_id,ds,y,event,lagged,number,kind", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def history(name: str = "s0", count: int = 30) -> list[Row]:
    return [(name, ds, i, i % 3, -i, 7, "urban") for i, ds in enumerate(stamps(count))]


def ahead(steps: Iterable[int], count: int = 30, name: str = "s0") -> list[Row]:
    every = stamps(count + 20)
    return [(name, every[count - 1 + step], "", 100 + step, "", 7, "urban") for step in steps]


def test_a_series_is_its_values_and_what_is_known_ahead(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", [*history(), *ahead([1, 2, 3, 4])])
    (body,) = histories(config_of(), path, ABOUT)
    assert body["unique_id"] == "s0"
    assert body["ds"] == [stamp.replace("Z", "+00:00") for stamp in stamps(30)]
    assert body["y"] == [float(i) for i in range(30)]
    assert body["known_future"] == {"event": [i % 3 for i in range(30)] + [101, 102, 103, 104]}
    assert body["past"] == {"lagged": [-i for i in range(30)]}
    assert body["static"] == {"number": 7.0}


def test_rows_ahead_are_placed_by_their_stamps(tmp_path: Path) -> None:
    twice = [("s0", stamps(40)[31], "", 5, "", 7, "urban")]
    rows = [*ahead([9, 4, 2]), *history(), *twice]
    (body,) = histories(config_of(), write(tmp_path / "new.csv", rows), ABOUT)
    assert body["known_future"]["event"][30:] == [None, 5.0, None, 104.0]


def test_values_that_are_missing_are_sent_as_missing(tmp_path: Path) -> None:
    rows = history()
    rows[10] = (*rows[10][:2], "", "", "nan", 7, "urban")
    (body,) = histories(config_of(), write(tmp_path / "new.csv", rows), ABOUT)
    assert body["y"][9:12] == [9.0, None, 11.0]
    assert body["known_future"]["event"][10] is None
    assert body["past"]["lagged"][10] is None


def test_series_come_sorted_by_name_from_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [*history("s2"), *history("s0")])
    write(tmp_path / "b.csv", [*history("s1"), *ahead([1], name="s0")])
    bodies = histories(config_of(), str(tmp_path), ABOUT)
    assert [body["unique_id"] for body in bodies] == ["s0", "s1", "s2"]
    assert bodies[0]["known_future"]["event"][-4:] == [101.0, None, None, None]


def test_each_target_of_a_wide_file_ends_where_its_values_do(tmp_path: Path) -> None:
    lines = [f"{ds},{i},{i if i < 28 else ''}" for i, ds in enumerate(stamps(30))]
    (tmp_path / "wide.csv").write_text("\n".join(["ds,up,down", *lines]))
    config = config_of(layout="wide", targets=["up", "down"], id=None, covariates={})
    plain = About(4, 24, Contract(freq="1h", season=24))
    bodies = histories(config, str(tmp_path / "wide.csv"), plain)
    assert [(body["unique_id"], len(body["y"])) for body in bodies] == [("down", 28), ("up", 30)]


def test_daily_rows_ahead_keep_their_place_over_a_change_of_the_clock(tmp_path: Path) -> None:
    days = [f"2024-03-{day:02} 00:00" for day in range(1, 32)]  # the clock changes on the 31st
    rows: list[Row] = [("s0", ds, i, 0, 0, 7, "a") for i, ds in enumerate(days[:29])]
    rows += [("s0", ds, "", i, "", 7, "a") for i, ds in enumerate([*days[29:], "2024-04-01"], 1)]
    berlin = Contract(freq="1D", season=7, time_zone="Europe/Berlin", known_future=("event",))
    config = config_of(time_zone="Europe/Berlin", frequency="1D")
    path = write(tmp_path / "new.csv", rows)
    (body,) = histories(config, path, About(3, 7, berlin))
    assert body["known_future"]["event"][-3:] == [1.0, 2.0, 3.0]


def test_a_cut_history_gives_the_window_of_the_whole(tmp_path: Path) -> None:
    count = 900
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i, ds in enumerate(stamps(count)):
        y = "" if i % 50 in (7, 8) else rng.normal()
        rows.append(("s0", ds, y, 3 if i == 100 else "", i if i in (5, 400) else "", 7, "a"))
    path = write(tmp_path / "new.csv", rows)
    (cut,) = histories(config_of(), path, ABOUT)
    (whole,) = histories(config_of(), path, About(4, count, CONTRACT))
    assert (len(cut["y"]), len(whole["y"])) == (ABOUT.reach + 1, count)
    windows = [lay_history(raw(body), CONTRACT, 24) for body in (cut, whole)]
    for name in ("origin_us", "y", "observed", "known_future", "past"):
        np.testing.assert_array_equal(*(getattr(window, name) for window in windows))


def raw(body: dict[str, Any]) -> RawHistory:
    y = numbers(body["y"], "y")
    known = numbers(body["known_future"]["event"][: len(y)], "event")
    past = numbers(body["past"]["lagged"], "lagged")
    stamps_us = parse_stamps(body["ds"], "UTC", "ds")
    observed = np.ones(len(y), bool)
    return RawHistory("y", stamps_us, y, observed, {"event": known}, {"lagged": past})


def test_a_series_without_any_value_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", [*history(), *ahead([1, 2], name="s1")])
    with pytest.raises(DataError, match="s1: every value of 'y' is missing"):
        histories(config_of(), path, ABOUT)


def test_where_the_input_is_a_table_files_have_its_columns(tmp_path: Path) -> None:
    config = parse_config(
        {"name": "demo", "data": {"snapshot": "latest", "covariates": ROLES, "frequency": "1h"}}
    )
    path = write(tmp_path / "new.csv", [*history("a"), *history("b")])
    assert [body["unique_id"] for body in histories(config, path, ABOUT)] == ["a", "b"]
