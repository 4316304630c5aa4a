from __future__ import annotations

import logging
from typing import Any

import pytest
from kafka.consumer.fetcher import ConsumerRecord

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import Login
from flts_ray.streams.kafka_python import _columns
from flts_ray.streams.kafka_python_access import settings


def row(offset: int, value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> Any:
    size = -1 if value is None else len(value)
    return ConsumerRecord(
        topic="load", partition=3, leader_epoch=0, offset=offset, timestamp=1000 + offset,
        timestamp_type=0, key=b"k%d" % offset, value=value, headers=headers or [], checksum=None,
        serialized_key_size=2, serialized_value_size=size, serialized_header_size=-1,
    )  # fmt: skip


def test_columns_hold_what_the_messages_hold() -> None:
    found = _columns(3, [row(5, b"abc"), row(6, None), row(9, b"")])
    assert found.partition == 3
    assert list(found.offsets) == [5, 6, 9]
    assert list(found.values) == [b"abc", None, b""]
    assert list(found.timestamps_ms) == [1005, 1006, 1009]
    assert list(found.keys) == [b"k5", b"k6", b"k9"]
    assert (list(found.headers), found.nbytes) == ([], 3)


def test_headers_of_one_message_give_all_messages_a_place() -> None:
    found = _columns(3, [row(5, b"a"), row(6, b"b", [("deadline_ms", b"1")])])
    assert list(found.headers) == [[], [("deadline_ms", b"1")]]


def test_settings_carry_the_security_of_the_configuration() -> None:
    stream = StreamConfig(
        security="SASL_SSL", sasl_mechanism="PLAIN", ca_file="ca", cert_file="cert", key_file="key"
    )
    given = settings(stream, "a:1, b:2", Login("anna", "s3cret"))
    assert given["bootstrap_servers"] == ["a:1", "b:2"]
    assert (given["security_protocol"], given["sasl_mechanism"]) == ("SASL_SSL", "PLAIN")
    assert (given["ssl_cafile"], given["ssl_certfile"], given["ssl_keyfile"]) == (
        "ca",
        "cert",
        "key",
    )
    assert (given["sasl_plain_username"], given["sasl_plain_password"]) == ("anna", "s3cret")


def test_without_sasl_there_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(StreamConfig(), "a:1", None)
    assert not [name for name in given if name.startswith("sasl")]


def test_the_librarys_own_log_is_off_unless_its_level_is_set() -> None:
    log = logging.getLogger("kafka")
    before = log.level
    try:
        log.setLevel(logging.NOTSET)
        settings(StreamConfig(), "a:1", None)
        assert not log.isEnabledFor(logging.CRITICAL)
        log.setLevel(logging.INFO)
        settings(StreamConfig(), "a:1", None)
        assert log.isEnabledFor(logging.INFO)
    finally:
        log.setLevel(before)
