"""The tables a person reads: candidates, quarantine, history, forecasts, status.

Design choices: everything fits a terminal of 80 columns, and what does not is folded, never cut;
candidates are ordered by the score the gate uses and always hold the baselines; numbers of one
column share their decimals, so that they compare at a glance; what a colour says, a word says
too; long tables end with a count of the rest.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from flts_ray.evaluate.scoreboard import Scoreboard
from flts_ray.jobs.status import Status
from flts_ray.promotions import Entry
from flts_ray.report_stream import status_rows
from flts_ray.tune.space import BASELINES

HEADS = {
    "scaled_pinball": "scaled\npinball",
    "composite": "compo-\nsite",
    "rmse": "RMSE",
    "mae": "MAE",
    "wape": "WAPE\n%",
    "mase": "MASE",
    "coverage_80": "80 %\nband",
    "coverage_95": "95 %\nband",
}
PERCENT = ("wape", "coverage_80", "coverage_95")
"""Fractions, shown in per cent."""
DIGITS, WIDEST = 4, 9
SHOWN_LEVELS = ("0.025", "0.1", "0.9", "0.975")
LONGEST = 20


def candidates_table(
    boards: Sequence[Scoreboard], score: str, chosen: str, units: str, champion: str = ""
) -> Table:
    """All models on the test span, best `score` first.

    `chosen` and `champion` name the candidate and the champion it was judged against.
    """
    table = _table(
        f"Test span, {int(boards[0].overall['windows'])} windows"
        + (f", errors in {units}" if units else ""),
        "RMSE of the mean, MAE and WAPE of the median; bands: % of values inside",
    )
    keys = list(dict.fromkeys([score, "rmse", "mae", "wape", "mase", "coverage_80", "coverage_95"]))
    ranked = sorted(boards, key=lambda board: _rank(board.overall[score]))
    table.add_column("model", overflow="fold")
    table.add_column("role", no_wrap=True)
    for key in keys:
        table.add_column(HEADS.get(key, key), justify="right", no_wrap=True)
    columns = [_aligned(key, [board.overall[key] for board in ranked]) for key in keys]
    for board, *cells in zip(ranked, *columns, strict=True):
        role = _role(board, chosen, champion)
        style = {"candidate": "bold green", "champion": "bold"}.get(role)
        table.add_row(Text(board.model), role, *cells, style=style)
    return table


def quarantine_table(rows: pa.Table) -> Table:
    """Series that were left out, at most 20 of them, and why."""
    table = _table(f"{len(rows)} series in quarantine")
    table.add_column("series", overflow="fold", max_width=30)
    table.add_column("why", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for row in rows.slice(0, LONGEST).to_pylist():
        table.add_row(Text(row["unique_id"]), row["code"], Text(row["reason"]))
    if len(rows) > LONGEST:
        table.add_row("...", "", f"and {len(rows) - LONGEST} more")
    return table


def history_table(entries: Sequence[Entry]) -> Table:
    """Promotions, rollbacks and challenges, newest first, with the state after each."""
    table = _table()
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("when (UTC)", no_wrap=True)
    table.add_column("since then", no_wrap=True)
    table.add_column("what", overflow="fold")
    for entry in reversed(entries):
        state = "\n".join(f"{alias} {version}" for alias, version in entry.aliases.items())
        why = f": {entry.reason}" if entry.reason else ""
        table.add_row(
            str(entry.n), _minute(entry.at), state, Text(f"{entry.action} by {entry.by}{why}")
        )
    return table


def history_lines(entries: Sequence[Entry]) -> list[str]:
    """The same as JSON, oldest first, one object a line."""
    return [json.dumps(asdict(entry)) for entry in entries]


def addresses_table(api: str, mlflow: str, dashboard: str | None) -> Table:
    """Where to look while something serves."""
    table = _pairs()
    for name, address in [
        ("forecast API", f"{api}/v1/forecast"),
        ("its docs page", f"{api}/docs"),
        ("MLflow", mlflow),
        ("Ray dashboard", dashboard or "that of the cluster"),
    ]:
        table.add_row(name, Text(address))
    return table


def forecast_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Forecasts as rows; the model that made them in the title.

    Of more than four levels only the ends of the 80 % and 95 % bands are shown. A series that the
    model was not fitted on is marked.
    """
    model = answers[0]["model"]
    forecasts = [one for answer in answers for one in answer["forecasts"]]
    levels = list(forecasts[0]["quantiles"])
    shown = levels if len(levels) <= len(SHOWN_LEVELS) else [q for q in levels if q in SHOWN_LEVELS]
    more = f"{len(levels)} levels in all; --output writes them" if shown != levels else None
    table = _table(f"{model['name']} version {model['version']} ({model['kind']})", more)
    table.add_column("series", overflow="fold")
    whole = all(ds.endswith(":00Z") for one in forecasts for ds in one["ds"])
    table.add_column("ds (UTC)" if whole else "ds", no_wrap=True)
    for name in ("mean", "median", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for one in forecasts:
        values = [one["mean"], one["median"], *(one["quantiles"][q] for q in shown)]
        decimals = _decimals([value for column in values for value in column])
        for ds, *row in zip(one["ds"], *values, strict=True):
            stamp = ds.removesuffix(":00Z").replace("T", " ") if whole else ds
            cells = [_plain(value, decimals) for value in row]
            mark = " (cold start)" if one.get("cold_start") else ""
            table.add_row(Text(one["unique_id"] + mark), stamp, *cells)
    return table


def status_table(status: Status) -> Table:
    """One line a thing."""
    table = _pairs()
    table.add_row("model", status.name)
    table.add_row("root", Text(status.root))
    for manifest in status.prepared:
        left_out = sum(manifest.quarantine.values())
        table.add_row(
            "prepared",
            f"{manifest.hash[:16]}: {manifest.series} series, {manifest.rows:,} rows, "
            f"{left_out} in quarantine",
        )
    for name, told in status_rows(status.stream):
        table.add_row(name, told)
    for study, outcomes in status.studies.items():
        states = Counter(outcome.status for outcome in outcomes)
        summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        table.add_row("study", f"{study}: {summary or 'no trial is over'}")
        for outcome in outcomes:
            if outcome.error:
                error = outcome.error.strip().splitlines()[-1]
                table.add_row("", Text(f"{outcome.trial_id}: {error}", style="red"))
    entry = status.newest
    if entry is None or entry.champion is None:
        table.add_row("champion", "none yet; `flts train` makes one")
    else:
        since = f"version {entry.champion} since {_minute(entry.at)} UTC, by {entry.by}"
        table.add_row("champion", Text(since))
    for name, (address, answer) in status.services.items():
        table.add_row(name, Text(f"{address} {answer}"))
    if not status.services:
        table.add_row("services", "none running; `flts serve` starts them")
    return table


def _table(title: str | None = None, caption: str | None = None) -> Table:
    return Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )


