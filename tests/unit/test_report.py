from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from flts_ray.evaluate.scoreboard import Scoreboard
from flts_ray.jobs.status import Status
from flts_ray.promotions import Entry
from flts_ray.report import (
    addresses_table,
    candidates_table,
    forecast_table,
    history_lines,
    history_table,
    quarantine_table,
    status_table,
)
from flts_ray.tune.outcome import TrialOutcome

WIDTHS = pytest.mark.parametrize("width", [80, 120])


def printed(table: Table, width: int = 120) -> list[str]:
    """Lines as a terminal of this width shows them."""
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(table)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def board(model: str, kind: str, score: float, **overall: float) -> Scoreboard:
    none = pa.table({})
    measures = {
        "rmse": 254.31 * score,
        "mae": 180.2 * score,
        "wape": 0.0812,
        "mase": 0.91,
        "coverage_80": 0.8125,
        "coverage_95": 1.0,
        "windows": 54.0,
        "scaled_pinball": score,
        "composite": 2 * score,
    }
    return Scoreboard(model, kind, {**measures, **overall}, none, none, none, none)


BOARDS = [
    board("seasonal_naive-01", "seasonal_naive", 0.2838),
    board("gru-02", "gru", 0.2118),
    board("prophet-01", "prophet", 6.3132, mae=float("nan")),
    board("ar-01", "ar", 0.233),
    board("version 12 (seasonal_naive)", "seasonal_naive", 0.2139),
]


def candidates(width: int = 120, chosen: str = "gru-02") -> list[str]:
    table = candidates_table(
        BOARDS, "scaled_pinball", chosen, "GW", champion="version 12 (seasonal_naive)"
    )
    return printed(table, width)


def test_all_models_are_listed_best_first_with_their_roles() -> None:
    rows = [line for line in candidates() if re.match(r"\S+-\d\d|version", line)]
    assert [row.split("  ")[0] for row in rows] == [
        "gru-02",
        "version 12 (seasonal_naive)",
        "ar-01",
        "seasonal_naive-01",
        "prophet-01",
    ]
    roles = [re.search(r"candidate|champion|baseline", row) for row in rows]
    assert [role and role.group() for role in roles] == [
        "candidate",
        "champion",
        "baseline",
        "baseline",
        None,
    ]


def test_shares_are_shown_in_per_cent_and_what_is_undefined_as_a_dash() -> None:
    lines = candidates()
    assert lines[0] == "Test span, 54 windows, errors in GW"
    (gru,) = (line for line in lines if line.startswith("gru-02"))
    assert gru.split() == (
        ["gru-02", "candidate", "0.2118", "53.86", "38.17", "8.1", "0.910", "81.2", "100.0"]
    )
    (prophet,) = (line for line in lines if line.startswith("prophet-01"))
    assert prophet.split()[1:4] == ["6.3132", "1605.51", "-"]


def test_the_candidate_stands_out_in_colour_too() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system="standard")
    console.print(candidates_table(BOARDS, "scaled_pinball", "ar-01", ""))
    (line,) = (line for line in screen.getvalue().splitlines() if "ar-01" in line)
    assert "\x1b[1;32m" in line


@WIDTHS
def test_decimal_points_stand_below_each_other(width: int) -> None:
    rows = [line for line in candidates(width) if re.search(r"\d\.\d{4}\b", line)]
    points = [{at for at, sign in enumerate(row) if sign == "."} for row in rows]
    assert len(rows) == 5
    assert len(set.intersection(*points)) >= 6


@WIDTHS
def test_the_champion_that_was_found_again_is_the_champion(width: int) -> None:
    table = candidates_table(BOARDS, "composite", "gru-02", "", champion="gru-02")
    (line,) = (line for line in printed(table, width) if line.startswith("gru-02"))
    assert line.split()[1:3] == ["champion", "0.4236"]


@WIDTHS
def test_nothing_of_the_candidates_is_cut(width: int) -> None:
    lines = candidates(width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in ("scaled", "pinball", "RMSE", "MASE", "80 %", "95 %", "seasonal_naive-01"):
        assert part in text
    assert "version 12" in text and "(seasonal_naive)" in text


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e4, 1e9, 1e14])
def test_numbers_of_any_size_stay_narrow(size: float) -> None:
    boards = [board("gru-01", "gru", 0.5, rmse=size), board("ar-01", "ar", 0.6, rmse=1.5 * size)]
    lines = printed(candidates_table(boards, "scaled_pinball", "gru-01", ""), 80)
    shown = [line.split()[3] for line in lines if re.match(r"(gru|ar)-01", line)]
    assert [float(text) for text in shown] == pytest.approx([size, 1.5 * size], rel=1e-3)
    assert all(len(text) <= 10 for text in shown)


ENTRIES = [
    Entry(1, "promote", 1, None, None, "k", "it beats [all]", "2026-11-23T09:35:07+01:00", "ann"),
    Entry(2, "promote", 3, 1, 2, "k", "better " * 30, "2026-11-23T09:35:07+00:00", "a" * 40),
]


