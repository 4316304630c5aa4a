"""Segments: what lies in the store of one partition's half-open range of offsets.

Design choices: one Parquet file a range, its key made of where the range begins, so that two
writers who continue the same chain meet at the same key; the end, the counts and a checksum stand
in the object's metadata (one small request) and again in the footer (where a store keeps no
metadata); good and bad rows share the file, so they are committed together; the checksum is over
the content of the columns, not over encoded bytes, so any reader can compute it again from what it
read; the same rows and facts give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.ingest.checksum import checksum, schema_name
from flts_ray.panel import Role
from flts_ray.store import Store

ROOT = "raw"
_SUFFIX = ".parquet"
_FOOTER = "flts."
_METADATA = "flts-"
_TAIL = 1 << 16
# S3 servers drop metadata without a value.
_NONE = "none"
_ENCODING = {"offset": "DELTA_BINARY_PACKED", "timestamp_ms": "DELTA_BINARY_PACKED"}
_REMEDY = "restore the object from a backup, or move it and what follows it away and ingest again"
_DAMAGED = (pa.ArrowException, OSError, KeyError, ValueError)

_BEFORE = (
    pa.field("offset", pa.int64()),
    pa.field("index", pa.int32()),
    pa.field("unique_id", pa.string()),
    pa.field("ds", pa.timestamp("us", "UTC")),
    pa.field("y", pa.float64()),
)
_AFTER = (
    pa.field("error", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("raw", pa.binary()),
    pa.field("key", pa.binary()),
    pa.field("timestamp_ms", pa.int64()),
    pa.field("headers", pa.map_(pa.string(), pa.binary())),
)


def segment_schema(covariates: Mapping[str, Role]) -> pa.Schema:
    """Columns of a segment; covariates stand between `y` and `error`, in the order given.

    Raises ConfigError for a covariate that has the name of another column.
    """
    for name in covariates:
        if any(field.name == name for field in (*_BEFORE, *_AFTER)):
            raise ConfigError(
                f"data.covariates.{name}: segments have a column {name} of their own; "
                "rename the covariate"
            )
    middle = [
        pa.field(name, pa.string() if role == "static" else pa.float64())
        for name, role in covariates.items()
    ]
    return pa.schema([*_BEFORE, *middle, *_AFTER])


@dataclass(frozen=True)
class Batch:
    """Decoded messages of the offsets [begin, end) of one partition.

    `table` has the columns of `segment_schema`, sorted by offset and index, and may be empty;
    `nbytes` is the size of the messages' values.
    """

    begin: int
    end: int
    table: pa.Table
    nbytes: int

    @property
    def rows(self) -> int:
        """Good rows."""
        return self.table.num_rows - self.bad_rows

    @property
    def bad_rows(self) -> int:
        """Error rows, one a bad message."""
        return count_bad(self.table)

    def after(self, offset: int) -> Batch | None:
        """What remains at `offset` and above; None: nothing. `nbytes` is shared out by offsets."""
        if offset <= self.begin:
            return self
        if offset >= self.end:
            return None
        offsets = self.table.column("offset").to_numpy()
        table = self.table.slice(int(np.searchsorted(offsets, offset)))
        nbytes = self.nbytes * (self.end - offset) // (self.end - self.begin)
        return Batch(offset, self.end, table, nbytes)


@dataclass(frozen=True)
class SegmentInfo:
    """Facts of one stored segment.

    `rows` good rows, `bad_rows` error rows, `lost` offsets of the range that the broker no longer
    had; `min_us`, `max_us` earliest and latest event time of the good rows, microseconds since
    1970; `checksum` SHA-256 of the columns' content; `writer` who stored it; `schema` names the
    columns and their types; `size` of the object in bytes.
    """

    topic: str
    epoch: str
    partition: int
    begin: int
    end: int
    rows: int
    bad_rows: int
    lost: int
    min_us: int | None
    max_us: int | None
    checksum: str
    writer: str
    schema: str
    size: int

    @property
    def key(self) -> str:
        """Where the segment belongs."""
        return segment_key(self.topic, self.epoch, self.partition, self.begin)


class SegmentKey(NamedTuple):
    """The parts of a segment's key; `begin` is its first offset."""

    topic: str
    epoch: str
    partition: int
    begin: int


