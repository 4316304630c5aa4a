"""Every payload ends as one error row or as good rows of its offset, whatever its bytes are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.decode_columns import MAX_ID_BYTES
from flts_ray.ingest.segment import Batch, encode
from flts_ray.panel import Role
from flts_ray.streams.records import Headers, Records

PAYLOADS = 120_000
POLL = 10_000
LARGEST = 8000
COVARIATES: dict[str, Role] = {"temp": "past", "holiday": "known_future", "kind": "static"}
CODES = {
    "not_json", "not_a_sample", "missing_field", "wrong_type", "bad_time", "not_finite",
    "too_large", "empty", "id_too_long", "deadline_passed", "claim_refused",
}  # fmt: skip
IDS: list[Any] = ["a", "house-7", "", " ", "é" * 300, "\ud800", "\0", 7, -1, 10**600, 1.5, None, []]
STAMPS: list[Any] = [
    "2024-01-01T00:00:00Z", "2024-01-01", "2024-02-30", "2024-01-01T24:00Z", "2024-01-01T00+19:00",
    1700000000, 1700000000.5, 1.7e12, 10**18, 2**63, -(2**64), 1e300, 0, True, None, {}, "\udfff",
    float("nan"), "0" * 400, "17000000000000000000", "2024-01-01T00:00:00.1234567890123Z",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1.5, 1e308, 2**64, 10**400, -(10**4000), 10**4200 // 7, float("inf"), float("nan"), True,
    None, "1", [], 5e-324,
]  # fmt: skip
SPLICES = [
    b"\xff", b"\0", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud83d", b"\\u0000", b"NaN", b"-Infinity",
    b"1e999", b"9" * 330, b"9" * 5000,
    b"[" * 500, b'{"a":' * 300, b"]", b"}", b'"', b",", b"\n", b"//", b"\\",
    b'"y":1,', b'"unique_id":"z",', "\u2028é𝒳".encode(),
]  # fmt: skip


def chosen(rng: random.Random) -> dict[str, Any]:
    """A sample whose fields are mostly usual."""

    def pick(values: list[Any]) -> Any:
        return values[0] if rng.random() < 0.8 else rng.choice(values)

    fields = {
        "unique_id": pick(IDS),
        "ds": pick(STAMPS),
        "y": pick(NUMBERS),
        "temp": pick(NUMBERS),
        "holiday": pick(NUMBERS),
        "kind": pick(IDS),
        "bucket": "b",
        "object": "../x",
    }
    return {name: value for name, value in fields.items() if rng.random() < 0.9}


def sample(rng: random.Random) -> bytes:
    return json.dumps(chosen(rng), ensure_ascii=True).encode()


def several(rng: random.Random) -> bytes:
    made: list[Any] = [chosen(rng) for _ in range(rng.randrange(4))]
    if rng.random() < 0.2:
        made.append(rng.choice(NUMBERS))
    return json.dumps(made, indent=rng.choice([None, 1])).encode()


def claim(rng: random.Random) -> bytes:
    return json.dumps({"bucket": rng.choice(IDS), "object": rng.choice(IDS), "v": 1}).encode()


def noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(60))


def punctuation(rng: random.Random) -> bytes:
    return "".join(rng.choices('{}[]":,\\ \n0123456789.eE+-truefalsn\u00e9', k=30)).encode()


def cut(rng: random.Random) -> bytes:
    whole = sample(rng)
    return whole[: rng.randrange(len(whole) + 1)]


def flipped(rng: random.Random) -> bytes:
    value = bytearray(sample(rng))
    for _ in range(rng.randrange(1, 4)):
        value[rng.randrange(len(value))] = rng.randrange(256)
    return bytes(value)


def spliced(rng: random.Random) -> bytes:
    value = sample(rng)
    at = rng.randrange(len(value) + 1)
    return value[:at] + rng.choice(SPLICES) + value[at + rng.randrange(3) :]


def deep(rng: random.Random) -> bytes:
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"y":', b"}]")])
    depth = rng.choice([1, 50, 300])
    return opening * depth + sample(rng) + closing * rng.choice([depth, depth - 1, 0])


def huge(rng: random.Random) -> bytes:
    return b" " * rng.choice([LARGEST, LARGEST + 1, 3 * LARGEST])


def payloads(rng: random.Random) -> Iterator[bytes | None]:
    kinds: list[Callable[[random.Random], bytes]] = [
        sample, sample, several, claim, noise, punctuation, cut, flipped, spliced, spliced, deep,
    ]  # fmt: skip
    while True:
        odd = rng.random()
        yield None if odd < 0.005 else huge(rng) if odd < 0.01 else rng.choice(kinds)(rng)


def polls(seed: int) -> Iterator[Records]:
    rng = random.Random(seed)
    source = payloads(rng)
    begin = 0
    for _ in range(PAYLOADS // POLL):
        values = [next(source) for _ in range(POLL)]
        offsets = sorted(rng.sample(range(begin, begin + 2 * POLL), POLL))
        begin = offsets[-1] + 1
        headers: list[Headers] = [()] * POLL
        for at in rng.sample(range(POLL), 500):
            headers[at] = [("deadline_ms", rng.choice([b"0", b"9999", b"x", rng.randbytes(3)]))]
        size = sum(len(value or b"") for value in values)
        yield Records(1, offsets, values, [5000] * POLL, headers, [None] * POLL, size)


def check(records: Records, batch: Batch) -> tuple[int, set[str]]:
    """The rows account for every message; returns good messages and the codes of the others."""
    table = batch.table
    offset, index = table.column("offset").to_numpy(), table.column("index").to_numpy()
    assert np.array_equal(np.unique(offset), np.array(records.offsets))
    first = np.flatnonzero(np.diff(offset, prepend=-1))
    expected = np.arange(offset.size) - np.repeat(first, np.diff(first, append=offset.size))
    assert np.array_equal(index, expected)
    is_bad = table.column("error").is_valid().to_numpy()
    bad = offset[is_bad]
    assert not set(bad) & set(offset[~is_bad]) and len(set(bad)) == bad.size
    originals = dict(zip(records.offsets, records.values, strict=True))
    assert table.column("raw").filter(pa.array(is_bad)).to_pylist() == [originals[o] for o in bad]
    good = table.filter(pa.array(~is_bad))
    assert good.column("ds").null_count == good.column("unique_id").null_count == 0
    assert all(0 < len(name.encode()) <= MAX_ID_BYTES for name in good["unique_id"].to_pylist())
    for name in ("y", "temp", "holiday"):
        assert np.isfinite(good.column(name).drop_null().to_numpy()).all()
    assert all(len(said) < 600 for said in table.column("detail").drop_null().to_pylist())
    return len(set(offset[~is_bad])), set(table.column("error").drop_null().to_pylist())


@pytest.mark.parametrize("seed", [20240301])
def test_no_payload_is_lost_or_stops_the_others(seed: int) -> None:
    decoder = Decoder(COVARIATES, max_message_bytes=LARGEST, time_zone="Europe/Berlin")
    seen = good = 0
    codes: set[str] = set()
    for records in polls(seed):
        batch = decoder.decode(records)
        count, found = check(records, batch)
        seen, good, codes = seen + len(records.offsets), good + count, codes | found
        encode([batch], batch.begin, batch.end, topic="t", epoch="e", partition=1, writer="w")
    assert seen == PAYLOADS
    assert PAYLOADS * 0.05 < good < PAYLOADS * 0.95
    assert codes == CODES
