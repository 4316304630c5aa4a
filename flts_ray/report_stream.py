"""The tables a person reads of the stream: partitions, verification, actors.

Design choices: as in `report.py`; a number that nobody knows is a question mark, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from flts_ray.ingest.letters import Letter
from flts_ray.ingest.progress import IngestView, size_text
from flts_ray.ingest.verify import VerifyReport
from flts_ray.jobs.stream_status import StreamStatus
from flts_ray.local.stack import Addresses

LONGEST = 50


def partitions_table(status: StreamStatus) -> Table:
    """One line a partition."""
    table = _table(f"topic {status.topic}")
    table.add_column("partition", justify="right")
    for name in ("next offset", "lag", "segments", "rows", "dead letters"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in status.partitions:
        cells = (line.frontier, line.lag, line.segments, line.rows, line.dead_letters)
        style = "red" if line.halted else None
        table.add_row(str(line.partition), *map(_count, cells), style=style)
    return table


def status_rows(status: StreamStatus | None) -> list[tuple[str, Text]]:
    """The same in a few lines, for the table of everything."""
    if status is None:
        return []
    parts = status.partitions
    letters = [line.dead_letters for line in parts]
    lag = "lag not known" if status.lag is None else f"lag {status.lag:,}"
    told = [
        f"{status.topic}: {len(parts)} partition(s)",
        f"{sum(line.segments for line in parts):,} segments",
        lag,
        f"{_total(letters)} dead letters",
    ]
    rows = [("stream", Text(", ".join(told)))]
    table = "none yet; `flts ingest compact` makes one"
    if status.table is not None:
        table = f"number {status.table}"
    rows.append(("snapshot", Text(table)))
    return rows + [("", Text(worry, style="yellow")) for worry in worries(status)]


def verify_table(report: VerifyReport) -> Table:
    """What was checked, a partition a line."""
    table = _table(
        f"{report.segments:,} segments, {report.rows:,} rows, {report.bad_rows:,} dead letters",
        "every byte was read" if report.deep else "from the listing; --deep reads every byte",
    )
    names = ("partition", "segments", "next offset", "rows", "dead letters", "lost", "committed")
    for name in (*names, "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for partition, one in sorted(report.partitions.items()):
        table.add_row(
            str(partition), _count(one.segments), _count(one.frontier),
            _count(one.rows), _count(one.bad_rows), _count(one.lost),
            "-" if one.committed is None else _count(one.committed), size_text(one.size),
        )  # fmt: skip
    return table


def problem_lines(report: VerifyReport) -> list[str]:
    """At most fifty problems, and how many more there are."""
    found = [f"{one.code}: {one.message}" for one in report.problems[:LONGEST]]
    more = len(report.problems) - LONGEST
    return found + ([f"and {more} more"] if more > 0 else [])


def summary(view: IngestView) -> str:
    """What a run did, in a line."""
    totals = view.totals
    told = [
        f"{totals['rows']:,} rows in {totals['segments']:,} segments",
        f"{totals['bad_rows']:,} dead letters",
        f"{totals['rows'] / view.elapsed_s if view.elapsed_s else 0:,.0f} rows/s",
        f"lag {_count(view.lag)}",
    ]
    lost = [f"{totals['lost']:,} offsets the broker had deleted"] if totals["lost"] else []
    return ", ".join([*told, *lost])


def letters_table(letters: Sequence[Letter]) -> Table:
    """Refused messages, one a line."""
    table = _table(f"{len(letters)} dead letters")
    table.add_column("letter", no_wrap=True)
    table.add_column("arrived (UTC)", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for one in letters:
        moment = one.arrived
        arrived = f"{one.timestamp_ms} ms" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
        detail = "".join(c if c.isprintable() else "?" for c in one.detail)
        table.add_row(
            one.id, arrived, one.code, f"{len(one.raw or b''):,}",
            Text(detail),
        )  # fmt: skip
    return table


def servers_table(addresses: Addresses) -> Table:
    """Where the broker and the S3 server of this machine listen."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, address in (("broker", addresses.brokers), ("S3", addresses.s3)):
        if address:
            table.add_row(name, Text(address))
    return table


def actors_table(actors: Sequence[Mapping[str, Any]]) -> Table:
    """Actors of a cluster: what each does, and with which process."""
    table = _table()
    for name in ("actor", "state", "process"):
        table.add_column(name, no_wrap=True)
    table.add_column("last error", overflow="fold")
    for actor in actors:
        place = f"{actor['index']} of {actor['of']}"
        pid = str(actor["pid"] or "-")
        table.add_row(place, actor["state"], pid, Text(actor["error"]))
    return table


def worries(status: StreamStatus) -> list[str]:
    """What should worry somebody, a line each."""
    return [*_ages(status), *status.troubles, *_halted(status)]


def _ages(status: StreamStatus) -> list[str]:
    """Said only where the lag is not what it is now."""
    if not status.partitions:
        return []
    if not status.workers:
        return ["nobody has said how far the topic goes; lag is not known"]
    old = [one for one in status.workers if one.old]
    if not old:
        return []
    named = ", ".join(str(one.index) for one in old)
    ago = duration_text(min(one.age_s for one in old))
    why = "it does not run, or cannot write; lag as of then"
    return [f"the status of worker {named} is {ago} old: {why}"]


def _halted(status: StreamStatus) -> list[str]:
    halted = [f"partition {p.partition} halted: {p.halted}" for p in status.partitions if p.halted]
    return halted + [
        f"partition {p.partition} waits: {p.waits}" for p in status.partitions if p.waits
    ]


def duration_text(seconds: float) -> str:
    """Seconds as the largest unit that fits, such as `5 min`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _total(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return _count(sum(known) if len(known) == len(values) else None)


def _table(title: str | None = None, caption: str | None = None) -> Table:
    return Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        caption=None if caption is None else Text(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