def segment_key(topic: str, epoch: str, partition: int, begin: int) -> str:
    """Key of the segment that begins at an offset; keys of a partition sort by offset."""
    return f"{partition_folder(topic, epoch, partition)}/{begin:020d}{_SUFFIX}"


def epoch_folder(topic: str, epoch: str) -> str:
    """Folder of all segments of one life of a topic."""
    return f"{ROOT}/{topic}/{epoch}"


def partition_folder(topic: str, epoch: str, partition: int) -> str:
    """Folder of the segments of one partition."""
    return f"{epoch_folder(topic, epoch)}/p={partition}"


def parse_key(key: str) -> SegmentKey:
    """The parts of a key. Raises ArtifactError if it is no segment's."""
    parts = key.split("/")
    if len(parts) == 5 and parts[3].startswith("p=") and parts[4].endswith(_SUFFIX):
        partition, begin = parts[3].removeprefix("p="), parts[4].removesuffix(_SUFFIX)
        if _digits(partition) and _digits(begin):
            found = SegmentKey(parts[1], parts[2], int(partition), int(begin))
            if segment_key(*found) == key:
                return found
    raise ArtifactError(
        f"{key}: this is no segment ({ROOT}/TOPIC/EPOCH/p=PARTITION/OFFSET{_SUFFIX}, 20 digits); "
        f"move it out of {ROOT}/"
    )


def encode(
    batches: Sequence[Batch],
    begin: int,
    end: int,
    *,
    topic: str,
    epoch: str,
    partition: int,
    writer: str,
    lost: int = 0,
) -> tuple[bytes, SegmentInfo]:
    """One segment of [begin, end) as Parquet bytes, and its facts.

    `batches` in order of offsets, at least one (for a range that holds no message: one with an
    empty table). Raises ArtifactError for rows that are outside of the range or out of order.
    """
    # The layout of pages follows the chunks; in one chunk it follows the content alone.
    table = pa.concat_tables([batch.table for batch in batches]).combine_chunks()
    table = table.replace_schema_metadata(None)
    _check_order(table, begin, end, segment_key(topic, epoch, partition, begin))
    bad = count_bad(table)
    earliest, latest = time_span(table)
    facts: dict[str, Any] = {
        "topic": topic, "epoch": epoch, "partition": partition, "begin": begin, "end": end,
        "rows": table.num_rows - bad, "bad_rows": bad, "lost": lost,
        "min_us": earliest, "max_us": latest, "checksum": checksum(table),
        "writer": writer, "schema": schema_name(table.schema),
    }  # fmt: skip
    data = _parquet(table, {_FOOTER + name: _text(value) for name, value in facts.items()})
    return data, SegmentInfo(**facts, size=len(data))


def metadata_of(info: SegmentInfo) -> dict[str, str]:
    """Object metadata to store with the bytes."""
    facts = asdict(info)
    del facts["size"]
    return {_METADATA + name.replace("_", "-"): _text(value) for name, value in facts.items()}


def info_from_metadata(metadata: Mapping[str, str], size: int) -> SegmentInfo | None:
    """Facts from object metadata; None if there are none. Raises KeyError or ValueError."""
    if _METADATA + "end" not in metadata:
        return None
    names = {name: _METADATA + name.replace("_", "-") for name in _FIELDS}
    return _info({name: metadata[stored] for name, stored in names.items()}, size)


