"""How a broker is reached, and what is said where it is not.

Design choices: name and password come from the environment alone and are never part of a message;
both clients say the same in the same trouble.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flts_ray.config_stream import StreamConfig
from flts_ray.errors import ConfigError, Unavailable

ANSWER_S = 10.0
"""Seconds within which a broker answers."""
_FOR_GOOD = (
    "MessageSizeTooLargeError", "RecordListTooLargeError", "InvalidRecordError",
    "PolicyViolationError", "MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD",
    "POLICY_VIOLATION",
)  # fmt: skip
"""How both clients begin to say that a message will never be taken."""


class NotTaken(Unavailable):
    """A message is refused however often it is sent; none of what is missing is on its way."""


@dataclass(frozen=True)
class Login:
    """Name and password of SASL."""

    username: str
    password: str = field(repr=False)


def login(stream: StreamConfig, environ: Mapping[str, str] = os.environ) -> Login | None:
    """KAFKA_USERNAME and KAFKA_PASSWORD; None where `stream.security` needs none.

    Raises ConfigError if one of them, or a file of keys that the configuration names, is missing.
    """
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(stream, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"stream.{name}: there is no file {path}; correct the path")
    if not stream.security.startswith("SASL"):
        return None
    names = ("KAFKA_USERNAME", "KAFKA_PASSWORD")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"stream.security {stream.security} needs a name and a password, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; set them in "
            "the environment"
        )
    return Login(environ[names[0]], environ[names[1]])


def silent(brokers: str, why: str) -> Unavailable:
    """Nobody answered in time."""
    return Unavailable(
        f"{brokers}: no broker answered within {ANSWER_S:g} s ({why}); start one with `flts up`, "
        "or correct stream.brokers and stream.security"
    )


def refused(brokers: str, why: str) -> Unavailable:
    """The broker answered no, or the client cannot go on; NotTaken where it is the message."""
    return (NotTaken if why.startswith(_FOR_GOOD) else Unavailable)(
        f"{brokers}: the broker refused ({why}); check the rights of KAFKA_USERNAME, stream.topic "
        "and stream.security"
    )


def unreadable(brokers: str, why: str) -> Unavailable:
    """The broker answered, but with data that no client can read."""
    return Unavailable(
        f"{brokers}: the broker gave data that cannot be read ({why}); nothing is skipped: repair "
        "that part of the log or delete the records up to the one behind it"
    )


def missing_topic(brokers: str, topic: str) -> Unavailable:
    return Unavailable(
        f"{brokers}: there is no topic {topic!r}; create it (`flts up` does) or correct "
        "stream.topic"
    )


def unacknowledged(
    brokers: str, missing: int, timeout_s: float, reasons: Sequence[str]
) -> Unavailable:
    """`reasons`: one for each message that failed; the others were not answered in time.

    NotTaken where every message that is missing was refused for good.
    """
    for_good = missing == len(reasons) and all(why.startswith(_FOR_GOOD) for why in reasons)
    said = [f"{reason} ({count} times)" for reason, count in Counter(reasons).most_common(3)]
    if missing > len(reasons):
        said.append(f"no answer to {missing - len(reasons)} within {timeout_s:g} s")
    return (NotTaken if for_good else Unavailable)(
        f"{brokers}: {missing} messages were not acknowledged: {'; '.join(said)}; look at the "
        "broker, then send them again"
    )
