"""Small segments for tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from flts_ray.ingest.segment import Batch, SegmentInfo, encode, metadata_of, segment_schema
from flts_ray.store import Created, FolderStore, ObjectInfo, Store

TOPIC, EPOCH = "load", "0123456789abcdef"
SCHEMA = segment_schema({"temp": "past", "site": "static"})
START = datetime(2024, 1, 1, tzinfo=UTC)


def good(offset: int, index: int = 0, **other: Any) -> dict[str, Any]:
    """A row of a message that could be decoded."""
    return {
        "offset": offset,
        "index": index,
        "unique_id": f"s{offset % 3}",
        "ds": START + timedelta(minutes=offset % 10**6),
        "y": offset / 7,
        "temp": None if offset % 2 else 20.5,
        "site": "north",
        "timestamp_ms": 1_700_000_000_000 + offset % 10**6,
        **other,
    }


def bad(offset: int, **other: Any) -> dict[str, Any]:
    """A row of a message that could not be decoded."""
    return {
        "offset": offset,
        "index": 0,
        "error": "not_json",
        "detail": "byte 1",
        "raw": b"{\xff",
        "key": b"k",
        "timestamp_ms": 1_700_000_000_000 + offset % 10**6,
        "headers": [("trace", b"\x00"), ("trace", None)],
        **other,
    }


def batch(begin: int, end: int, rows: Sequence[dict[str, Any]] | None = None) -> Batch:
    """Messages of [begin, end): one good row each, every fifth bad, unless rows are given."""
    if rows is None:
        rows = [good(i) if i % 5 else bad(i) for i in range(begin, end)]
    return Batch(begin, end, pa.Table.from_pylist(list(rows), schema=SCHEMA), 100 * (end - begin))


def segment(
    begin: int,
    end: int,
    rows: Sequence[dict[str, Any]] | None = None,
    *,
    partition: int = 0,
    lost: int = 0,
) -> tuple[bytes, SegmentInfo]:
    """Bytes and facts of a segment."""
    return encode(
        [batch(begin, end, rows)],
        begin,
        end,
        topic=TOPIC,
        epoch=EPOCH,
        partition=partition,
        writer="test",
        lost=lost,
    )


def stored(store: Store, begin: int, end: int, partition: int = 0) -> SegmentInfo:
    """Store a segment as ingestion does."""
    data, info = segment(begin, end, partition=partition)
    assert isinstance(store.put_new(info.key, data, metadata_of(info)), Created)
    return info


class Racing(FolderStore):
    """A folder whose listings had passed these segments' places before they were stored."""

    def __init__(self, root: str, *begins: int) -> None:
        super().__init__(root)
        self.missed = tuple(f"{begin:020d}.parquet" for begin in begins)

    def list(self, prefix: str = "", after: str | None = None) -> list[ObjectInfo]:
        return [one for one in super().list(prefix, after) if not one.key.endswith(self.missed)]
