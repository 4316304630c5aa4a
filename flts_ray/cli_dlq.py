"""`flts dlq`: messages that were refused, and what to do with them.

Design choices: what changes something wants a choice of letters, or `--all`; both kinds of commands
take the same options, so that a list shows what a replay would send.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from flts_ray.cli_options import (
    DEFAULT_CONFIG,
    ConfigOption,
    SetOption,
    console,
    group,
    load,
    plain,
    tell,
)
from flts_ray.config import Config
from flts_ray.errors import DataError

if TYPE_CHECKING:
    from flts_ray.ingest.letters import Which

dlq = group(
    "dlq",
    "Look at messages that were refused, send them again, forget them.",
    "flts dlq list --code not_json",
)
IdsArgument = Annotated[
    list[str] | None, typer.Argument(help="Letters as partition/offset, such as 0/1042.")
]
CodeOption = Annotated[str | None, typer.Option(help="Only this reason, such as not_json.")]
PartitionOption = Annotated[int | None, typer.Option(min=0, help="Only this partition.")]
SinceOption = Annotated[
    datetime | None, typer.Option(help="Only what arrived since then, ISO 8601, UTC.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]


@dlq.command("list", epilog="Example: [cyan]flts dlq list -c flts.yaml --code missing_field[/]")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    code: CodeOption = None,
    partition: PartitionOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most letters to list.")] = 50,
) -> None:
    """List refused messages with the reason of each."""
    loaded = _stored(config, overrides)
    from flts_ray.jobs.dlq import chosen
    from flts_ray.report_stream import letters_table

    found = list(islice(chosen(loaded, _which((), code, partition, since)), limit + 1))
    if not found:
        print("no dead letters")
        return
    console().print(letters_table(found[:limit]))
    if len(found) > limit:
        tell(f"there are more; --limit {2 * limit} shows them")


@dlq.command(epilog="Example: [cyan]flts dlq show 0/1042 -c flts.yaml[/]")
def show(
    name: Annotated[str, typer.Argument(help="partition/offset, as `flts dlq list` shows it.")],
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
) -> None:
    """Show one refused message: why, when, its headers and its bytes."""
    loaded = _stored(config, overrides)
    from flts_ray.jobs.dlq import show as shown

    print(shown(loaded, name))


@dlq.command(
    epilog="Example: [cyan]flts dlq replay 0/1042 0/1043[/]"
    "\n\nExample: [cyan]flts dlq replay --code claim_not_found[/]"
)
def replay(
    ids: IdsArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    code: CodeOption = None,
    partition: PartitionOption = None,
    since: SinceOption = None,
    all_: AllOption = False,
    force: Annotated[bool, typer.Option("--force", help="Also what was sent before.")] = False,
) -> None:
    """Send refused messages to their topic again, each once."""
    loaded = _stored(config, overrides)
    which = _wanted(_which(ids or (), code, partition, since), all_)
    from flts_ray.jobs.replay_letters import replay as send
    from flts_ray.jobs.up import brokers_of

    done = send(loaded, brokers_of(loaded), which, force=force)
    print(f"{done.sent} sent, {done.skipped} were sent before")
    if done.refused:
        named = ", ".join(done.refused[:10]) + (", ..." if len(done.refused) > 10 else "")
        tell(plain(
            f"the broker does not take {len(done.refused)}, or only their start was kept: {named}; "
            "raise what it takes (max.message.bytes), or forget them with `flts dlq purge`"
        ))  # fmt: skip
    if done.waiting:
        tell(plain(f"{len(done.waiting)} are being sent by another command; repeat later"))


@dlq.command(epilog="Example: [cyan]flts dlq purge --code not_json -c flts.yaml[/]")
def purge(
    ids: IdsArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    overrides: SetOption = None,
    code: CodeOption = None,
    partition: PartitionOption = None,
    since: SinceOption = None,
    all_: AllOption = False,
) -> None:
    """Forget refused messages; the segments that hold them stay as they are."""
    loaded = _stored(config, overrides)
    which = _wanted(_which(ids or (), code, partition, since), all_)
    from flts_ray.errors import Unavailable
    from flts_ray.jobs.dlq import purge as hide
    from flts_ray.jobs.up import brokers_of

    try:
        brokers = brokers_of(loaded)
    except Unavailable:
        brokers = None
    done = hide(loaded, which, brokers)
    freed = "" if done.messages is None else f", {done.messages} messages freed in the topic"
    print(f"{done.letters} purged{freed}")
    if done.away is not None:
        tell(plain(f"nothing freed in the topic: {done.away}; purge again when the broker is back"))


def _stored(config: ConfigOption, overrides: SetOption) -> Config:
    """The configuration, with this machine's S3 server where it needs one."""
    loaded = load(config, overrides)
    from flts_ray.jobs.up import adopt_local

    adopt_local(loaded)
    return loaded


def _which(
    ids: list[str] | tuple[str, ...],
    code: str | None,
    partition: int | None,
    since: datetime | None,
) -> Which:
    from flts_ray.ingest.letters import Which
    from flts_ray.jobs.dlq import milliseconds

    return Which(code, partition, None if since is None else milliseconds(since), None, tuple(ids))


def _wanted(which: Which, all_: bool) -> Which:
    if which == replace(which, code=None, partition=None, since_ms=None, ids=()) and not all_:
        raise DataError(
            "choose letters: by partition/offset, --code, --partition, --since or --all"
        )
    return which
