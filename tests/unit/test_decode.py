from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.ingest import decode, decode_table
from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.decode_sample import Message, Refusal, SampleReader
from flts_ray.ingest.segment import Batch, encode, segment_schema
from flts_ray.panel import Role
from flts_ray.streams.records import Headers, Records, message_sizes

COVARIATES: dict[str, Role] = {"temp °C": "past", "holiday": "known_future", "kind": "static"}
FIRST = 1000
ARRIVED_MS = 1_700_000_000_000
GOOD = {"unique_id": "a", "ds": "2024-01-01T00:00:00Z", "y": 1.5}
DATA = ["unique_id", "ds", "y", *COVARIATES]


def decoder(zone: str = "UTC", most: int = 4096) -> Decoder:
    return Decoder(COVARIATES, max_message_bytes=most, time_zone=zone)


def polled(values: Sequence[bytes | None], headers: Sequence[Headers] = ()) -> Records:
    count = len(values)
    return Records(
        partition=0,
        offsets=list(range(FIRST, FIRST + count)),
        values=values,
        timestamps_ms=[ARRIVED_MS + at for at in range(count)],
        headers=headers,
        keys=[None if at % 2 else b"key" for at in range(count)],
        nbytes=sum(len(value or b"") for value in values),
    )


def one(value: bytes | None, key: bytes | None = None, headers: Headers = ()) -> Records:
    held: Sequence[Headers] = [headers] if headers else ()
    size = sum(message_sizes([value], [key], held))
    return Records(0, [FIRST], [value], [ARRIVED_MS], held, [key], size)


def decoded(*values: bytes | None, zone: str = "UTC") -> Batch:
    return decoder(zone).decode(polled(values))


def text(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def without(field: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != field}).encode()


def error_of(value: bytes | None, headers: Headers = ()) -> tuple[str, str]:
    """Code and detail of a message that stands between two good ones."""
    batch = decoder().decode(polled([text(), value, text()], [(), headers, ()]))
    assert batch.table.column("offset").to_pylist() == [FIRST, FIRST + 1, FIRST + 2]
    assert batch.bad_rows == 1 and batch.rows == 2
    row = batch.table.to_pylist()[1]
    assert row["raw"] == value and row["index"] == 0
    assert all(row[name] is None for name in DATA)
    return row["error"], row["detail"]


FATAL = b'{"unique_id":"fatal"}'


