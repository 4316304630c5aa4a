from __future__ import annotations

from typing import Any

import pytest

confluent_access = pytest.importorskip(
    "flts_ray.streams.confluent_access", exc_type=ImportError, reason="confluent-kafka"
)

from flts_ray.config_stream import StreamConfig  # noqa: E402
from flts_ray.streams.access import Login  # noqa: E402
from flts_ray.streams.confluent import _columns  # noqa: E402


class Row:
    def __init__(self, offset: int, value: bytes | None, headers: Any = None) -> None:
        self._offset, self._value, self._headers = offset, value, headers

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes:
        return b"k%d" % self._offset

    def headers(self) -> Any:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, 1000 + self._offset

    def __len__(self) -> int:
        return len(self._value or b"")


def test_columns_hold_what_the_messages_hold() -> None:
    found = _columns(3, [Row(5, b"abc"), Row(6, None)])
    assert (list(found.offsets), list(found.values)) == ([5, 6], [b"abc", None])
    assert (list(found.timestamps_ms), list(found.keys)) == ([1005, 1006], [b"k5", b"k6"])
    assert (list(found.headers), found.nbytes, found.partition) == ([], 3 + 2 * 2, 3)
    with_headers = _columns(3, [Row(5, b"a"), Row(6, b"b", [("deadline_ms", b"1")])])
    assert list(with_headers.headers) == [(), [("deadline_ms", b"1")]]
    assert with_headers.nbytes == 2 + 2 * 2 + 12


@pytest.mark.parametrize(
    "error", [SystemError("no UTF-8"), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_headers_that_the_library_cannot_give_stop_nothing(error: Exception) -> None:
    class Odd(Row):
        def headers(self) -> Any:
            raise error

    found = _columns(3, [Row(5, b"a", [("h", b"1")]), Odd(6, b"b"), Row(7, b"c")])
    assert list(found.values) == [b"a", b"b", b"c"]
    assert list(found.headers) == [[("h", b"1")], (), ()]


def test_settings_carry_the_security_of_the_configuration() -> None:
    stream = StreamConfig(security="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", ca_file="ca")
    given = confluent_access.settings(stream, "a:1,b:2", Login("anna", "s3cret"))
    assert given["bootstrap.servers"] == "a:1,b:2"
    assert (given["security.protocol"], given["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (given["sasl.username"], given["sasl.password"]) == ("anna", "s3cret")
    assert given["ssl.ca.location"] == "ca"
    assert "ssl.key.location" not in given
    plain = confluent_access.settings(StreamConfig(), "a:1", None)
    assert not [name for name in plain if name.startswith("sasl")]
