"""The table a person reads of how well quantiles keep what they say.

Design choices: as in `report.py`; the histogram is drawn in one line of characters, low and high
at the same scale for every model, so that shapes compare down the column; coverage is shown near,
in the middle of and at the end of the horizon, because a band can be right on average and wrong
at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from flts_ray.evaluate.scoreboard import Scoreboard

BARS = "▁▂▃▄▅▆▇█"
HIGHEST = 2.0
"""Height, in units of the expected one, of the longest bar."""
BANDS = (("80 %", "q0.1", "q0.9"), ("95 %", "q0.025", "q0.975"))


def calibration_table(boards: Sequence[Scoreboard]) -> Table:
    """Each model's calibration error, PIT histogram, and coverage along the horizon."""
    horizon = max(board.coverage.num_rows - 1 for board in boards)
    steps = sorted({1, (1 + horizon) // 2, horizon} - {0})
    table = Table(
        title=Text("Calibration on the test span", style="bold"),
        title_justify="left",
        caption="error: mean distance of a level from its coverage, in points; PIT: even is "
        "right, high ends are bands too narrow, a hill bands too wide; bands: % of values inside, "
        "+1 is one step ahead",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("model", overflow="fold")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("PIT", no_wrap=True)
    for name, _, _ in BANDS:
        for step in steps:
            table.add_column(f"{name}\n+{step}", justify="right", no_wrap=True)
    for board in sorted(boards, key=lambda board: _rank(board.overall["calibration_error"])):
        shares = [inside(board.coverage, step, *ends) for _, *ends in BANDS for step in steps]
        error = _percent(board.overall["calibration_error"])
        table.add_row(Text(board.model), error, bars(board.pit), *map(_percent, shares))
    return table


def bars(pit: pa.Table) -> str:
    """A PIT histogram as a line of characters; a space where nothing is known."""
    return "".join(_bar(height) for height in pit["height"].to_pylist())


def inside(coverage: pa.Table, step: int, low: str, high: str) -> float:
    """Share of values between two levels at one step; NaN past a shorter horizon."""
    if step >= coverage.num_rows:
        return math.nan
    return float(coverage[high][step].as_py() - coverage[low][step].as_py())


def _bar(height: float) -> str:
    if math.isnan(height):
        return " "
    return BARS[min(len(BARS) - 1, int(height / HIGHEST * len(BARS)))]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _rank(value: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(value) else (False, value)