def failing_at(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A reader that raises wherever the message FATAL is among what it reads."""
    read = SampleReader.read

    def fail(reader: SampleReader, values: Sequence[bytes]) -> list[Message]:
        if FATAL in values:
            raise error
        return read(reader, values)

    monkeypatch.setattr(SampleReader, "read", fail)


def moments(batch: Batch) -> list[str]:
    assert batch.bad_rows == 0, batch.table.column("detail").to_pylist()
    ds = batch.table.column("ds").cast(pa.int64()).to_pylist()
    return [str(np.datetime64(us, "us")) for us in ds]


def test_samples_become_rows_of_a_segment() -> None:
    values = [
        text(holiday=True, kind="flat", other={"ignored": [1]}, **{"temp °C": 20}),
        json.dumps([{**GOOD, "y": None}, {**GOOD, "unique_id": 7, "kind": 3.0}], indent=2).encode(),
        text(unique_id="  b "),
    ]
    batch = decoded(*values)
    assert batch.table.schema.equals(segment_schema(COVARIATES))
    assert (batch.begin, batch.end) == (1000, 1003)
    assert batch.table.select(["offset", "index", *DATA[:1], *DATA[2:]]).to_pylist() == [
        dict(zip(["offset", "index", "unique_id", "y", *COVARIATES], row, strict=True))
        for row in [
            (1000, 0, "a", 1.5, 20.0, 1.0, "flat"),
            (1001, 0, "a", None, None, None, None),
            (1001, 1, "7", 1.5, None, None, "3"),
            (1002, 0, "b", 1.5, None, None, None),
        ]
    ]
    assert batch.table.column("key").to_pylist() == [b"key", None, None, b"key"]
    assert batch.nbytes == max(batch.table.nbytes, sum(map(len, values)))
    assert batch.table.column("timestamp_ms").to_pylist() == [
        ARRIVED_MS + at for at in (0, 1, 1, 2)
    ]
    for name in ("error", "detail", "raw", "headers"):
        assert batch.table.column(name).null_count == 4


def test_rows_of_good_and_bad_messages_can_be_stored() -> None:
    batch = decoded(text(), b"[", None, text(kind=5), b"[]", json.dumps([GOOD] * 3).encode())
    data, info = encode(
        [batch], batch.begin, batch.end, topic="t", epoch="e", partition=0, writer="w"
    )
    assert (info.rows, info.bad_rows, info.size) == (5, 3, len(data))


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [
        (b"{", "not_json", "line 1 column 2"),
        (text()[:-1], "not_json", "delimiter"),
        (text() + b"\0", "not_json", "Extra data"),
        (text() + b"\n" + text(), "not_json", "Extra data"),
        (b'{"unique_id": "\xff"}', "not_json", "byte 15 is no UTF-8"),
        (text().decode().encode("utf-16"), "not_json", "byte 0 is no UTF-8"),
        (b"[" * 4000, "not_json", "nested too deeply"),
        (b'{"x":' * 800, "not_json", ""),
        (b'{"unique_id":"a\0b","ds":1700000000,"y":1}', "not_json", "control character"),
        (b"5", "not_a_sample", "5 is neither a sample nor an array"),
        (b'"a"', "not_a_sample", "'a' is neither"),
        (b"null", "not_a_sample", "null is neither"),
        (b"{}", "not_a_sample", "object without unique_id, ds, y"),
        (b"[[]]", "not_a_sample", "[0]: an array is no sample"),
        (json.dumps([GOOD, 3]).encode(), "not_a_sample", "[1]: 3 is no sample"),
        (without("unique_id"), "missing_field", "unique_id is missing"),
        (without("ds"), "missing_field", "ds is missing"),
        (without("y"), "missing_field", "y is missing"),
        (text(unique_id=None), "missing_field", "unique_id is null"),
        (text(unique_id=" "), "missing_field", "unique_id is blank"),
        (text(ds=None), "missing_field", "ds is null"),
        (json.dumps([GOOD, {"y": 1}]).encode(), "missing_field", "[1].unique_id is missing"),
        (b'{"bucket": "b"}', "missing_field", "object is missing"),
        (b'{"bucket": "b", "object": 5}', "wrong_type", "object: 5 is no text"),
        (text(y="1.5"), "wrong_type", "y: '1.5' is no number"),
        (text(y=True), "wrong_type", "y: true is no number"),
        (text(y=[1]), "wrong_type", "y: an array is no number"),
        (text(unique_id=1.0), "wrong_type", "unique_id: 1.0 is neither"),
        (text(unique_id=False), "wrong_type", "unique_id: false is neither"),
        (text(unique_id="\ud800"), "wrong_type", r"unique_id: '\ud800' is no valid text"),
        (text(ds=True), "wrong_type", "ds: true is neither text nor a number"),
        (text(ds={}), "wrong_type", "ds: an object is neither"),
        (text(holiday="yes"), "wrong_type", "holiday: 'yes' is no number"),
        (text(kind=True), "wrong_type", "kind: true is neither"),
        (text(kind="\udc00"), "wrong_type", r"kind: '\udc00' is no valid text"),
        (json.dumps([GOOD, {**GOOD, "y": {}}]).encode(), "wrong_type", "[1].y: an object"),
        (text(ds="yesterday"), "bad_time", "ds: 'yesterday' is no time"),
        (text(ds="2023-02-29"), "bad_time", "ds: '2023-02-29' is no time"),
        (text(ds="2024-01-01T00:00:00+24:00"), "bad_time", "+24:00"),
        (text(ds="9999-12-31"), "bad_time", "ds: '9999-12-31' is no time"),
        (text(ds=""), "bad_time", "ds: '' is no time"),
        (text(ds=0), "bad_time", "ds: 0 is no time"),
        (text(ds=10**400), "bad_time", "ds: 1000"),
        (text(ds=float("inf")), "bad_time", "ds: inf is no time"),
        (text(ds=float("nan")), "bad_time", "ds: nan is no time"),
        (text(ds=-1e300), "bad_time", "ds: -1e+300 is no time"),
        (json.dumps([GOOD, {**GOOD, "ds": "x"}]).encode(), "bad_time", "[1].ds: 'x' is no time"),
        (text(y=float("nan")), "not_finite", "y: nan is not finite"),
        (text(y=10**400), "not_finite", "y: inf is not finite"),
        (text(y=-(10**400)), "not_finite", "y: -inf is not finite"),
        (text().replace(b"1.5", b"1e400"), "not_finite", "y: inf is not finite"),
        (text().replace(b"1.5", b"1" * 3000), "not_finite", "y: inf is not finite"),
        (text(holiday=float("inf")), "not_finite", "holiday: inf is not finite"),
        (text(kind=float("nan")), "not_finite", "kind: nan is not finite"),
        (text(unique_id="é" * 257), "id_too_long", "has 514 bytes of at most 512"),
        (text(unique_id=10**600), "id_too_long", "has 601 bytes of at most 512"),
        (b" " * 4097, "too_large", "4097 bytes of at most 4096"),
        (None, "empty", "no value"),
        (b"", "empty", "no content"),
        (b" \n\t", "empty", "no content"),
        (b"\xef\xbb\xbf", "empty", "no content"),
        (b"[]", "empty", "an array without samples"),
        (b" [ ] ", "empty", "an array without samples"),
        (b'{"bucket": "b", "object": "c"}', "claim_refused", "stream.claims names no bucket"),
    ],
)  # fmt: skip
def test_a_bad_message_is_one_error_row(value: bytes | None, code: str, said: str) -> None:
    found, detail = error_of(value)
    assert found == code
    assert said in detail and len(detail) < 600 and detail.isprintable()


@pytest.mark.parametrize(
    "value",
    [
        b"\xef\xbb\xbf" + text(),
        b'{"unique_id":"x","unique_id":"a","y":"z","y":1.5,"ds":[],"ds":"2024-01-01T00:00:00Z"}',
        text(other=float("nan")),
        text(other="\ud800"),
        text(other=10**400),
        text(ds=1704067200),
        text(ds=1704067200.0),
        b"\r\n" + json.dumps(GOOD, indent="\n\t").encode() + b"\n",
        text(unique_id="\u00a0a\u2003"),
    ],
)
def test_unusual_json_is_read(value: bytes) -> None:
    assert decoded(value).table.select(DATA).equals(decoded(text()).table.select(DATA))


def test_a_bad_sample_refuses_its_whole_message() -> None:
    batch = decoded(json.dumps([GOOD, {**GOOD, "y": float("inf")}, {**GOOD, "ds": ""}]).encode())
    assert batch.table.column("detail").to_pylist() == [
        "[1].y: inf is not finite; write null for a missing value"
    ]


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        (1700000000, "2023-11-14T22:13:20.000000"),
        (1700000000.25, "2023-11-14T22:13:20.250000"),
        (1700000000000, "2023-11-14T22:13:20.000000"),
        (1700000000123.5, "2023-11-14T22:13:20.123500"),
        (1700000000123456, "2023-11-14T22:13:20.123456"),
        (1700000000123456789, "2023-11-14T22:13:20.123456"),
        ("1700000000", "2023-11-14T22:13:20.000000"),
        (-1700000000, "1916-02-18T01:46:40.000000"),
        ("2024-03-01T12:00:00+05:30", "2024-03-01T06:30:00.000000"),
        ("2024-03-01t12:00:00z", "2024-03-01T12:00:00.000000"),
        ("2024-03-01T12:00:00.123456789Z", "2024-03-01T12:00:00.123456"),
        ("2024-03-01 12:00", "2024-03-01T11:00:00.000000"),
        ("2024-07-01", "2024-06-30T22:00:00.000000"),
        (" 2024-07-01T00:00 ", "2024-06-30T22:00:00.000000"),
    ],
)
def test_stamps_are_read_alone_and_in_any_company(ds: str | float, expected: str) -> None:
    zone = "Europe/Berlin"
    assert moments(decoded(text(ds=ds), zone=zone)) == [expected]
    others: list[Any] = ["2024-01-01T00:00Z", "2024-01-01", 1700000000, 1700000000.5, "2024/1/2"]
    for other in others:
        company = [text(ds=other), text(ds=ds), text(ds=other)]
        assert moments(decoded(*company, zone=zone))[1] == expected


@pytest.mark.parametrize(
    ("headers", "code", "said"),
    [
        ([("deadline_ms", b"1700000000000")], "deadline_passed", "before its arrival at"),
        ([("x", b"5"), ("deadline_ms", b"9" * 18), ("deadline_ms", b"-1")], "deadline_passed", ""),
        ([("deadline_ms", b"soon")], "wrong_type", "header deadline_ms: 'soon' is no whole number"),
        ([("deadline_ms", b"\xff\0")], "wrong_type", "header deadline_ms"),
        ([("deadline_ms", b"1" * 20)], "wrong_type", "header deadline_ms"),
        ([("deadline_ms", b"")], "wrong_type", "header deadline_ms"),
        ([("deadline_ms", b"1_000")], "wrong_type", "header deadline_ms"),
    ],
)
def test_deadlines_that_have_passed(headers: Headers, code: str, said: str) -> None:
    assert error_of(text(), headers)[0] == code
    assert said in error_of(text(), headers)[1]


def test_a_deadline_is_compared_with_the_time_of_arrival() -> None:
    at_deadline = [("deadline_ms", b"1700000000000")]
    batch = decoder().decode(polled([text(), text()], [at_deadline, at_deadline]))
    assert batch.table.column("error").to_pylist() == [None, "deadline_passed"]
    assert batch.table.column("headers").to_pylist() == [None, at_deadline]


def test_size_is_decided_before_anything_else() -> None:
    batch = decoder(most=100).decode(polled([b"x" * 101], [[("deadline_ms", b"0")]]))
    assert batch.table.column("error").to_pylist() == ["too_large"]
    assert decoder(most=len(text()) + len(b"key")).decode(polled([text()])).rows == 1


@pytest.mark.parametrize(
    ("key", "headers"),
    [(b"k" * 100, ()), (None, [("h", b"v" * 100)]), (None, [("n" * 100, b"")])],
)
def test_keys_and_headers_are_part_of_a_messages_size(key: bytes | None, headers: Headers) -> None:
    records = one(text(), key, headers)
    assert decoder(most=records.nbytes).decode(records).rows == 1
    refused = decoder(most=records.nbytes - 1).decode(records).table
    assert refused.column("error").to_pylist() == ["too_large"]
    assert refused.column("raw").to_pylist() == [text()]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"[" * 2**20, "not_json"),
        (b'{"a":' * 200_000, "not_json"),
        (b'{"other":' + b"[" * 400_000 + b"]" * 400_000 + b"," + text()[1:], "not_json"),
        (text().replace(b"1.5", b"9" * 10**6), "not_finite"),
        (text().replace(b'"a"', b"9" * 10**6), "wrong_type"),
        (b"[" + b"{}," * 300_000 + b"{}]", "not_a_sample"),
        (b"[" + b"[]," * 300_000 + b"[]]", "not_a_sample"),
        (text(unique_id="x" * 10**6), "id_too_long"),
        (text(ds="x" * 10**6), "bad_time"),
        (text(y="x" * 10**6), "wrong_type"),
    ],
)
def test_bombs_are_refused_with_a_short_reason(value: bytes, code: str) -> None:
    table = decoder(most=2**21).decode(polled([value])).table
    assert table.column("error").to_pylist() == [code]
    assert len(table.column("detail").to_pylist()[0]) < 600


def test_error_rows_keep_what_the_message_was() -> None:
    headers = [("a", b"1"), ("a", b"\xff")]
    batch = decoder().decode(polled([b"x", b"y"], [headers, ()]))
    assert batch.table.column("headers").to_pylist() == [headers, []]
    assert batch.table.column("key").to_pylist() == [b"key", None]
    assert batch.table.column("timestamp_ms").to_pylist() == [ARRIVED_MS, ARRIVED_MS + 1]


def test_a_key_stands_at_the_first_row_of_its_message() -> None:
    value = json.dumps([GOOD] * 6000).encode()
    batch = decoder(most=2**20).decode(one(value, b"k" * 400_000))
    assert batch.rows == 6000
    assert batch.table.column("key").null_count == 5999
    assert batch.table.column("key")[0].as_py() == b"k" * 400_000
    assert batch.table.nbytes < 4_000_000


def test_what_is_held_is_what_is_counted() -> None:
    large = one(b"", b"k" * 1000, [("h", b"v" * 2000)])
    assert large.nbytes == 3001
    assert decoder().decode(large).nbytes >= 3001
    many = decoded(b"[" + b",".join([b'{"unique_id":1,"ds":1700000000,"y":1}'] * 100) + b"]")
    assert many.nbytes >= many.table.nbytes > 100 * 60


def test_of_a_very_large_message_the_first_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode, decode_table):
        monkeypatch.setattr(module, "KEPT_BYTES", 5000)
    whole, more = b"x" * 5000, b"y" * 5001
    headers = [("a", b"1" * 3000), ("b", b"2" * 3000)]
    found = [
        decoder().decode(message).table.to_pylist()[0]
        for message in (one(whole), one(more, b"k" * 6000, headers))
    ]
    assert [row["error"] for row in found] == ["too_large", "too_large"]
    assert [row["raw"] for row in found] == [whole, more[:5000]]
    assert "cut" not in found[0]["detail"]
    assert hashlib.sha256(more).hexdigest() in found[1]["detail"]
    assert "17003 bytes of at most 4096" in found[1]["detail"]
    assert "has 5001 bytes" in found[1]["detail"]
    assert (len(found[1]["key"]), found[1]["headers"]) == (5000, headers[:1])


def test_a_message_that_the_decoder_fails_at_is_an_error_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing_at(monkeypatch, ZeroDivisionError("oh\ud800\n"))
    values = [text(), b"[]", text(), FATAL, text(), FATAL, text()]
    odd = [("\ud800", b"1"), ("a", None)]
    records = polled(values, [odd if value == FATAL else () for value in values])  # type: ignore[misc]
    batch = decoder().decode(records)
    table = batch.table
    assert (batch.begin, batch.end, batch.rows) == (FIRST, FIRST + 7, 4)
    assert table.column("offset").to_pylist() == list(range(FIRST, FIRST + 7))
    codes = [None, "empty", None, "undecodable", None, "undecodable", None]
    assert table.column("error").to_pylist() == codes
    assert table.column("raw").to_pylist()[3] == FATAL
    assert table.column("headers").to_pylist()[3] == [("\\ud800", b"1"), ("a", None)]
    detail = table.column("detail").to_pylist()[3]
    assert detail.startswith("ZeroDivisionError: oh") and detail.isprintable()
    encode([batch], batch.begin, batch.end, topic="t", epoch="e", partition=0, writer="w")


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
def test_what_this_machine_lacks_makes_no_error_row(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing_at(monkeypatch, error)
    batch = decoder().decode(polled([text(), text(), text(), FATAL, text()]))
    assert (batch.begin, batch.end, batch.rows) == (FIRST, FIRST + 3, 3)
    with pytest.raises(Unavailable, match=r"offset 1000: .* on this machine"):
        decoder().decode(polled([FATAL, text()]))


def test_a_poll_with_more_bytes_than_a_batch_takes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "POLL_BYTES", 0)
    values = [text()] * 10
    records = polled(values)
    small = Decoder({}, max_message_bytes=4096, max_batch_bytes=len(text()) * 4)
    batch = small.decode(records)
    assert (batch.begin, batch.end, batch.rows) == (FIRST, FIRST + 3, 3)
    assert small.decode(polled([text(x="x" * 3000), text()])).end == FIRST + 1


def test_offsets_may_have_gaps() -> None:
    records = Records(3, [5, 9], [text(), b""], [0, 0], (), (), 0)
    batch = decoder().decode(records)
    assert (batch.begin, batch.end) == (5, 10)
    assert batch.table.column("offset").to_pylist() == [5, 9]


def test_covariates_may_not_have_names_of_other_columns() -> None:
    with pytest.raises(ConfigError, match="offset"):
        Decoder({"offset": "past"}, max_message_bytes=100)


NUMBERS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(width=64).filter(
    np.isfinite
)  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
STAMPS = (
    st.datetimes().map(lambda moment: moment.isoformat())
    | st.sampled_from(["Z", "+01:00", "-0930", "+23:00"]).map(lambda z: f"2024-03-31T02:30:00{z}")
    | st.integers(-(2**70), 2**70)
    | st.integers(10**8, 10**18)
    | st.floats(width=64).filter(np.isfinite)
    | st.floats(1e8, 1e14)
)
SAMPLES = st.fixed_dictionaries(
    {
        "unique_id": TEXTS.map(lambda name: f"s{name}") | st.integers(-(10**30), 10**30),
        "ds": STAMPS,
        "y": NUMBERS.filter(lambda value: not isinstance(value, bool)),
    },
    optional={
        "temp °C": NUMBERS,
        "holiday": NUMBERS,
        "kind": st.none() | TEXTS | st.integers(-(10**30), 10**30) | st.floats(-1e18, 1e18),
        "other": st.recursive(NUMBERS | TEXTS, lambda inner: st.lists(inner, max_size=3)),
    },
)
MESSAGES = st.builds(
    lambda content, readable, indent: json.dumps(
        content, ensure_ascii=not readable, indent=indent
    ).encode(),
    SAMPLES | st.lists(SAMPLES, min_size=1, max_size=4),
    st.booleans(),
    st.none() | st.just(2),
)


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_the_fast_reader_reads_what_the_slow_one_reads(value: bytes) -> None:
    reader = decoder()._reader
    # Text, so that 1 and 1.0 and true are told apart.
    assert repr(reader._decoder.decode(value)) == repr(reader.read_slowly(value))


def test_bad_messages_do_not_make_good_ones_be_read_again() -> None:
    class Counting:
        def __init__(self, inner: Any) -> None:
            self.inner, self.calls = inner, 0

        def decode(self, value: bytes) -> Any:
            self.calls += 1
            return self.inner.decode(value)

    reader = SampleReader(COVARIATES)
    counting = Counting(reader._decoder)
    reader._decoder = counting  # type: ignore[assignment]
    found = reader.read([text(), b"{"] * 500)
    assert counting.calls == len(found) == 1000
    assert [isinstance(message, Refusal) for message in found] == [False, True] * 500


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGES | st.binary(max_size=5), min_size=1, max_size=12), st.data())
def test_what_becomes_of_a_message_does_not_depend_on_its_company(
    values: list[bytes], data: st.DataObject
) -> None:
    records = polled(values)
    whole = decoder("Europe/Berlin").decode(records).table
    cut = data.draw(st.integers(0, len(values)))
    parts = [
        decoder("Europe/Berlin").decode(_slice(records, begin, end)).table
        for begin, end in ((0, cut), (cut, len(values)))
        if begin < end
    ]
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()


def _slice(records: Records, begin: int, end: int) -> Records:
    part: Mapping[str, Any] = {
        name: getattr(records, name)[begin:end] for name in ("offsets", "values", "keys", "headers")
    }
    stamps = records.timestamps_ms[begin:end]
    return Records(partition=0, timestamps_ms=stamps, nbytes=0, **part)
