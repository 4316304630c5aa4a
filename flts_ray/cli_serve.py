"""Commands about the forecast API: who may call it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flts_ray.cli_options import DEFAULT_CONFIG, ConfigOption, SetOption, group, load

NameArgument = Annotated[str, typer.Argument(help="What the token is called, for example a team.")]


class ScopeName(StrEnum):
    """What a token may do."""

    read = "read"
    admin = "admin"


def add_to(app: typer.Typer) -> None:
    """Register the group of commands."""
    token = group("token", "Tokens of the forecast API.", "flts token add dashboard")
    token.command(epilog="Example: [cyan]flts token add dashboard --scope read[/]")(add)
    token.command("list", epilog="Example: [cyan]flts token list -c configs/lte.yaml[/]")(show)
    token.command(epilog="Example: [cyan]flts token remove dashboard[/]")(remove)
    app.add_typer(token)


def add(
    name: NameArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    scope: Annotated[ScopeName, typer.Option(help="read: forecasts; admin: all.")] = ScopeName.read,
) -> None:
    """Make a token; it is shown once. Services that run let it in within a second."""
    loaded = load(config, overrides)
    from flts_ray.jobs.tokens import add_token
    from flts_ray.serve.door import tokens_path

    print(add_token(tokens_path(loaded), name, scope.value))


def show(config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None) -> None:
    """List names and scopes of the tokens."""
    loaded = load(config, overrides)
    from flts_ray.jobs.tokens import list_tokens
    from flts_ray.serve.door import tokens_path

    path = tokens_path(loaded)
    tokens = list_tokens(path)
    for token in tokens:
        print(f"{token.name}\t{token.scope}")
    if not tokens:
        print(f"no token in {path}; `flts token add NAME` makes one")


def remove(
    name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, overrides: SetOption = None
) -> None:
    """Take a token away. Services that run refuse it within a second."""
    loaded = load(config, overrides)
    from flts_ray.jobs.tokens import remove_token
    from flts_ray.serve.door import tokens_path

    remove_token(tokens_path(loaded), name)
    print(f"{name} removed")
