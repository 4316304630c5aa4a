from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from flts_ray.evaluate.scoreboard import Scoreboard
from flts_ray.report_calibration import BARS, bars, calibration_table, inside


def board(model: str, error: float, low: float, steps: int = 48) -> Scoreboard:
    """A model whose outer levels are covered by `low` and by one less that."""
    none = pa.table({})
    pit = pa.table({"height": [1.0, 0.2, 3.0, math.nan]})
    near, far = np.full(steps + 1, low), np.full(steps + 1, 1 - low)
    far[-1] -= 0.05
    levels = {"q0.025": near / 4, "q0.1": near, "q0.9": far, "q0.975": 1 - near / 4}
    coverage = pa.table({"step": np.arange(steps + 1), **levels})
    return Scoreboard(model, "ar", {"calibration_error": error}, none, none, pit, coverage)


def printed(boards: list[Scoreboard], width: int) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(calibration_table(boards))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_models_are_listed_from_the_best_calibrated_on() -> None:
    boards = [board("gru-1", 0.031, 0.1), board("ar-1", 0.008, 0.12), board("old", math.nan, 0.1)]
    rows = [line.split() for line in printed(boards, 120)]
    listed = [row for row in rows if row and row[0] in ("gru-1", "ar-1", "old")]
    assert [row[0] for row in listed] == ["ar-1", "gru-1", "old"]
    assert listed[0][1:] == ["0.8", "▅▁█", "76.0", "76.0", "71.0", "94.0", "94.0", "94.0"]
    assert listed[2][1] == "-"


def test_it_fits_a_terminal() -> None:
    lines = printed([board("version 12 (seasonal_naive)", 0.1, 0.1, steps=720)], 80)
    assert max(map(len, lines)) <= 80
    assert any("step 360" in line or "360" in line for line in lines)


@pytest.mark.parametrize(("height", "bar"), [(0.0, 0), (0.99, 3), (1.0, 4), (1.99, 7), (9.0, 7)])
def test_bars_share_one_scale(height: float, bar: int) -> None:
    assert bars(pa.table({"height": [height]})) == BARS[bar]


def test_a_step_beyond_the_horizon_is_unknown() -> None:
    coverage = board("a", 0.1, 0.1, steps=3).coverage
    assert math.isnan(inside(coverage, 4, "q0.1", "q0.9"))
    assert inside(coverage, 1, "q0.1", "q0.9") == pytest.approx(0.8)
