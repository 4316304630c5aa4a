"""A checksum of a table's content that survives being stored.

Design choices: over the columns' content instead of encoded bytes, so that it can be computed again
from what was read; hashed buffer by buffer without a copy, so that it costs little beside encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def schema_name(schema: pa.Schema) -> str:
    """16 hex digits of SHA-256 over the columns' names and types."""
    text = "\n".join(f"{field.name}:{_kind(field.type)}" for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksum(table: pa.Table) -> str:
    """SHA-256 of what the columns hold: names, types, order of rows, nulls and bits of values.

    How the columns are cut into chunks, sliced, or filled below nulls makes no difference.
    """
    whole = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        whole.update(f"{name}:{_kind(column.type)}\n".encode())
        whole.update(_digest(column.chunks, column.type))
    return whole.hexdigest()


def _kind(kind: pa.DataType) -> str:
    # Arrow prints the inner names of a map, which change on the way through a file.
    return f"map<{kind.key_type}, {kind.item_type}>" if pa.types.is_map(kind) else str(kind)


def _digest(chunks: Sequence[pa.Array], kind: pa.DataType) -> bytes:
    valid, lengths, values = (hashlib.sha256() for _ in range(3))
    keys: list[pa.Array] = []
    items: list[pa.Array] = []
    for chunk in chunks:
        valid.update(chunk.is_valid().cast(pa.uint8()).to_numpy())
        held = chunk.drop_null() if chunk.null_count else chunk
        if not pa.types.is_map(kind) and kind.num_buffers == 2:
            width = kind.bit_width // 8
            values.update(_bytes(held.buffers()[1], held.offset * width, len(held) * width))
            continue
        edges = _edges(held)
        first, count = int(edges[0]), int(edges[-1] - edges[0])
        lengths.update(np.diff(edges).tobytes())
        if pa.types.is_map(kind):
            keys.append(held.keys.slice(first, count))
            items.append(held.items.slice(first, count))
        else:
            values.update(_bytes(held.buffers()[2], first, count))
    if pa.types.is_map(kind):
        values.update(_digest(keys, kind.key_type) + _digest(items, kind.item_type))
    return valid.digest() + lengths.digest() + values.digest()


def _edges(array: pa.Array) -> np.ndarray:
    """Where each value of a string, binary or map array begins, and the end of the last."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(1, np.int32)
    return np.frombuffer(buffer, np.int32)[array.offset : array.offset + len(array) + 1]


def _bytes(buffer: pa.Buffer | None, start: int, count: int) -> memoryview:
    return memoryview(buffer if buffer is not None else b"")[start : start + count]