def _pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _role(board: Scoreboard, chosen: str, champion: str) -> str:
    if board.model == champion:
        return "champion"
    if board.model == chosen:
        return "candidate"
    return "baseline" if board.kind in BASELINES else ""


def _rank(value: float) -> tuple[bool, float]:
    """Lowest first, undefined last."""
    return (True, 0.0) if math.isnan(value) else (False, value)


def _aligned(key: str, values: Sequence[float]) -> list[str]:
    """One column of numbers with the same decimals."""
    scaled = [100 * value for value in values] if key in PERCENT else values
    decimals = 1 if key in PERCENT else 3 if key == "mase" else _decimals(values)
    return ["-" if math.isnan(value) else _plain(value, decimals) for value in scaled]


def _decimals(values: Sequence[float]) -> int | None:
    """Decimals that give the smallest value four digits; None where the largest gets too long."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return DIGITS - 1
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(min(sizes))))
    return decimals if len(f"{max(sizes):.{decimals}f}") <= WIDEST else None


def _plain(value: float, decimals: int | None) -> str:
    return f"{value:.{DIGITS}g}" if decimals is None else f"{value:.{decimals}f}"


def _minute(at: str) -> str:
    """An ISO instant as 2024-05-01 12:00, in UTC."""
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%d %H:%M")
