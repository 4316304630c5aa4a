"""The table a person reads of what bands covered: as fitted, and kept up to date.

Design choices: as in `report.py`; a share comes with half the width of its interval, so a reader
sees at once whether two points are much; a mark says only what the whole interval says, and where
windows are too few to tell there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from flts_ray.evaluate.coverage import BANDS, TOLERANCE, BandCoverage, bands_of
from flts_ray.evaluate.scoreboard import Scoreboard

MARKS = {"holds": ("✓", "green"), "narrow": ("▼", "red"), "wide": ("▲", "yellow")}


def bands_table(boards: Sequence[Scoreboard]) -> Table:
    """Each model's coverage of the 80 % and the 95 % band, nearest to 80 % first."""
    found = {board.model: bands_of(board.bands) for board in boards}
    apart = max((one.apart for bands in found.values() for one in bands.values()), default=0)
    points = f"{100 * TOLERANCE:g}"
    table = Table(
        title=Text(f"Bands on the test span, {apart} windows that do not overlap", style="bold"),
        title_justify="left",
        caption=f"% of values inside ± half of the 95 % interval; ✓ within {points} points for "
        f"sure, ▼ too narrow, ▲ too wide for sure, no mark: too few windows to tell; kept: "
        "bands learn at every update what they missed",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 0, 0, 2),
    )
    table.add_column("model", overflow="fold")
    columns = [(kept, nominal) for nominal, _, _ in BANDS for kept in (False, True)]
    for kept, nominal in columns:
        head = f"{100 * nominal:g} % band\n{'kept' if kept else 'as fitted'}"
        table.add_column(head, justify="right", no_wrap=True)
    for name in sorted(found, key=lambda name: _distance(found[name].get((True, BANDS[0][0])))):
        table.add_row(Text(name), *(share_cell(found[name].get(column)) for column in columns))
    return table


def share_cell(band: BandCoverage | None) -> Text:
    """A share, how sure it is, and what that says of the promise."""
    if band is None or math.isnan(band.share):
        return Text("-")
    half = (band.upper - band.lower) / 2
    sure = "" if math.isnan(half) else f" ±{100 * half:.1f}"
    mark, style = MARKS.get(band.verdict, ("", ""))
    return Text(f"{mark} {100 * band.share:.1f}{sure}".lstrip(), style=style)


def _distance(band: BandCoverage | None) -> tuple[bool, float]:
    if band is None or math.isnan(band.share):
        return True, 0.0
    return False, abs(band.share - band.nominal)
