"""The tables a person reads: candidates, quarantine, history, forecasts, status.

Design choices: candidates are ordered by the score the gate uses and always hold the baselines;
long tables are cut with a count of the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from rich.table import Table

from flts_ray.evaluate.scoreboard import Scoreboard
from flts_ray.jobs.status import Status
from flts_ray.promotions import Entry

HEADS = {
    "scaled_pinball": "scaled pinball",
    "rmse": "RMSE",
    "mae": "MAE",
    "wape": "WAPE %",
    "mase": "MASE",
    "coverage_80": "in 80 %",
    "coverage_95": "in 95 %",
}


def candidates_table(boards: Sequence[Scoreboard], score: str, chosen: str, units: str) -> Table:
    """A rich table of all candidates on the test span, best first; `chosen` is highlighted."""
    table = Table(
        title=f"Test span, {int(boards[0].overall['windows'])} windows"
        + (f", errors in {units}" if units else ""),
        title_justify="left",
        caption="RMSE of the mean, MAE and WAPE of the median; bands should cover 80 % and 95 %",
        caption_justify="left",
    )
    keys = list(dict.fromkeys([score, "rmse", "mae", "wape", "mase", "coverage_80", "coverage_95"]))
    table.add_column("model", no_wrap=True)
    for key in keys:
        table.add_column(HEADS.get(key, key), justify="right")
    for board in sorted(boards, key=lambda b: b.overall[score]):
        cells = [_number(key, board.overall[key]) for key in keys]
        style = "bold green" if board.model == chosen else None
        table.add_row(board.model, *cells, style=style)
    return table


def quarantine_table(rows: pa.Table) -> Table:
    """Series that were left out, at most 20 of them, and why."""
    table = Table(title=f"{len(rows)} series in quarantine", title_justify="left")
    for name in ("series", "why", "reason"):
        table.add_column(name)
    for row in rows.slice(0, 20).to_pylist():
        table.add_row(row["unique_id"], row["code"], row["reason"])
    if len(rows) > 20:
        table.add_row("...", f"{len(rows) - 20} more", "")
    return table


def history_table(entries: Sequence[Entry]) -> Table:
    """Promotions and rollbacks, newest first."""
    table = Table()
    for name in ("n", "at", "what", "champion", "previous", "challenger", "by", "reason"):
        table.add_column(name, overflow="fold")
    for entry in reversed(entries):
        versions = (entry.champion, entry.previous, entry.challenger)
        shown = ["-" if version is None else str(version) for version in versions]
        table.add_row(
            str(entry.n), entry.at[:19], entry.action, *shown, entry.by, entry.reason or ""
        )
    return table


def history_lines(entries: Sequence[Entry]) -> list[str]:
    """The same as JSON, oldest first, one object a line."""
    return [json.dumps(asdict(entry)) for entry in entries]


def addresses_table(api: str, mlflow: str, dashboard: str | None) -> Table:
    """Where to look while something serves."""
    table = Table.grid(padding=(0, 2))
    for name, address in [
        ("forecast API", f"{api}/v1/forecast"),
        ("its docs page", f"{api}/docs"),
        ("MLflow", mlflow),
        ("Ray dashboard", dashboard or "that of the cluster"),
    ]:
        table.add_row(f"[bold]{name}[/]", address)
    return table


def forecast_table(answers: Sequence[dict[str, Any]]) -> Table:
    """Forecasts as rows; the model that made them in the title."""
    model = answers[0]["model"]
    table = Table(
        title=f"{model['name']} version {model['version']} ({model['kind']})", title_justify="left"
    )
    levels = list(answers[0]["forecasts"][0]["quantiles"])
    for name in ("series", "ds", "mean", "median", *levels):
        table.add_column(name, justify="left" if name in ("series", "ds") else "right")
    for answer in answers:
        for one in answer["forecasts"]:
            columns = [one["mean"], one["median"], *(one["quantiles"][q] for q in levels)]
            for ds, *values in zip(one["ds"], *columns, strict=True):
                table.add_row(one["unique_id"], ds, *(f"{value:.5g}" for value in values))
    return table


def status_table(status: Status) -> Table:
    """One line a thing."""
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]model[/]", status.name)
    table.add_row("[bold]root[/]", status.root)
    for manifest in status.prepared:
        left_out = sum(manifest.quarantine.values())
        table.add_row(
            "[bold]prepared[/]",
            f"{manifest.hash[:16]}: {manifest.series} series, {manifest.rows:,} rows, "
            f"{left_out} in quarantine",
        )
    for study, outcomes in status.studies.items():
        states = Counter(outcome.status for outcome in outcomes)
        summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        table.add_row("[bold]study[/]", f"{study}: {summary or 'no trial is over'}")
        for outcome in outcomes:
            if outcome.error:
                table.add_row("", f"[red]{outcome.trial_id}[/]: {outcome.error.splitlines()[-1]}")
    entry = status.newest
    champion = (
        f"version {entry.champion} since {entry.at[:19]}, by {entry.by}"
        if entry is not None and entry.champion is not None
        else "none yet; `flts train` makes one"
    )
    table.add_row("[bold]champion[/]", champion)
    for name, (address, answer) in status.services.items():
        table.add_row(f"[bold]{name}[/]", f"{address} {answer}")
    if not status.services:
        table.add_row("[bold]services[/]", "none running; `flts serve` starts them")
    return table


def _number(key: str, value: float) -> str:
    if key in ("wape", "coverage_80", "coverage_95"):
        return f"{100 * value:.1f}"
    return f"{value:.4g}"
