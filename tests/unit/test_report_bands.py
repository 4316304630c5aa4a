from __future__ import annotations

import io
import math
from dataclasses import asdict

import pyarrow as pa
from rich.console import Console

from flts_ray.evaluate.coverage import BandCoverage
from flts_ray.evaluate.scoreboard import Scoreboard
from flts_ray.report_bands import bands_table, share_cell


def band(share: float, half: float, nominal: float = 0.8, kept: bool = False) -> BandCoverage:
    return BandCoverage(kept, nominal, share, share - half, share + half, 54, 1.0)


def board(model: str, *rows: BandCoverage) -> Scoreboard:
    none = pa.table({})
    bands = pa.Table.from_pylist([{**asdict(row), "verdict": row.verdict} for row in rows])
    return Scoreboard(model, "ar", {}, none, none, none, none, bands)


def printed(boards: list[Scoreboard], width: int = 80) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(bands_table(boards))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


BOARDS = [
    board("old (prophet)", band(0.703, 0.04), band(0.86, 0.04, 0.95)),
    board(
        "gru-1", band(0.72, 0.05), band(0.97, 0.03, 0.95),
        band(0.77, 0.06, kept=True), band(0.95, 0.01, 0.95, kept=True),
    ),
    board(
        "ar-1", band(0.87, 0.03), band(0.97, 0.03, 0.95),
        band(0.803, 0.01, kept=True), band(0.94, 0.03, 0.95, kept=True),
    ),
]  # fmt: skip


def test_models_are_listed_by_what_kept_bands_held() -> None:
    lines = printed(BOARDS)
    assert "54 windows that do not overlap" in lines[0]
    rows = [line.split() for line in lines if line.startswith(("old", "gru", "ar"))]
    assert [row[0] for row in rows] == ["ar-1", "gru-1", "old"]
    assert rows[0][1:] == ["▲", "87.0", "±3.0", "✓", "80.3", "±1.0", "97.0", "±3.0", "94.0", "±3.0"]
    assert rows[2][2:] == ["▼", "70.3", "±4.0", "-", "▼", "86.0", "±4.0", "-"]


def test_it_fits_a_terminal() -> None:
    wide = board("version 12 (seasonal_naive)", band(0.9, 0.04), band(0.999, 0.001, 0.95))
    lines = printed([*BOARDS, wide])
    assert max(map(len, lines)) <= 80


def test_where_nobody_knows_how_sure_a_share_is_only_the_share_is_shown() -> None:
    alone = BandCoverage(False, 0.8, 0.75, math.nan, math.nan, 3, 1.0)
    assert share_cell(alone).plain == "75.0"
    assert share_cell(None).plain == "-"
    assert (
        share_cell(BandCoverage(False, 0.8, math.nan, math.nan, math.nan, 0, 1.0)).plain[0] == "-"
    )


def test_without_any_band_the_table_is_empty() -> None:
    none = pa.table({})
    assert any("a-1" in line for line in printed([Scoreboard("a-1", "ar", {}, *[none] * 4)]))
