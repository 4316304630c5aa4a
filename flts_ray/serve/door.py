"""Who may call: bearer tokens with names and scopes, and how often each may.

The file holds one JSON object a line: `{"name": ..., "scope": "read" | "admin", "sha256": ...}`.

Design choices: the file holds digests only, so that reading it opens nothing; tokens are 256
random bits that we make ourselves, so a plain SHA-256 cannot be guessed back and a slow hash would
only slow every request; every digest is compared, each in constant time; the file is looked at
again once a second and read when it changed, so tokens come and go without a restart; a file that
is gone lets nobody in, one that cannot be read for another reason keeps the tokens of before.
"""

from __future__ import annotations

import hmac
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from flts_ray.config import Config
from flts_ray.errors import ConfigError, FltsError, Overloaded

Scope = Literal["read", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
ADMIN_PREFIX = "/v1/admin/"
ADMIN_PATHS = frozenset({"/metrics"})
LOOK_S = 1.0
PREFIX = "flts_"
DEFAULT_FILE = "tokens.jsonl"
_log = structlog.get_logger("flts_ray.serve")


class Unauthorized(FltsError):
    """No token, or none that is known: send one as `Authorization: Bearer ...`."""

    status = 401


class Forbidden(FltsError):
    """The token's scope does not reach here: use one of scope admin."""

    status = 403


class RateLimited(Overloaded):
    """The token asks more often than it may."""


@dataclass(frozen=True)
class Token:
    """One line of the file."""

    name: str
    scope: Scope
    sha256: str


def digest_of(secret: str) -> str:
    """What the file holds of a token."""
    return sha256(secret.encode()).hexdigest()


def parse_tokens(text: str) -> list[Token]:
    """Tokens of a file. Raises ConfigError naming the first line that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_token(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"line {number}: no token ({error!r}); see `flts token`") from None
    return found


def _token(raw: dict[str, Any]) -> Token:
    token = Token(raw["name"], raw["scope"], raw["sha256"].lower())
    if token.scope not in SCOPES or not token.name or len(bytes.fromhex(token.sha256)) != 32:
        raise ValueError("name, scope or sha256 is wrong")
    return token


def tokens_path(config: Config) -> Path:
    """The file of a configuration. Raises ConfigError where its place must be named."""
    named = config.serve.auth.tokens_file
    if named is not None:
        return Path(named.removeprefix("file://")).resolve()
    if "://" in config.root:
        raise ConfigError(
            f"serve.auth.tokens_file: name a file that replicas can read; the root {config.root} "
            "is no folder of theirs"
        )
    return Path(config.root).resolve().parent / DEFAULT_FILE


def door_of(config: Config) -> Door | None:
    """The door of a configuration, None where it is open."""
    auth = config.serve.auth
    if not auth.required:
        return None
    return Door(TokenFile(tokens_path(config)), auth.requests_per_s, auth.burst)


class TokenFile:
    """The tokens of a file as it is now."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._looked = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._tokens: Sequence[Token] = ()

    def tokens(self) -> Sequence[Token]:
        """The tokens; the file is read when it changed since the last look."""
        now = self._clock()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._look()
        return self._tokens

    def _look(self) -> None:
        try:
            about = os.stat(self.path)
            seen = (about.st_mtime_ns, about.st_size, about.st_ino)
            if seen != self._seen:
                self._tokens = tuple(parse_tokens(self.path.read_text(encoding="utf-8")))
                self._seen = seen
                _log.info("tokens_read", count=len(self._tokens))
        except FileNotFoundError:
            if self._tokens or self._seen is None:
                _log.warning("tokens_missing", path=str(self.path))
            self._tokens, self._seen = (), (0, 0, 0)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            _log.warning("tokens_unreadable", path=str(self.path), problem=str(error))


class Door:
    """Lets requests in. For one thread.

    requests_per_s: mean rate of one token, None: unlimited; burst: requests at once.
    """

    def __init__(
        self,
        file: TokenFile,
        requests_per_s: float | None = None,
        burst: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file = file
        self._rate = requests_per_s
        self._burst = float(burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, path: str, authorization: bytes | None) -> str | None:
        """The name of the token that opens this path; None for a path that is open to all.

        Raises Unauthorized, Forbidden, RateLimited.
        """
        if path in OPEN_PATHS:
            return None
        token = self._known(authorization)
        if needed(path) == "admin" and token.scope != "admin":
            raise Forbidden(f"{path[:200]}: token {token.name!r} has scope read, this needs admin")
        if self._rate is not None:
            self._count(token.name, self._rate)
        return token.name

    def _known(self, authorization: bytes | None) -> Token:
        scheme, _, secret = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secret.strip():
            raise Unauthorized("send a token as `Authorization: Bearer ...`")
        given = sha256(secret.strip()).hexdigest()
        found: Token | None = None
        for token in self.file.tokens():
            if hmac.compare_digest(given, token.sha256):
                found = token
        if found is None:
            raise Unauthorized("this token is not known here; `flts token add NAME` makes one")
        return found

    def _count(self, name: str, rate: float) -> None:
        now = self._clock()
        left, since = self._buckets.get(name, (self._burst, now))
        left = min(self._burst, left + (now - since) * rate)
        if left < 1:
            self._buckets[name] = (left, now)
            raise RateLimited(
                f"token {name!r} may send {rate:g} requests a second; come back later",
                (1 - left) / rate,
            )
        self._buckets[name] = (left - 1, now)


def needed(path: str) -> Scope:
    """The scope that a path needs."""
    admin = path.startswith(ADMIN_PREFIX) or path in ADMIN_PATHS
    return "admin" if admin else "read"
