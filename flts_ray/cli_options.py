"""What all commands share: options, the way errors become exit codes, where output goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flts_ray.config import Config, load_config
from flts_ray.errors import FltsError

WIDE = 160
"""Columns of a table where no terminal says how many there are."""
DEFAULT_CONFIG = Path("flts.yaml")
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML configuration; `flts init` writes one.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. task.horizon=48."),
]


class Commands(typer.core.TyperGroup):
    """Errors meant for the user become one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FltsError as error:
            tell(f"[bold red]error:[/] {plain(str(error))}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            tell(plain(str(interrupt) or "interrupted; everything that was started is stopped"))
            raise typer.Exit(130) from None


def group(name: str, told: str, example: str) -> typer.Typer:
    """An application of sub-commands, or (nameless) the whole one."""
    return typer.Typer(
        name=name,
        help=told,
        epilog=f"Example: [cyan]{example}[/]",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )


def tell(text: str) -> None:
    """A message to standard error."""
    # Soft wrapping: a terminal folds long lines itself, and a path stays in one piece.
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def console() -> Console:
    """Standard output; tables are cut for no reader who is a file."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDE)


def plain(text: str) -> str:
    """Text whose brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def load(path: Path, overrides: list[str] | None) -> Config:
    """The configuration of a command. Raises ConfigError."""
    return load_config(path, overrides or [])


def say() -> Any:
    """Who tells the steps of a command on standard error."""
    from flts_ray.narrate import ConsoleNarrator

    return ConsoleNarrator(Console(stderr=True))
