from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.config import DataConfig
from flts_ray.errors import Unavailable
from flts_ray.ingest import claims
from flts_ray.ingest.claims import Claimed, ClaimReader
from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.decode_sample import Claim, Refusal
from flts_ray.ingest.segment import Batch
from flts_ray.store import BucketStore, Denied, FolderStore, NotFound, ObjectInfo
from flts_ray.streams.records import Records

CSV = "when,house,load,temp,kind\n2024-01-01 00:00,a,1.5,20,7\n2024-01-01 01:00,b,,,8\n"
FIELDS: dict[str, Any] = {
    "path": "unused.csv",
    "time": "when",
    "id": "house",
    "target": "load",
    "covariates": {"temp": "past", "kind": "static"},
    "time_zone": "Europe/Berlin",
}


def reader(folder: Path, most: int = 100_000, **fields: Any) -> ClaimReader:
    return ClaimReader({"raw": str(folder)}, DataConfig(**{**FIELDS, **fields}), most)


def refused(found: Claimed | Refusal) -> tuple[str, str]:
    assert isinstance(found, Refusal)
    return found.code, found.detail


def rows_of(found: Claimed | Refusal) -> list[tuple[Any, ...]]:
    assert isinstance(found, Claimed), found
    columns = found.table.set_column(1, "ds", found.table.column("ds").cast(pa.int64()))
    return [tuple(row.values()) for row in columns.to_pylist()]


def hour(at: int) -> int:
    """Microseconds of an hour of 2024 in Berlin's winter."""
    return 1_704_063_600_000_000 + at * 3_600_000_000


def ask(folder: Path, content: str | bytes, name: str = "x.csv", **options: Any) -> Any:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return reader(folder, **options).read(Claim("raw", name))


def decoded(folder: Path, *objects: str, most_at_once: int = 10**8) -> Batch:
    values = [
        json.dumps({"bucket": "raw", "object": o, "config_hash": "h", "identifier": 1, "v": 2})
        for o in objects
    ]
    sample = {"unique_id": "z", "ds": 1_700_000_000, "y": 1, "kind": 7.0}
    polled: list[bytes | None] = [value.encode() for value in [*values, json.dumps(sample)]]
    records = Records(0, range(len(polled)), polled, [0] * len(polled), (), (), 1000)
    source = reader(folder)
    covariates = source.data.covariates
    decoder = Decoder(
        covariates, max_message_bytes=10**6, claims=source, max_batch_bytes=most_at_once
    )
    return decoder.decode(records)


def test_a_csv_is_taken_in_whole(tmp_path: Path) -> None:
    found = ask(tmp_path, CSV)
    assert rows_of(found) == [("a", hour(0), 1.5, 20.0, "7"), ("b", hour(1), None, None, "8")]
    assert found.nbytes == max(len(CSV), found.table.nbytes)
    assert rows_of(ask(tmp_path, gzip.compress(CSV.encode()), "x.csv.gz")) == rows_of(found)


def test_a_parquet_file_below_a_folder(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([hour(0), hour(1)], pa.timestamp("us", "UTC")),
            "house": [1, 2],
            "load": [float("nan"), 3.0],
            "temp": pa.array([1, None], pa.int32()),
            "kind": ["x", None],
        }
    )
    (tmp_path / "a" / "b").mkdir(parents=True)
    pq.write_table(table, tmp_path / "a" / "b" / "t.parquet")
    found = reader(tmp_path).read(Claim("raw", "a/b/t.parquet"))
    assert rows_of(found) == [("1", hour(0), None, 1.0, "x"), ("2", hour(1), 3.0, None, None)]


def test_wide_files_and_files_named_after_their_series(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"id": None, "covariates": {}}
    found = ask(tmp_path, "when,load\n2024-01-01,1\n", "north.csv", **plain)
    assert rows_of(found) == [("north", hour(0), 1.0)]
    wide: dict[str, Any] = {**plain, "layout": "wide", "targets": ("up", "down"), "target": "y"}
    found = ask(tmp_path, "when,up,down\n2024-01-01,1,2\n2024-01-01 01:00,3,4\n", **wide)
    assert rows_of(found) == [
        ("down", hour(0), 2.0),
        ("up", hour(0), 1.0),
        ("down", hour(1), 4.0),
        ("up", hour(1), 3.0),
    ]


