"""The tables a person reads of versions: what differs, and who serves a series.

Design choices: as in `report.py`; a weight is that of the quantiles, followed by that of the mean
where it is another; long lists end with a count of the rest, `--json` has them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flts_ray.jobs.diff import Row, SeriesChange, Served, VersionDiff

LONGEST = 20


def diff_view(found: VersionDiff, score: str) -> Group:
    """Two versions side by side."""
    parts: list[RenderableType] = [Text(line) for line in _heads(found)]
    names = [_named(version) for version in found.versions]
    members = list(dict.fromkeys([*found.weights[0], *found.weights[1]]))
    table = _table("weights of all series", ["member", *names])
    for member in members:
        table.add_row(Text(member), *(_share(side.get(member)) for side in found.weights))
    parts.append(table)
    if found.params:
        table = _table("parameters that differ", ["member", "parameter", *names])
        for member, name, one, other in found.params:
            table.add_row(Text(member), name, Text(_value(one)), Text(_value(other)))
        parts.append(table)
    if found.changed:
        parts.append(_changes(found, names, score))
    return Group(*parts)


def served_table(series: str, found: Sequence[Served], score: str) -> Table:
    """Who serves a series, one line a version."""
    heads = ["version", "served by", "weights", f"validation\n{score}", f"test\n{score}"]
    table = _table(f"series {series}", heads)
    for one in found:
        table.add_row(
            _named((one.version, one.kind)),
            Text(members_text(one.members)),
            "its own" if one.own else "of all series",
            _score(one.validation),
            _score(one.test),
        )
    return table


def members_text(members: Row) -> str:
    """Members and their weights, largest first."""
    ranked = sorted(members.items(), key=lambda one: (-one[1][0], one[0]))
    if len(ranked) == 1:
        return ranked[0][0]
    return " + ".join(f"{name} {_share(weight)}" for name, weight in ranked)


def _heads(found: VersionDiff) -> list[str]:
    one, other = (_named(version) for version in found.versions)
    data = "the same prepared set" if found.same_data else "different prepared sets"
    lines = [
        f"{one} and {other} were fitted on {data}"
        + ("" if found.same_data else ", so their scores are of different windows"),
        f"{len(found.changed)} of {found.series} series are served otherwise",
    ]
    for (number, _), names in zip(found.versions, found.only, strict=True):
        if names:
            more = ", ..." if len(names) > LONGEST else ""
            lines.append(f"only version {number} knows: {', '.join(names[:LONGEST])}{more}")
    return lines


def _changes(found: VersionDiff, names: Sequence[str], score: str) -> Table:
    table = _table(
        f"series served otherwise, {score} on test where it was kept, worst change first",
        ["series", *(f"{name}: served by" for name in names), names[0], names[1]],
    )
    for change in found.changed[:LONGEST]:
        table.add_row(Text(change.series), *_served_cells(change), *map(_score, change.test))
    if len(found.changed) > LONGEST:
        table.add_row("...", f"and {len(found.changed) - LONGEST} more", "", "", "")
    return table


def _served_cells(change: SeriesChange) -> list[Text]:
    return [Text(members_text(side)) for side in change.members]


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _named(version: tuple[int, str]) -> str:
    return f"version {version[0]} ({version[1]})"


def _share(weight: tuple[float, float] | None) -> str:
    if weight is None:
        return "-"
    level, mean = (f"{one:.2f}" for one in weight)
    return level if level == mean else f"{level} (mean {mean})"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _value(value: Any) -> str:
    return "-" if value is None else str(value)
