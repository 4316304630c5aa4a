"""The commands about versions: what differs between two, who serves a series, newer rows.

Design choices: the same shape as in `cli.py`; work is imported by the command that does it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from flts_ray.cli_options import DEFAULT_CONFIG, ConfigOption, SetOption, console, load, say
from flts_ray.errors import GateRefused

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, complete.")]
VersionArgument = Annotated[int, typer.Argument(help="Version, as `flts history` lists it.")]


def add_to(app: typer.Typer) -> None:
    """Hang these commands into the application."""
    app.command(epilog="Example: [cyan]flts diff 1 2 -c configs/demo.yaml[/]")(diff)
    app.command(
        epilog="Example: [cyan]flts series victoria -c configs/demo.yaml[/]"
        "\n\nExample: [cyan]flts series cell-17 --version 3 --version 4 --json[/]"
    )(series)

    app.command(
        epilog="Example: [cyan]flts update -c configs/demo.yaml --dry-run[/]"
        "\n\nExample: [cyan]flts update --set split.test=0.1[/]"
    )(update)


def diff(
    one: VersionArgument,
    other: VersionArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: parameters, members and weights, and series by series."""
    loaded = load(config, overrides)
    from flts_ray.jobs.diff import diff as compare_versions
    from flts_ray.jobs.session import open_session
    from flts_ray.report_models import diff_view

    with open_session(loaded) as services:
        found = compare_versions(services, one, other)
    if as_json:
        print(found.to_json())
    else:
        console().print(diff_view(found, loaded.judge.score))


def series(
    name: Annotated[str, typer.Argument(help="A series, as the prepared data name it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    version: Annotated[
        list[int] | None, typer.Option(help="A version; repeatable. The champion by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which models serve a series, with which weights, and how they scored."""
    loaded = load(config, overrides)
    from flts_ray.jobs.diff import who_serves
    from flts_ray.jobs.session import open_session
    from flts_ray.report_models import served_table

    with open_session(loaded) as services:
        found = who_serves(services, name, version or ())
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        console().print(served_table(name, found, loaded.judge.score))


def update(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge the update, but change nothing.")
    ] = False,
) -> None:
    """Teach the champion the rows that came since; promote it unless it is worse for it.

    With nothing new it says so. Settings stay: `flts train` looks for better ones.
    """
    loaded = load(config, overrides)
    from flts_ray.jobs.update import run

    with say() as narrator:
        report = run(loaded, narrator, dry_run=dry_run)
    print(report.told)
    if report.outcome == "refused":
        raise typer.Exit(GateRefused.exit_code)