def read_info(store: Store, key: str) -> SegmentInfo:
    """Facts of a stored segment: one request for its metadata, else a ranged read of its footer.

    Raises NotFound if nothing is stored there, ArtifactError if it is no segment or another's.
    """
    parse_key(key)
    found = store.head(key)
    try:
        info = info_from_metadata(found.metadata, found.size)
        info = info or _footer_info(_read_tail(store, key, found.size), found.size)
    except _DAMAGED as error:
        raise _damaged(store.uri(key), error) from None
    if info.key != key or info.end <= info.begin:
        raise ArtifactError(
            f"{store.uri(key)}: it says that it is [{info.begin}, {info.end}) of {info.key}; "
            f"{_REMEDY}"
        )
    return info


def read_table(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a stored segment. Raises NotFound, ArtifactError (damaged)."""
    return decode_table(store.get(key), store.uri(key), columns)


def decode_table(data: bytes, place: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a segment's bytes; `place` is named in the ArtifactError for damaged bytes."""
    try:
        names = None if columns is None else list(columns)
        return pq.ParquetFile(pa.BufferReader(data)).read(names)
    except _DAMAGED as error:
        raise _damaged(place, error) from None


def decode_info(data: bytes, place: str) -> SegmentInfo:
    """Facts in the footer of a segment's bytes. Raises ArtifactError naming `place`."""
    try:
        return _footer_info(data, len(data))
    except _DAMAGED as error:
        raise _damaged(place, error) from None


def good_rows(table: pa.Table) -> pa.Table:
    """Rows that could be decoded."""
    if not count_bad(table):
        return table
    return table.filter(pc.is_null(table.column("error")))


def bad_rows(table: pa.Table) -> pa.Table:
    """Rows that stand for a message that could not be decoded."""
    return table.filter(pc.is_valid(table.column("error")))


def count_bad(table: pa.Table) -> int:
    """How many rows stand for a message that could not be decoded."""
    column = table.column("error")
    return len(column) - column.null_count


def time_span(table: pa.Table) -> tuple[int | None, int | None]:
    """Earliest and latest `ds`, microseconds since 1970; None without good rows."""
    found = pc.min_max(table.column("ds"))
    return found["min"].value, found["max"].value


def _check_order(table: pa.Table, begin: int, end: int, key: str) -> None:
    offset = table.column("offset").to_numpy()
    index = table.column("index").to_numpy()
    step = np.diff(offset)
    if len(offset) and (offset[0] < begin or offset[-1] >= end):
        raise ArtifactError(
            f"{key}: rows of the offsets {offset[0]} to {offset[-1]} do not belong into "
            f"[{begin}, {end}); nothing was stored, report this"
        )
    wrong = np.flatnonzero((step < 0) | ((step == 0) & (np.diff(index) <= 0)))
    if len(wrong) or end <= begin:
        at = offset[wrong[0] + 1] if len(wrong) else begin
        raise ArtifactError(
            f"{key}: [{begin}, {end}) is empty or its rows repeat or go back at offset {at}; "
            "nothing was stored, report this"
        )


def _parquet(table: pa.Table, facts: Mapping[str, str]) -> bytes:
    repeating = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name != "detail"]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeating,
        column_encoding=_ENCODING,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(facts))
    return sink.getvalue().to_pybytes()


def _read_tail(store: Store, key: str, size: int) -> bytes:
    tail = store.get_range(key, max(0, size - _TAIL), min(size, _TAIL))
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < needed <= size:
        return store.get_range(key, size - needed, needed)
    return tail


def _footer_info(data: bytes, size: int) -> SegmentInfo:
    stored = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    return _info({name: stored[(_FOOTER + name).encode()].decode() for name in _FIELDS}, size)


def _info(facts: Mapping[str, str], size: int) -> SegmentInfo:
    read: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        text = facts[name]
        none = text == _NONE and kind.endswith("None")
        read[name] = None if none else int(text) if kind.startswith("int") else text
    return SegmentInfo(**read, size=size)


_FIELDS = {field.name: str(field.type) for field in fields(SegmentInfo) if field.name != "size"}


def _text(value: int | str | None) -> str:
    return _NONE if value is None else str(value)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _damaged(place: str, error: Exception) -> ArtifactError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ArtifactError(f"{place}: this is no whole segment ({first[:200]}); {_REMEDY}")
