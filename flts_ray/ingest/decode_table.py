"""What the messages of a poll hold, to the columns of a segment.

Design choices: a key belongs to a message, so it stands at the first row of the message alone, else
a few bytes of samples times a large key would fill the memory; of a message that is too large only
the first bytes are kept, beside its size and digest, since nobody promised to store any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.ingest.decode_sample import Refusal
from flts_ray.streams.records import Headers, Records

CUT = "value and key are cut"
KEPT_BYTES = 16 * 2**20
"""Messages of at most so many bytes are kept as they came, whatever is wrong with them. Of value
and key of larger ones so many first bytes are kept, and as many headers as fit in them."""


@dataclass(frozen=True)
class Rows:
    """Good rows [rows]: which message they come from, their place in it, their data columns."""

    owner: np.ndarray
    index: np.ndarray
    table: pa.Table


@dataclass
class Taken:
    """What the messages of one poll hold, by their position.

    `cut`: refused ones that are not kept whole; `nbytes` of claimed objects.
    """

    refused: dict[int, Refusal] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    rows: list[Rows] = field(default_factory=list)
    nbytes: int = 0

    def keep_first(self, count: int) -> None:
        """Forget the refusals of messages from the position `count` on."""
        self.refused = {at: why for at, why in self.refused.items() if at < count}


def rows_of_segment(records: Records, taken: Taken, schema: pa.Schema) -> pa.Table:
    """The rows of all messages by offset and index, with the columns of `schema`."""
    shared = {
        "offset": pa.array(records.offsets, pa.int64()),
        "timestamp_ms": pa.array(records.timestamps_ms, pa.int64()),
    }
    keys = None
    if records.keys.count(None) < len(records.keys):
        kept = [_cut(key) if at in taken.cut else key for at, key in enumerate(records.keys)]
        keys = pa.array(kept if taken.cut else records.keys, pa.binary())
    parts = [_filled(_good(rows, shared, keys), schema, rows.owner.size) for rows in taken.rows]
    owners = [rows.owner for rows in taken.rows]
    if taken.refused:
        bad = np.array(sorted(taken.refused))
        parts.append(_filled(_bad(records, bad, taken, shared, keys), schema, bad.size))
        owners.append(bad)
    table = pa.concat_tables(parts)
    if len(parts) == 1:
        return table
    return table.take(pa.array(np.argsort(np.concatenate(owners), kind="stable")))


def message_digest(value: bytes | None) -> str:
    """What is said of a message that is not kept whole."""
    digest = hashlib.sha256(value or b"").hexdigest()
    return (
        f"its value has {len(value or b'')} bytes with the SHA-256 {digest}; {CUT} to "
        f"{KEPT_BYTES} bytes"
    )


def _filled(columns: Mapping[str, Any], schema: pa.Schema, rows: int) -> pa.Table:
    """The columns of a segment; those that are not given are null."""
    full = [
        columns[name] if name in columns else pa.nulls(rows, kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return pa.table(full, schema=schema)


def _good(rows: Rows, shared: Mapping[str, pa.Array], keys: pa.Array | None) -> dict[str, Any]:
    messages = len(shared["offset"])
    alone = rows.owner.size == messages and bool((rows.owner == np.arange(messages)).all())
    owned = shared if alone else {k: v.take(pa.array(rows.owner)) for k, v in shared.items()}
    data = {name: rows.table.column(name) for name in rows.table.column_names}
    found = {"index": pa.array(rows.index, pa.int32()), **owned, **data}
    if keys is not None:
        found["key"] = keys if alone else keys.take(pa.array(rows.owner, mask=rows.index > 0))
    return found


def _bad(
    records: Records,
    bad: np.ndarray,
    taken: Taken,
    shared: Mapping[str, pa.Array],
    keys: pa.Array | None,
) -> dict[str, Any]:
    refused, cut, values = taken.refused, taken.cut, records.values
    headers = [_named(records.headers[at], at in cut) if records.headers else [] for at in bad]
    found = {
        "index": pa.array(np.zeros(bad.size, np.int32)),
        "error": pa.array([refused[at].code for at in bad], pa.string()),
        "detail": pa.array([refused[at].detail for at in bad], pa.string()),
        "raw": pa.array([_cut(values[at]) if at in cut else values[at] for at in bad], pa.binary()),
        "headers": pa.array(headers, pa.map_(pa.string(), pa.binary())),
        **{name: column.take(pa.array(bad)) for name, column in shared.items()},
    }
    if keys is not None:
        found["key"] = keys.take(pa.array(bad))
    return found


def _cut(value: bytes | None) -> bytes | None:
    return value if value is None else value[:KEPT_BYTES]


def _named(headers: Headers, cut: bool) -> list[tuple[str, bytes]]:
    """Headers with names that every reader takes; as many as fit, if they are cut."""
    kept, size = [], 0
    for name, value in headers:
        size += len(name) + len(value or b"")
        if cut and size > KEPT_BYTES:
            break
        kept.append((name.encode(errors="backslashreplace").decode(), value))
    return kept
