"""The token with which commands of this machine ask the API that another one of them serves.

Design choices: who serves makes a token for as long as it does, with the scope to read, in a file
beside its announcement that only the same user can read; `FLTS_TOKEN` is for an API elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flts_ray.config import Config
from flts_ray.errors import DataError
from flts_ray.jobs.folder import local_folder

VARIABLE = "FLTS_TOKEN"


def token_for(config: Config) -> str | None:
    """`FLTS_TOKEN`, else the token of the command that serves here; None without either."""
    given = os.environ.get(VARIABLE)
    if given:
        return given
    try:
        return _path(config).read_text(encoding="utf-8").strip()
    except OSError:
        return None


@contextmanager
def own_token(config: Config) -> Iterator[None]:
    """Let commands of this user in while the block runs."""
    if not config.serve.auth.required:
        yield
        return
    from flts_ray.jobs.tokens import add_token, remove_token
    from flts_ray.serve.door import tokens_path

    tokens, path = tokens_path(config), _path(config)
    name = f"command-{config.name}"[:64]
    with suppress(DataError):  # left by a command that was killed
        remove_token(tokens, name)
    secret = add_token(tokens, name, "read")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(secret)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(DataError):
            remove_token(tokens, name)


def _path(config: Config) -> Path:
    return local_folder(config) / "run" / f"{config.name}.token"
