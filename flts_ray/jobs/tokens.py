"""Tokens of the forecast API: made, listed, taken away.

Design choices: the token is shown once and only its digest is stored, so nobody can read it
later; the file is replaced as a whole under a lock, so that a service that reads it never sees
half a file and two commands lose nothing of each other; only its owner may read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flts_ray.errors import ConfigError, Conflict, DataError
from flts_ray.serve.door import PREFIX, SCOPES, Scope, Token, digest_of, parse_tokens

_NAME = re.compile(r"[\w.\-]{1,64}", re.ASCII)


def list_tokens(path: Path) -> list[Token]:
    """Tokens of the file, none where there is no file. Raises ConfigError for a damaged one."""
    try:
        return parse_tokens(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; check serve.auth.tokens_file") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def add_token(path: Path, name: str, scope: Scope) -> str:
    """Add a token and return it: nothing else ever shows it.

    Raises Conflict for a name that is taken, DataError for one that is no name.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name[:64]!r}: a name has 1 to 64 letters, digits, dots, dashes")
    if scope not in SCOPES:
        raise DataError(f"--scope {scope}: choose one of {', '.join(SCOPES)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    with _locked(path):
        tokens = list_tokens(path)
        if any(token.name == name for token in tokens):
            raise Conflict(f"{name}: there is a token of this name; remove it first")
        _write(path, [*tokens, Token(name, scope, digest_of(secret))])
    return secret


def remove_token(path: Path, name: str) -> None:
    """Take a token away. Raises DataError for a name that there is not."""
    with _locked(path):
        tokens = list_tokens(path)
        kept = [token for token in tokens if token.name != name]
        if len(kept) == len(tokens):
            raise DataError(f"{name}: no such token; `flts token list` shows them")
        _write(path, kept)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; check serve.auth.tokens_file") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    lines = "".join(json.dumps(asdict(token)) + "\n" for token in tokens)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(lines)
        stream.flush()
        os.fsync(descriptor)
    os.replace(draft, path)
