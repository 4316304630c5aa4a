"""How kafka-python reaches a broker: its settings and its errors.

Design choices: frames are not limited, since brokers may ignore the fetch limits; the library logs
every attempt to reconnect, so its own log stays off unless somebody sets its level; naming a
topic never makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import errors
from kafka.net.compat import KafkaNetClient

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import ANSWER_S, Login, refused, silent

ANSWER_MS = int(ANSWER_S * 1000)


def settings(stream: StreamConfig, brokers: str, login: Login | None) -> dict[str, Any]:
    """What all clients share."""
    own_log = logging.getLogger("kafka")
    if own_log.level == logging.NOTSET:
        own_log.setLevel(logging.CRITICAL + 1)
    shared: dict[str, Any] = {
        "bootstrap_servers": [address.strip() for address in brokers.split(",")],
        "client_id": "flts-ray",
        "bootstrap_timeout_ms": ANSWER_MS,
        "request_timeout_ms": ANSWER_MS + 5000,
        "reconnect_backoff_max_ms": 1000,
        "receive_message_max_bytes": 2**31 - 1,
        "metadata_max_age_ms": 60_000,
        "security_protocol": stream.security,
        "ssl_cafile": stream.ca_file,
        "ssl_certfile": stream.cert_file,
        "ssl_keyfile": stream.key_file,
        "kafka_client": _client,
    }
    if login is None:
        return shared
    return shared | {
        "sasl_mechanism": stream.sasl_mechanism,
        "sasl_plain_username": login.username,
        "sasl_plain_password": login.password,
    }


def _client(**options: Any) -> Any:
    # The library does not hand its option of this name on to the part that asks for topics.
    client = KafkaNetClient(**options)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


@contextmanager
def reaching(brokers: str) -> Iterator[None]:
    """Turns the library's errors into Unavailable."""
    try:
        yield
    except errors.RetriableError as error:
        raise silent(brokers, said(error)) from None
    except errors.KafkaError as error:
        raise refused(brokers, said(error)) from None


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
