"""The command `flts`: parse, call, print.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 bad
configuration or data, 3 refused by the gate, 4 somebody else was first, 5 a service or champion
is missing, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import flts_ray
from flts_ray import cli_models, cli_serve, cli_stream
from flts_ray.cli_forecast import (
    BulkOption,
    InputOption,
    OutputOption,
    OverwriteOption,
    check_alone,
    forecast_folder,
    is_folder,
)
from flts_ray.cli_options import (
    DEFAULT_CONFIG,
    Commands,
    ConfigOption,
    SetOption,
    console,
    load,
    say,
)
from flts_ray.config import Config
from flts_ray.errors import DataError, GateRefused

if TYPE_CHECKING:
    from flts_ray.evaluate.scoreboard import Scoreboard
    from flts_ray.services import Services

app = typer.Typer(
    name="flts",
    cls=Commands,
    help="Forecasts of load time series: prepare, train, judge, promote, serve.",
    epilog="Example: [cyan]flts init load.csv && flts train && flts serve[/]"
    "\n\nExit codes: 0 done, 2 bad configuration or data, 3 refused by the gate, 4 somebody else "
    "was first, 5 a service or champion is missing, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)
cli_models.add_to(app)
cli_serve.add_to(app)
cli_stream.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. SIGTERM ends a command like Ctrl-C."""
    from flts_ray.jobs.interrupt import interrupt_on_sigterm
    from flts_ray.narrate import set_up_logging

    set_up_logging(json_lines=not sys.stderr.isatty())
    interrupt_on_sigterm()
    app(args=None if arguments is None else list(arguments))


def _version(wanted: bool) -> None:
    if wanted:
        print(flts_ray.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and leave.")
    ] = False,
) -> None:
    """Forecasts of load time series as one Ray application."""


