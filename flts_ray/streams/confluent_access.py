"""How confluent-kafka reaches a broker: its settings and its errors.

Design choices: frames are not limited, since brokers may ignore the fetch limits; the library logs
every attempt to reconnect, so its own log is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import ANSWER_S, Login, refused, silent

_UNREACHED = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
_FINAL = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._FENCED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


def settings(stream: StreamConfig, brokers: str, login: Login | None) -> dict[str, Any]:
    """What all clients share."""
    shared: dict[str, Any] = {
        "bootstrap.servers": brokers,
        "client.id": "flts-ray",
        "security.protocol": stream.security,
        "receive.message.max.bytes": 2**31 - 1,
        "reconnect.backoff.max.ms": 1000,
        "socket.timeout.ms": int(ANSWER_S * 1000),
        "topic.metadata.refresh.interval.ms": 60_000,
        "log_level": 0,
        "error_cb": _is_told_elsewhere,
    }
    files = {
        "ssl.ca.location": stream.ca_file,
        "ssl.certificate.location": stream.cert_file,
        "ssl.key.location": stream.key_file,
    }
    shared |= {name: path for name, path in files.items() if path is not None}
    if login is None:
        return shared
    return shared | {
        "sasl.mechanism": stream.sasl_mechanism,
        "sasl.username": login.username,
        "sasl.password": login.password,
    }


@contextmanager
def reaching(brokers: str) -> Iterator[None]:
    """Turns the library's errors into Unavailable."""
    try:
        yield
    except KafkaException as exception:
        error = exception.args[0]
        if error.code() in _UNREACHED:
            raise silent(brokers, said(error)) from None
        raise refused(brokers, said(error)) from None


def is_final(error: Any) -> bool:
    """Whether waiting cannot help."""
    return bool(error.fatal()) or error.code() in _FINAL


def said(error: Any) -> str:
    return f"{error.name()}: {error.str()}"


def _is_told_elsewhere(error: Any) -> None:
    """Broker errors also come as results of calls; without a callback they go to stderr."""
