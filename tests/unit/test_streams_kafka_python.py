from __future__ import annotations

import logging
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import Login, unreadable
from flts_ray.streams.kafka_python import _columns
from flts_ray.streams.kafka_python_access import settings
from flts_ray.streams.kafka_python_records import _Fetched
from flts_ray.streams.records import message_sizes


def row(offset: int, value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> Any:
    size = -1 if value is None else len(value)
    return ConsumerRecord(
        topic="load", partition=3, leader_epoch=0, offset=offset, timestamp=1000 + offset,
        timestamp_type=0, key=b"k%d" % offset, value=value, headers=headers or [], checksum=None,
        serialized_key_size=2, serialized_value_size=size,
        serialized_header_size=sum(len(n) + len(v) for n, v in headers) if headers else -1,
    )  # fmt: skip


def test_columns_hold_what_the_messages_hold() -> None:
    found = _columns(3, [row(5, b"abc"), row(6, None), row(9, b"")])
    assert found.partition == 3
    assert list(found.offsets) == [5, 6, 9]
    assert list(found.values) == [b"abc", None, b""]
    assert list(found.timestamps_ms) == [1005, 1006, 1009]
    assert list(found.keys) == [b"k5", b"k6", b"k9"]
    assert (list(found.headers), found.nbytes) == ([], 3 + 3 * 2)


def test_headers_of_one_message_give_all_messages_a_place() -> None:
    found = _columns(3, [row(5, b"a"), row(6, b"b", [("deadline_ms", b"1")])])
    assert list(found.headers) == [[], [("deadline_ms", b"1")]]
    assert found.nbytes == 2 + 2 * 2 + 12
    assert found.nbytes == sum(message_sizes(found.values, found.keys, found.headers))


class Fetch:
    """Gives batches the way the library's fetches do."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data

    def next_batch(self) -> Any:
        data, self.data = self.data, None
        return None if data is None else DefaultRecordBatch(data)


def batch(names: list[str], codec: int = 0) -> bytes:
    """Records with one header each."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 2**20)
    for at, name in enumerate(names):
        builder.append(at, 1000 + at, b"k", b"v%d" % at, [(name, b"h"), ("plain", None)])
    return bytes(builder.build())


def fetched(data: bytes) -> Any:
    return _Fetched(0, TopicPartition("load", 3), Fetch(data))


@pytest.mark.parametrize("codec", [0, 1])
def test_header_names_may_be_any_bytes(codec: int) -> None:
    class Odd(str):
        def encode(self, *_: Any) -> bytes:
            return b"h\xff\xfe"

    names = ["a", Odd("x"), "\u00e9", Odd("y"), "b"]
    rows = fetched(batch(names, codec)).take(10)
    assert [row.headers for row in rows] == [
        [(name, b"h"), ("plain", None)] for name in ("a", r"h\xff\xfe", "\u00e9", r"h\xff\xfe", "b")
    ]
    assert [(row.offset, row.key, row.value) for row in rows] == [
        (at, b"k", b"v%d" % at) for at in range(5)
    ]
    assert [type(row.value) for row in rows] == [bytes] * 5


def test_what_cannot_be_unpacked_says_where() -> None:
    broken = bytearray(batch(["a"] * 100, 1))
    broken[80:90] = bytes(10)
    with pytest.raises(CorruptRecordError, match=r"partition 3, offset 0: .*crc"):
        fetched(bytes(broken)).take(10)
    unpacking = fetched(bytes(broken))
    unpacking.check_crcs = False
    with pytest.raises(CorruptRecordError, match="partition 3, offset 0: cannot be decompressed"):
        unpacking.take(10)


def test_data_that_cannot_be_read_is_not_blamed_on_rights() -> None:
    said = str(unreadable("b:1", "CorruptRecordError: partition 3"))
    assert "partition 3" in said and "rights" not in said


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