@app.command(epilog="Example: [cyan]flts init load.csv --output flts.yaml[/]")
def init(
    file: Annotated[str, typer.Argument(help="Your CSV or Parquet file; or a folder of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = (
        DEFAULT_CONFIG
    ),
    name: Annotated[str | None, typer.Option(help="Model name; from the file by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUTPUT.")] = False,
) -> None:
    """Write a commented configuration for your file."""
    from flts_ray.sources.propose import model_name, propose

    if output.exists() and not force:
        raise DataError(f"{output} exists; choose another --output, or --force to overwrite it")
    text = propose(file, name or model_name(file))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--output {output}: {error.strerror}; choose another file") from None
    print(f"{output} written; check its guesses, then: flts train --config {output}")


@app.command(epilog="Example: [cyan]flts prepare -c configs/lte.yaml --force[/]")
def prepare(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again.")] = False,
) -> None:
    """Repair, split and describe the input; done at once if nothing changed."""
    loaded = load(config, overrides)
    from flts_ray.jobs.up import adopt_local
    from flts_ray.pipeline import run_prepare
    from flts_ray.report import quarantine_table

    adopt_local(loaded)
    with say() as narrator:
        prepared = run_prepare(loaded, narrator, force=force)
    if prepared.manifest.quarantine:
        console().print(quarantine_table(prepared.quarantine()))
    print(prepared.location)


@app.command(epilog="Example: [cyan]flts train -c configs/demo.yaml --set tune.budget_s=120[/]")
def train(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this study.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Prepare again.")] = False,
) -> None:
    """Prepare, tune, judge, and promote if the gate lets the best model pass."""
    loaded = load(config, overrides)
    from flts_ray.jobs.train import run

    with say() as narrator:
        report = run(loaded, narrator, resume=resume, force=force)
    _show(report.boards, loaded, report.candidate, report.champion_name)
    print(report.decision.reason)
    if not report.promoted:
        raise typer.Exit(GateRefused.exit_code)


def _show(boards: Sequence[Scoreboard], config: Config, chosen: str, champion: str) -> None:
    from flts_ray.report import candidates_table
    from flts_ray.report_bands import bands_table
    from flts_ray.report_calibration import calibration_table

    table = candidates_table(boards, config.judge.score, chosen, config.data.units, champion)
    console().print(table, "", calibration_table(boards), "", bands_table(boards))


@app.command(epilog="Example: [cyan]flts backtest -c configs/lte.yaml --set judge.stride=1[/]")
def backtest(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Judge the models of the finished study, and the champion, on the test span."""
    loaded = load(config, overrides)
    from flts_ray.jobs.session import open_session
    from flts_ray.pipeline import boards, judge_again

    with say() as narrator, open_session(loaded) as services:
        judged, champion = judge_again(loaded, services, narrator)
    _show(boards(judged, champion), loaded, "", champion.name if champion else "")


@app.command(epilog="Example: [cyan]flts promote 3 -c configs/demo.yaml[/]")
def promote(
    version: Annotated[int, typer.Argument(help="Version, as `flts history` lists it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Judge a registered version against the champion of now; promote it if the gate agrees."""
    loaded = load(config, overrides)
    from flts_ray.jobs.session import open_session
    from flts_ray.pipeline import run_prepare
    from flts_ray.promote import promote_version

    with say() as narrator, open_session(loaded) as services:
        prepared = run_prepare(loaded, narrator)
        now = datetime.now(UTC)
        print(promote_version(loaded, services, prepared, version, now, narrator).reason)


@app.command(
    epilog='Example: [cyan]flts rollback -c configs/demo.yaml --reason "bad nights"[/]'
    "\n\nExample: [cyan]flts rollback --series cell-17 --to 2[/]"
)
def rollback(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "by hand",
    series: Annotated[str | None, typer.Option(help="Only this series; needs --to.")] = None,
    to: Annotated[int | None, typer.Option(help="Version that the series goes back to.")] = None,
) -> None:
    """Make the previous champion champion again (twice: forward), or take one series back."""
    loaded = load(config, overrides)
    from flts_ray.jobs.session import open_session

    if (series is None) != (to is None):
        raise DataError("--series and --to go together: the series, and where it goes back to")
    with open_session(loaded) as services:
        if series is not None and to is not None:
            from flts_ray.jobs.series_rollback import rollback_series

            done = rollback_series(services, series, to, datetime.now(UTC), reason)
            print(f"champion is version {done.version.version}: {done.entry.reason}")
            return
        from flts_ray.promote import roll_back

        entry = roll_back(services, datetime.now(UTC), reason)
    print(f"champion is version {entry.champion}, previous is version {entry.previous}")


@app.command(epilog="Example: [cyan]flts history -c configs/demo.yaml --json[/]")
def history(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List promotions, rollbacks and the decisions behind them."""
    loaded = load(config, overrides)
    from flts_ray.jobs.up import adopt_local
    from flts_ray.promotions import PromotionLog
    from flts_ray.report import history_lines, history_table
    from flts_ray.store import Store

    adopt_local(loaded)
    entries = PromotionLog(Store.open(loaded.root), loaded.name).entries()
    if as_json:
        for line in history_lines(entries):
            print(line)
    elif entries:
        console().print(history_table(entries))
    else:
        print(f"{loaded.name} has no champion yet; `flts train --config {config}` makes one")


@app.command(epilog="Example: [cyan]flts serve -c configs/demo.yaml --set serve.port=8080[/]")
def serve(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Serve the champion over HTTP until Ctrl-C; on a running cluster, deploy and leave."""
    loaded = load(config, overrides)
    from flts_ray.jobs.serve import deploy_to_cluster, joins_a_cluster, serve_until

    with say() as narrator:
        if joins_a_cluster(loaded):
            print(deploy_to_cluster(loaded, narrator))
        else:
            serve_until(loaded, narrator, _until_interrupted)


def _until_interrupted(url: str, services: Services) -> None:
    from flts_ray.jobs.interrupt import wait_for_interrupt
    from flts_ray.report import addresses_table

    console().print(addresses_table(url, services.mlflow_uri, services.dashboard))
    print("serving; Ctrl-C stops everything", flush=True)
    wait_for_interrupt()


@app.command(
    epilog="Example: [cyan]flts forecast -c flts.yaml --input new.csv --output out.csv[/]"
    "\n\nExample: [cyan]flts forecast -c flts.yaml --series cell-17[/]"
    "\n\nExample: [cyan]flts forecast -i s3://load/today/ -o s3://load/forecasts/today/[/]"
)
def forecast(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    series: Annotated[
        list[str] | None, typer.Option(help="A series of the prepared data; repeatable.")
    ] = None,
    file: InputOption = None,
    origin: Annotated[str | None, typer.Option(help="First step to forecast, ISO 8601.")] = None,
    horizon: Annotated[int | None, typer.Option(help="Steps; the model's by default.")] = None,
    quantile: Annotated[list[float] | None, typer.Option(help="A level; repeatable.")] = None,
    url: Annotated[str | None, typer.Option(help="A running forecast API to ask.")] = None,
    output: OutputOption = None,
    bulk: BulkOption = False,
    force: OverwriteOption = False,
) -> None:
    """Forecast with the champion, from files or from the end of the prepared data."""
    loaded = load(config, overrides)
    if bulk or force or is_folder(output):
        apart = {"--series": series, "--origin": origin, "--url": url}
        check_alone([name for name, given in apart.items() if given])
        print(forecast_folder(loaded, file, output, horizon, quantile or (), force))
        return
    from flts_ray.jobs.answers import check_output, write_answers
    from flts_ray.jobs.forecast import forecast as ask
    from flts_ray.report import forecast_table

    target = None if output is None else Path(output)
    if target is not None:
        check_output(target)
    answers = ask(
        loaded,
        series=series or (),
        path=file,
        origin=origin,
        horizon=horizon,
        quantiles=quantile or (),
        url=url,
    )
    if target is None:
        console().print(forecast_table(answers))
    else:
        print(f"{write_answers(answers, target)} rows written to {output}")


@app.command(epilog="Example: [cyan]flts status -c configs/demo.yaml[/]")
def status(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """Show what was prepared, tried, promoted, and what runs."""
    loaded = load(config, overrides)
    from flts_ray.jobs.status import status_of
    from flts_ray.report import status_table

    console().print(status_table(status_of(loaded)))


@app.command(epilog="Example: [cyan]flts demo --exit[/]")
def demo(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The demo's own; its root may be changed.")
    ] = Path("configs/demo.yaml"),
    overrides: SetOption = None,
    leave: Annotated[
        bool, typer.Option("--exit", help="Leave after the forecast instead of serving on.")
    ] = False,
) -> None:
    """A year of electricity demand: stream, store, tune, judge, promote, serve, one forecast."""
    loaded = load(config, overrides)
    from flts_ray.jobs.demo import run_demo

    with say() as narrator:
        run_demo(loaded, narrator, console(), leave=leave)


if __name__ == "__main__":
    main()
