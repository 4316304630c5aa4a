"""The picture of a forecast: what was said beside what happened.

Design choices: bands can be told apart in grey; times are local; no interactive backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

INK, BLUE, GREY = "#1b1f24", "#1f5fa8", "#6b7280"
BAND_80, BAND_95 = "#9cc2e8", "#d6e6f5"


@dataclass(frozen=True)
class Picture:
    """One forecast to draw. Instants are int64 UTC microseconds; values in the input's units.

    history_us, history: [L]; ds_us, median, actual: [H] (actual NaN where unknown, or None);
    lower_80, upper_80, lower_95, upper_95: [H].
    """

    title: str
    units: str
    time_zone: str
    history_us: np.ndarray
    history: np.ndarray
    ds_us: np.ndarray
    median: np.ndarray
    lower_80: np.ndarray
    upper_80: np.ndarray
    lower_95: np.ndarray
    upper_95: np.ndarray
    actual: np.ndarray | None = None


def draw(picture: Picture, path: Path) -> None:
    """Write the picture as PNG (or whatever the suffix of `path` says)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = _lines(axes, picture)
    axes.set_title(
        picture.title, loc="left", color=INK, fontsize=12, fontweight="bold", parse_math=False
    )
    axes.set_ylabel(picture.units, color=GREY, parse_math=False)
    _time_axis(axes, ZoneInfo(picture.time_zone))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY)
    axes.grid(axis="y", color="#e5e7eb", lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    figure.legend(handles=lines, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _lines(axes: Any, picture: Picture) -> list[Any]:
    """Draw bands and lines; returns them in the order of the legend."""
    past, ahead = _stamps(picture.history_us), _stamps(picture.ds_us)
    outer = axes.fill_between(
        ahead, picture.lower_95, picture.upper_95, color=BAND_95, lw=0, label="95 % band"
    )
    inner = axes.fill_between(
        ahead, picture.lower_80, picture.upper_80, color=BAND_80, lw=0, label="80 % band"
    )
    lines = axes.plot(past, picture.history, color=INK, lw=1.3, label="history")
    lines += axes.plot(ahead, picture.median, color=BLUE, lw=2, label="median forecast")
    lines += [inner, outer]
    if picture.actual is not None:
        # Joined to the history: it is the same line, only the forecast could not know it.
        happened = np.concatenate([picture.history[-1:], picture.actual])
        lines += axes.plot(
            np.concatenate([past[-1:], ahead]),
            happened,
            color=INK,
            lw=1.3,
            ls=(0, (2, 1.2)),
            label="what happened",
        )
    axes.axvline(ahead[0], color=GREY, lw=0.8)
    return list(lines)


def _time_axis(axes: Any, zone: ZoneInfo) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=zone, maxticks=10)
    # The format of a tick, by what it marks: year, month, day, hour, minute, second.
    formats = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S"]
    starts = ["", "%Y", "1 %b %Y", "%d %b", "%H:%M", "%H:%M"]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(
        ConciseDateFormatter(
            locator, tz=zone, formats=formats, zero_formats=starts, show_offset=False
        )
    )


def _stamps(us: np.ndarray) -> np.ndarray:
    return np.asarray(us, dtype="datetime64[us]")
