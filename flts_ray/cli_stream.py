"""The commands of the stream: from the broker into the store, and back where it must.

Design choices: the same shape as in `cli.py`; groups of commands where several share a noun; work
is imported by the command that does it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from flts_ray.cli_dlq import dlq
from flts_ray.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    SetOption,
    console,
    group,
    load,
    plain,
    say,
    tell,
)
from flts_ray.config import Config
from flts_ray.errors import DataError

if TYPE_CHECKING:
    from flts_ray.jobs.ingest_check import Verified

PANEL = "Stream"
ingest = group(
    "ingest",
    "Take samples from the topic into the store, each exactly once.",
    "flts ingest run --until-end --compact",
)
CompactEvery = Annotated[
    float | None,
    typer.Option("--compact-every", min=1, metavar="S", help="Compact and sweep every S seconds."),
]


def add_to(app: typer.Typer) -> None:
    """Hang these commands into the application."""
    app.command(epilog="Example: [cyan]flts up -c flts.yaml[/]", rich_help_panel=PANEL)(up)
    app.command(epilog="Example: [cyan]flts down -c flts.yaml[/]", rich_help_panel=PANEL)(down)
    app.command(
        epilog="Example: [cyan]flts replay -c flts.yaml --input new.csv --speed 3600[/]",
        rich_help_panel=PANEL,
    )(replay)
    app.add_typer(ingest, rich_help_panel=PANEL)
    app.add_typer(dlq, rich_help_panel=PANEL)
    app.command(epilog="Example: [cyan]flts lineage 3 -c flts.yaml[/]", rich_help_panel=PANEL)(
        lineage
    )


@ingest.command(
    epilog="Example: [cyan]flts ingest run -c flts.yaml --until-end --compact[/]"
    "\n\nExample: [cyan]flts ingest run --compact-every 600[/]"
)
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Leave when all that was sent by now is stored.")
    ] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Compact in the end.")] = False,
    compact_every: CompactEvery = None,
) -> None:
    """Ingest in the foreground until Ctrl-C; what is buffered is written before it ends."""
    loaded = load(config, overrides)
    from flts_ray.ingest.progress import IngestProgress
    from flts_ray.jobs.ingest import run as ingest_until
    from flts_ray.report_stream import summary

    with say() as narrator, IngestProgress(narrator.console) as watch:
        view = ingest_until(
            loaded, narrator, until_end=until_end, compact_every_s=compact_every, watch=watch
        )
    print(summary(view))
    if compact:
        _compact(loaded)


@ingest.command(epilog="Example: [cyan]flts ingest start -c flts.yaml --set ingest.actors=4[/]")
def start(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    compact_every: CompactEvery = None,
) -> None:
    """Leave the actors on the running Ray cluster; again with other settings replaces them."""
    loaded = load(config, overrides)
    from flts_ray.jobs.ingest import start as start_actors
    from flts_ray.report_stream import actors_table

    with say() as narrator:
        actors = start_actors(loaded, narrator, compact_every_s=compact_every)
    console().print(actors_table(actors))


@ingest.command(epilog="Example: [cyan]flts ingest stop -c flts.yaml[/]")
def stop(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Have the actors on the running Ray cluster write what they hold, and remove them."""
    loaded = load(config, overrides)
    from flts_ray.jobs.ingest import stop as stop_actors
    from flts_ray.report_stream import actors_table

    with say() as narrator:
        actors = stop_actors(loaded, narrator)
    if actors:
        console().print(actors_table(actors))


@ingest.command(epilog="Example: [cyan]flts ingest verify -c flts.yaml --deep[/]")
def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte.")] = False,
) -> None:
    """Check that each offset is stored once, without a gap; exit code 2 if it is not."""
    loaded = load(config, overrides)
    from flts_ray.jobs.ingest_check import verify_stream

    with say() as narrator:
        found = verify_stream(
            loaded, deep=deep, progress=lambda done, all_: narrator.stage("segments", done, all_)
        )
    _show(found)