def test_claims_are_rows_of_their_message_in_the_order_of_offsets(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(CSV)
    batch = decoded(tmp_path, "x.csv", "missing.csv", "x.csv")
    table = batch.table
    assert table.column("offset").to_pylist() == [0, 0, 1, 2, 2, 3]
    assert table.column("index").to_pylist() == [0, 1, 0, 0, 1, 0]
    assert table.column("error").to_pylist() == [None, None, "claim_not_found", None, None, None]
    assert table.column("kind").to_pylist() == ["7", "8", None, "7", "8", "7"]
    assert batch.nbytes >= 1000 + 2 * len(CSV)


@pytest.mark.parametrize(
    "key",
    [
        "../secret.csv", "a/../../secret.csv", "/etc/passwd", "a//b.csv", "./x.csv", "", "a/",
        "..\\secret.csv", "a\0.csv", "a\n.csv", "\ud800.csv", "x" * 201 + ".csv", "é" * 101,
        f"{'d' * 201}/x.csv", "a/" * 600 + "x.csv",
    ],
)  # fmt: skip
def test_objects_outside_of_the_store_are_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret.csv").write_text(CSV)
    (tmp_path / "inner").mkdir()
    code, detail = refused(reader(tmp_path / "inner").read(Claim("raw", key)))
    assert code == "claim_refused"
    assert detail.startswith("object: ") and len(detail) <= 500 and detail.isprintable()


def test_other_buckets_are_refused(tmp_path: Path) -> None:
    code, detail = refused(reader(tmp_path).read(Claim("elsewhere", "x.csv")))
    assert (code, "'elsewhere'" in detail) == ("claim_refused", True)


@pytest.mark.parametrize("key", ["no.csv", "folder", "x.csv/y.csv"])
def test_what_is_no_object_is_not_found(tmp_path: Path, key: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.csv").write_text(CSV)
    assert refused(reader(tmp_path).read(Claim("raw", key)))[0] == "claim_not_found"


def test_the_size_is_asked_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FolderStore, "get_range")
    code, detail = refused(ask(tmp_path, CSV, most=len(CSV) - 1))
    assert code == "claim_too_large" and f"{len(CSV)} bytes" in detail


def test_objects_that_grow_when_unpacked_are_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(("when,house,load,temp,kind\n" + "2024-01-01,a,1,1,x\n" * 5000).encode())
    assert len(bomb) < 2000
    code, detail = refused(ask(tmp_path, bomb, "x.csv.gz", most=2000))
    assert code == "claim_too_large" and "8000 bytes" in detail


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "x.csv", "empty"),
        ("when,house,load,temp,kind\n", "x.csv", "no rows"),
        ("when,house,load\n2024-01-01,a,1\n", "x.csv", "'temp'"),
        (CSV.replace("1.5", "1,5"), "x.csv", "x.csv: 1 problem"),
        (CSV.replace("2024-01-01 00:00", "soon"), "x.csv", "'soon'"),
        (CSV, "x.json", "format"),
        (b"\x89PNG\r\n\x1a\n\0\0", "x.csv", "UTF-8"),
        (b"PAR1 not really PAR1", "x.parquet", "Parquet"),
        (gzip.compress(CSV.encode(), mtime=0)[:-20], "x.csv.gz", "CSV"),
        ('"' * 200_001, "x.csv", ""),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, content: str | bytes, name: str, said: str
) -> None:
    code, detail = refused(ask(tmp_path, content, name, most=10**6))
    assert code == "claim_unreadable"
    assert said in detail and len(detail) <= 500
    assert "flts-claim-" not in detail and str(tmp_path) in detail


def test_columns_of_no_use_are_unreadable(tmp_path: Path) -> None:
    nested = pa.table(
        {"when": ["2024-01-01"], "house": ["a"], "load": [1.0], "temp": [1.0], "kind": [[1, 2]]}
    )
    pq.write_table(nested, tmp_path / "n.parquet")
    code, _ = refused(reader(tmp_path).read(Claim("raw", "n.parquet")))
    assert code == "claim_unreadable"


@pytest.mark.parametrize(
    ("was", "now", "code", "said"),
    [
        ("1.5", "inf", "not_finite", "row 1, y: inf"),
        (",,,8", ",,-inf,8", "not_finite", "row 2, temp: -inf"),
        (",b,", f",{'b' * 513},", "id_too_long", "row 2, unique_id"),
    ],
)
def test_rows_of_objects_keep_the_contract_too(
    tmp_path: Path, was: str, now: str, code: str, said: str
) -> None:
    found = refused(ask(tmp_path, CSV.replace(was, now)))
    assert found[0] == code and said in found[1]


def test_a_store_that_is_away_is_no_bad_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise Unavailable("away")

    (tmp_path / "x.csv").write_text(CSV)
    for request in ("head", "get_range"):
        with monkeypatch.context() as patched, pytest.raises(Unavailable):
            patched.setattr(FolderStore, request, away)
            decoded(tmp_path, "x.csv")


@pytest.mark.parametrize("request_", ["head", "get_range"])
def test_an_object_that_must_not_be_read_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    real = getattr(FolderStore, request_)

    def denied(store: FolderStore, key: str, *rest: int) -> Any:
        if key == "x.csv":
            raise Denied(f"{key}: access refused")
        return real(store, key, *rest)

    (tmp_path / "x.csv").write_text(CSV)
    monkeypatch.setattr(FolderStore, request_, denied)
    code, detail = refused(reader(tmp_path).read(Claim("raw", "x.csv")))
    assert (code, detail) == ("claim_unreadable", "object: x.csv: access refused")