@WIDTHS
def test_the_history_has_the_newest_first_and_the_state_after_each(width: int) -> None:
    lines = printed(history_table(ENTRIES), width)
    assert max(map(len, lines)) <= width
    numbers = [line.split()[0] for line in lines if re.match(r" *\d ", line)]
    assert numbers == ["2", "1"]
    text = "\n".join(lines)
    assert "2026-11-23 08:35" in text
    assert "promote by ann: it beats [all]" in text
    assert text.count("better") == 30
    for state in ("champion 3", "previous 1", "challenger 2", "champion 1"):
        assert state in text


def test_the_history_as_json_has_the_oldest_first() -> None:
    lines = [json.loads(line) for line in history_lines(ENTRIES)]
    assert [(line["n"], line["champion"], line["previous"]) for line in lines] == (
        [(1, 1, None), (2, 3, 1)]
    )


def answer(levels: list[str], stamp: str = "2024-01-31T{:02d}:30:00Z") -> dict[str, Any]:
    return {
        "model": {"name": "demo", "version": "4", "kind": "gru"},
        "forecasts": [
            {
                "unique_id": "cell [1]",
                "ds": [stamp.format(hour) for hour in range(3)],
                "mean": [4.1, 4.25, 14.3],
                "median": [4.0, 4.0, 14.0],
                "quantiles": {level: [3.0, 3.0, 13.125] for level in levels},
            }
        ],
    }


@WIDTHS
def test_forecasts_show_the_bands_of_many_levels(width: int) -> None:
    levels = ["0.025", "0.05", "0.1", "0.5", "0.9", "0.975"]
    lines = printed(forecast_table([answer(levels)]), width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "demo version 4 (gru)"
    assert lines[1].split() == (
        ["series", "ds", "(UTC)", "mean", "median", "0.025", "0.1", "0.9", "0.975"]
    )
    assert lines[3].split()[2:] == (
        ["2024-01-31", "00:30", "4.100", "4.000", "3.000", "3.000", "3.000", "3.000"]
    )
    assert lines[-1] == "6 levels in all; --output writes them"


def test_a_series_that_the_model_was_not_fitted_on_is_marked() -> None:
    one = answer(["0.3", "0.7"])
    assert not any("cold start" in line for line in printed(forecast_table([one])))
    one["forecasts"][0]["cold_start"] = True
    assert "cell [1] (cold start)" in printed(forecast_table([one]))[3]


def test_forecasts_show_every_level_that_was_asked_for() -> None:
    lines = printed(forecast_table([answer(["0.3", "0.7"], "2024-01-31T{:02d}:30:07Z")]))
    assert lines[1].split() == ["series", "ds", "mean", "median", "0.3", "0.7"]
    assert "2024-01-31T00:30:07Z" in lines[3]
    assert not any("levels in all" in line for line in lines)


@WIDTHS
def test_the_quarantine_tells_why_and_counts_the_rest(width: int) -> None:
    names = [f"[b]/{'long-' * 20}" if i == 0 else f"cell-{i}" for i in range(23)]
    rows = pa.table(
        {"unique_id": names, "code": ["too_short"] * 23, "reason": ["give more rows"] * 23}
    )
    lines = printed(quarantine_table(rows), width)
    assert max(map(len, lines)) <= width
    assert lines[0] == "23 series in quarantine"
    assert any("cell-19" in line and "give more rows" in line for line in lines)
    assert not any("cell-20" in line for line in lines)
    assert "and 3 more" in lines[-1]
    assert "[b]/long-" in " ".join(lines)


def status(**about: Any) -> Status:
    empty: dict[str, Any] = {
        "prepared": (), "studies": {}, "newest": None, "services": {},
    }  # fmt: skip
    return Status(name="demo", root="s3://bucket/[x]", **{**empty, **about})


def test_an_empty_status_says_what_to_do() -> None:
    text = "\n".join(printed(status_table(status())))
    assert "s3://bucket/[x]" in text
    assert "none yet; `flts train` makes one" in text
    assert "none running; `flts serve` starts them" in text


@WIDTHS
def test_the_status_names_failures_champion_and_services(width: int) -> None:
    outcomes = (
        TrialOutcome("gru-01", "gru", {}, "finished"),
        TrialOutcome("gru-02", "gru", {}, "failed", error="first\nbad [lr] of " + "9" * 90),
    )
    shown = status_table(
        status(
            studies={"abc": outcomes, "new": ()},
            newest=ENTRIES[1],
            services={"api": ("http://127.0.0.1:8000", "ready")},
        )
    )
    lines = printed(shown, width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    for part in (
        "abc: 1 failed, 1 finished",
        "gru-02: bad [lr] of",
        "new: no trial is over",
        "version 3 since 2026-11-23 09:35 UTC",
        "http://127.0.0.1:8000 ready",
    ):
        assert part in text


@WIDTHS
def test_addresses_can_be_copied(width: int) -> None:
    lines = printed(addresses_table("http://h:8000", "http://h:5000", None), width)
    assert [line.split()[-1] for line in lines[:3]] == (
        ["http://h:8000/v1/forecast", "http://h:8000/docs", "http://h:5000"]
    )
    assert lines[3].endswith("that of the cluster")
    assert printed(addresses_table("a", "b", "http://h:8265"))[3].endswith("http://h:8265")
    assert np.all([len(line) <= width for line in lines])