def _show(found: Verified) -> None:
    from flts_ray.report_stream import problem_lines, verify_table

    for epoch, report in found.epochs.items():
        if len(found.epochs) > 1:
            print(f"epoch {epoch}")
        console().print(verify_table(report))
    if found.commits != "checked":
        tell(plain(f"commits {found.commits}"))
    problems = [line for report in found.epochs.values() for line in problem_lines(report)]
    if problems:
        count = sum(len(report.problems) for report in found.epochs.values())
        raise DataError(f"{count} problem(s) in what is stored", problems=problems)
    print("no problem found")


@ingest.command(
    epilog="Example: [cyan]flts ingest compact -c flts.yaml[/]"
    "\n\nExample: [cyan]flts ingest compact --sweep[/]"
)
def compact(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Remove files a day old that none of the newest 10 snapshots has."
        ),
    ] = False,
) -> None:
    """Add what was stored since the last time to the table that `data.snapshot` reads."""
    _compact(load(config, overrides), sweep)


def _compact(config: Config, sweep: bool = False) -> None:
    from flts_ray.jobs.ingest_check import compact_stream

    with say() as narrator:
        made = compact_stream(config, narrator.stage, sweep)
    print(made)


@ingest.command("status", epilog="Example: [cyan]flts ingest status -c flts.yaml[/]")
def ingest_status(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Show lag, segments and dead letters of each partition, from the store alone."""
    loaded = load(config, overrides)
    from flts_ray.jobs.stream_status import stream_status
    from flts_ray.jobs.up import adopt_local
    from flts_ray.report_stream import partitions_table, worries
    from flts_ray.store import Store

    adopt_local(loaded)
    found = stream_status(loaded, Store.open(loaded.root), datetime.now(UTC))
    if found is None:
        print(f"nothing was ingested from {loaded.stream.topic} yet; `flts ingest run` does that")
    else:
        console().print(partitions_table(found))
        for worry in worries(found):
            tell(plain(worry))


def up(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    no_s3: Annotated[bool, typer.Option("--no-s3", help="Only the broker.")] = False,
) -> None:
    """Start a broker and an S3 server on this machine, and leave them running."""
    loaded = load(config, overrides)
    from flts_ray.jobs.up import up as start_servers
    from flts_ray.report_stream import servers_table

    with say() as narrator:
        found = start_servers(loaded, narrator, s3=not no_s3)
    console().print(servers_table(found))


def down(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Stop what `flts up` started; the data stay."""
    loaded = load(config, overrides)
    from flts_ray.jobs.up import down as stop_servers

    print("stopped" if stop_servers(loaded) else "nothing was running")


def replay(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    file: Annotated[
        str | None, typer.Option("--input", "-i", help="Files; those of `data.path` by default.")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="Seconds of data in a second; as fast as possible by default."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most messages in the topic.")] = None,
) -> None:
    """Send the rows of a file to the topic, in the order of time; again goes on where it was."""
    loaded = load(config, overrides)
    from flts_ray.jobs.replay import replay as send
    from flts_ray.jobs.up import adopt_local, brokers_of

    adopt_local(loaded)
    with say() as narrator:
        done = send(
            loaded, brokers_of(loaded), file, speed, limit,
            progress=lambda done, total: narrator.stage("messages", done, total),
        )  # fmt: skip
    print(f"{done.sent:,} messages sent to {loaded.stream.topic}, {done.already:,} were there")


def lineage(
    version: Annotated[
        int | None, typer.Argument(help="As `flts history` lists it; the champion by default.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    segments: Annotated[bool, typer.Option("--segments", help="Name every segment.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Lead a model back to the snapshot and the offsets that it was trained on."""
    loaded = load(config, overrides)
    from flts_ray.jobs.lineage import lineage as trace
    from flts_ray.jobs.lineage import lineage_lines

    found = trace(loaded, version)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    for line in lineage_lines(found, every_segment=segments):
        print(line)