def test_a_store_that_refuses_everything_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> Any:
        raise Denied("access refused")

    monkeypatch.setattr(FolderStore, "head", denied)
    with pytest.raises(Denied):
        reader(tmp_path).read(Claim("raw", "x.csv"))


def test_the_place_counts_for_the_length_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BucketStore, "head")
    place = "s3://bucket/" + "/".join(["p" * 100] * 5)
    places = ClaimReader({"raw": place}, DataConfig(**FIELDS), 1000)
    key = "/".join(["k" * 100] * 6)
    code, detail = refused(places.read(Claim("raw", key)))
    assert code == "claim_refused" and "too long" in detail


def test_no_room_for_the_copy_is_no_fault_of_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(Unavailable, match="make room"):
        ask(tmp_path, CSV)


def test_a_batch_ends_where_claims_reach_its_budget(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(CSV)
    batch = decoded(tmp_path, "x.csv", "x.csv", "x.csv", most_at_once=1)
    assert (batch.begin, batch.end, batch.rows, batch.bad_rows) == (0, 1, 2, 0)
    batch = decoded(tmp_path, "no.csv", "x.csv", "x.csv", most_at_once=1)
    assert (batch.begin, batch.end, batch.rows, batch.bad_rows) == (0, 2, 2, 1)
    assert decoded(tmp_path, "x.csv", "x.csv", most_at_once=10**6).end == 3


def test_rows_of_claims_count_as_they_are_in_memory(tmp_path: Path) -> None:
    rows = 2000
    table = pa.table({"when": [1_700_000_000] * rows, "house": ["a" * 100] * rows,
                      "load": [1] * rows, "temp": [1] * rows, "kind": ["k"] * rows})  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 5000
    batch = decoded(tmp_path, "x.parquet", most_at_once=10**9)
    assert batch.rows >= rows
    assert batch.nbytes >= 0.9 * batch.table.nbytes > rows * 150


def test_messages_before_a_store_that_is_away_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text(CSV)
    head = FolderStore.head

    def away(store: FolderStore, key: str) -> ObjectInfo:
        if key == "y.csv":
            raise Unavailable("away")
        return head(store, key)

    monkeypatch.setattr(FolderStore, "head", away)
    assert decoded(tmp_path, "x.csv", "y.csv", "x.csv").end == 1
    with pytest.raises(Unavailable):
        decoded(tmp_path, "y.csv", "x.csv")


@pytest.mark.parametrize(
    "columns",
    [
        {"house": ["a" * 1000]},
        {"kind": ["k" * 1000]},
        {"house": [1], "kind": [1.0]},
    ],
)
def test_parquet_that_grows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[Any]]
) -> None:
    from flts_ray.sources import read

    rows = 30_000
    usual: dict[str, list[Any]] = {"when": [1], "house": ["a"], "load": [1], "temp": [1]}
    whole = {name: values * rows for name, values in {**usual, "kind": ["k"], **columns}.items()}
    pq.write_table(pa.table(whole), tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    monkeypatch.setattr(read, "read_batches", lambda *_: pytest.fail("it was read"))
    code, detail = refused(reader(tmp_path, 20_000).read(Claim("raw", "x.parquet")))
    assert code == "claim_too_large" and "80000 bytes" in detail


def test_rows_may_need_no_more_than_the_buffer(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(CSV)
    small = ClaimReader({"raw": str(tmp_path)}, DataConfig(**FIELDS), 10**6, max_row_bytes=50)
    code, detail = refused(small.read(Claim("raw", "x.csv")))
    assert code == "claim_too_large" and "more than 50 bytes" in detail


def test_an_object_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_PART_BYTES", 10)
    sizes = iter([len(CSV), len(CSV) + 1])
    monkeypatch.setattr(FolderStore, "head", lambda _, key: ObjectInfo(key, next(sizes)))
    with pytest.raises(Unavailable, match="changed while it was read"):
        ask(tmp_path, CSV)


def test_an_object_that_goes_away_while_it_is_read_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> bytes:
        raise NotFound("gone")

    monkeypatch.setattr(FolderStore, "get_range", gone)
    assert refused(ask(tmp_path, CSV))[0] == "claim_not_found"


# Arrow prints, besides refusing the file, that it cannot show a line that is no UTF-8.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_objects_of_all_kinds_end_as_refusals_or_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (tmp_path / "good.csv").write_text(CSV)
    pq.write_table(pa.table({"when": [1.7e9], "house": ["a"]}), tmp_path / "p.parquet")
    sources = {"x.csv": CSV.encode(), "x.parquet": (tmp_path / "p.parquet").read_bytes()}
    for at in range(200):
        name = ("x.csv", "x.parquet")[at % 2]
        content = bytearray(sources[name])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        found = ask(tmp_path, bytes(content[: rng.integers(1, len(content) + 1)]), name)
        assert isinstance(found, Claimed) or found.code in (
            "claim_unreadable",
            "claim_too_large",
            "not_finite",
        )
