"""The accuracy benchmark as Markdown and as a picture, from its rows alone.

Design choices: two tables a task, because some models are affordable on a subsample only and
nobody is compared on other windows than these; rows are in the order of their error; the picture
has one panel a task, error against CPU seconds, both logarithmic, with the project's models filled
and all others open, so that it can be read in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
OURS = "ours"
HEAD = (
    "model",
    "MSE",
    "MAE",
    "pinball",
    "in 80 %",
    "in 95 %",
    "fit CPU s",
    "predict CPU s",
    "notes",
)
INK, GREY, GRID = "#1b1f24", "#6b7280", "#e5e7eb"
BLUES = {
    "champion": ("#0b3d91", "*"), "blend": ("#0b3d91", "D"), "gru": ("#1f5fa8", "o"),
    "lstm": ("#1f5fa8", "s"), "ar": ("#4c8fd6", "^"), "prophet": ("#4c8fd6", "P"),
    "seasonal_naive": ("#9cc2e8", "v"),
}  # fmt: skip
OTHERS = {
    "neuralforecast/NHITS": ("#b45309", "D"), "neuralforecast/GRU": ("#b45309", "o"),
    "neuralforecast/LSTM": ("#b45309", "s"), "darts/BlockRNN": ("#7c3aed", "o"),
    "prophet/Prophet": ("#be123c", "P"), "statsforecast/MSTL": ("#4d7c0f", "^"),
    "statsforecast/AutoETS": ("#4d7c0f", "X"), "statsforecast/SeasonalNaive": ("#4d7c0f", "v"),
}  # fmt: skip


def label(row: Row) -> str:
    """How a model is called; ours are bold in tables."""
    return str(row["model"]) if row["library"] == OURS else f"{row['library']}/{row['model']}"


def groups(tasks: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Task and series of each table; series None: all together."""
    return [
        (name, series)
        for name, task in tasks.items()
        for series in (task["series"] if task["apart"] else [None])
    ]


def heading(task: Mapping[str, Any], series: str | None) -> str:
    return f"{task['title']}" + (f": {series}" if series else "")


def scores_of(row: Row, part: str, series: str | None) -> Mapping[str, Any] | None:
    """Scores of one part (`all`, `few`) of a row; None if there are none."""
    scores = (row.get("scores") or {}).get(part)
    if scores is None or series is None:
        return scores
    found: Mapping[str, Any] | None = scores["series"].get(series)
    return found


def markdown(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The whole document."""
    parts = ["# Accuracy beside other libraries", "", *_introduction(about)]
    for name, series in groups(about["tasks"]):
        task = about["tasks"][name]
        mine = [row for row in rows if row["task"] == name]
        if not mine:
            continue
        parts += ["", f"## {heading(task, series)}", "", f"Errors in {task['units']}."]
        for part, said in (("all", "Every window"), ("few", f"One window in {task['stride']}")):
            found = [row for row in mine if scores_of(row, part, series)]
            if found:
                count = scores_of(found[0], part, series) or {}
                parts += ["", f"{said} ({count['windows']:,}):", "", *_table(found, part, series)]
        failed = [row for row in mine if row["error"]]
        parts += [f"\n- {label(row)}: no result, {row['error']}" for row in failed]
    return "\n".join(parts) + "\n"


def _introduction(about: Mapping[str, Any]) -> list[str]:
    return [
        *about["method"],
        "",
        f"Machine: {about['machine']}. Levels of the pinball loss: {about['levels']}.",
        "",
        "```sh",
        *about["commands"],
        "```",
    ]


def _table(rows: Sequence[Row], part: str, series: str | None) -> list[str]:
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * (len(HEAD) - 2) + "|---|"]
    ordered = sorted(rows, key=lambda row: (scores_of(row, part, series) or {})["mae"])
    for row in ordered:
        found = scores_of(row, part, series) or {}
        name = f"**{label(row)}**" if row["library"] == OURS else label(row)
        numbers = [_number(found[metric]) for metric in ("mse", "mae", "pinball")]
        shares = [_share(found[band]) for band in ("coverage_80", "coverage_95")]
        spent = [f"{row[key]:.1f}" for key in ("fit_cpu_s", "predict_cpu_s")]
        lines.append("| " + " | ".join([name, *numbers, *shares, *spent, _notes(row)]) + " |")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _notes(row: Row) -> str:
    cut = ["**training cut off by the budget**"] if row.get("cut_off") else []
    return "; ".join([*cut, *row.get("notes", [])]).replace("|", "/")


def draw(about: Mapping[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write the picture: error of the subsample against CPU seconds, one panel a table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (name, series)
        for name, series in groups(about["tasks"])
        if any(r["task"] == name for r in rows)
    ]
    columns = min(3, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(
        figsize=(max(9.0, 4.4 * columns), 3.4 * lines + 1.5), dpi=130, layout="constrained"
    )
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for number, (name, series) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        mine = [row for row in rows if row["task"] == name]
        handles |= _panel(axes, about["tasks"][name], series, mine)
    figure.suptitle(
        "Error on the subsample of windows against CPU seconds (filled: flts-ray, open: others)",
        color=INK, fontsize=13, fontweight="bold", ha="left", x=0.01,
    )  # fmt: skip
    order = [name for name in (*BLUES, *OTHERS) if name in handles]
    figure.legend(
        [handles[name] for name in order],
        [f"flts-ray {name}" if name in BLUES else name for name in order],
        loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def cost(row: Row, task: Mapping[str, Any]) -> float:
    """CPU seconds of the fit and of forecasting every window; those of models that were run on the
    subsample alone are scaled up."""
    whole = (row.get("scores") or {}).get("all") is not None
    share = 1.0 if whole else task["windows"] / max(1, task["few"])
    return max(0.01, float(row["fit_cpu_s"]) + float(row["predict_cpu_s"]) * share)


def _panel(
    axes: Any, task: Mapping[str, Any], series: str | None, rows: Sequence[Row]
) -> dict[str, Any]:
    """Draw one panel; returns a handle a model."""
    handles: dict[str, Any] = {}
    for row in rows:
        found, name = scores_of(row, "few", series), label(row)
        if found is None or name not in BLUES | OTHERS:
            continue
        colour, marker = (BLUES | OTHERS)[name]
        mine = name in BLUES
        handles[name] = axes.scatter(
            cost(row, task), found["mae"], marker=marker, s=150 if marker == "*" else 58,
            facecolor=colour if mine else "white", edgecolor=colour, linewidth=1.4,
            zorder=3 if mine else 2,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes)
    axes.set_title(heading(task, series), loc="left", color=INK, fontsize=10, fontweight="bold")
    axes.set_xlabel("CPU seconds, fit and all windows", color=GREY, fontsize=8)
    axes.set_ylabel(f"MAE, {task['short_units']}", color=GREY, fontsize=8)
    return handles


def _plain(axes: Any) -> None:
    """Numbers instead of powers of ten, few of them, and a quiet grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=8, which="both")
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(0.12)
