"""Errors by what the user can do about them.

A message says what went wrong, where, and what to do next. The CLI prints it without a
traceback and exits with `exit_code`; the HTTP API answers with `status`.
"""

from __future__ import annotations

from collections.abc import Sequence


class FltsError(Exception):
    """Base of every error that is meant for the user."""

    exit_code = 2
    status = 500


class ConfigError(FltsError):
    """The configuration cannot be used: fix the YAML or the `--set` override."""

    status = 422


class DataError(FltsError):
    """The data cannot be used: fix the file, the column or the request.

    `field` names the offending column or request field; `problems` lists every problem
    found at the border, so that one run shows all of them.
    """

    status = 422

    def __init__(
        self, message: str, *, field: str | None = None, problems: Sequence[str] = ()
    ) -> None:
        self.field = field
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class ArtifactError(FltsError):
    """A stored model or prepared set is damaged or foreign: rebuild or restore it."""


class GateRefused(FltsError):
    """A candidate did not earn promotion; the message is the gate's reason."""

    exit_code = 3


class Conflict(FltsError):
    """Somebody else changed the same thing first: look at the new state and repeat."""

    exit_code = 4
    status = 409


class Unavailable(FltsError):
    """A service or a champion is not there (yet): start it, then repeat."""

    exit_code = 5
    status = 503


class Overloaded(Unavailable):
    """Too many requests wait already: repeat after `retry_after_s`."""

    status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Expired(FltsError):
    """The caller's deadline passed before the work began; nothing was computed."""

    status = 504
