"""Columns of an Arrow IPC stream as arrays, checked before anything reads their values.

Design choices: compressed streams are refused, because a few bytes could become gigabytes; every
buffer is validated, because the bytes come from strangers; nothing is copied that lies as NumPy
wants it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract, from_local_us

MAX_COLUMNS = 1000
_RECORD_BATCH_COMPRESSION = 3
_MESSAGE_HEADER = 2


def read_table(body: bytes, limits: ServeConfig) -> pa.Table:
    """The table of an IPC stream, checked. Raises DataError."""
    try:
        _check_plain(body)
        with pa.ipc.open_stream(body) as stream:
            if len(stream.schema) > MAX_COLUMNS:
                raise _refused(f"{len(stream.schema)} columns; send at most {MAX_COLUMNS}")
            for field in stream.schema:
                _check_text(field)
            batches, rows = [], 0
            for batch in stream:
                rows += batch.num_rows
                if rows > limits.max_bulk_bytes:  # a row of any column takes a byte at least
                    raise _refused("more rows than bytes")
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, stream.schema)
        return table.combine_chunks()
    except (pa.ArrowException, struct.error, OSError, ValueError, IndexError) as error:
        raise _refused(f"{str(error)[:200]}; send one Arrow IPC stream") from None


def _check_text(field: pa.Field) -> None:
    """Raise UnicodeDecodeError, a ValueError, for a name or a time zone that is no text."""
    kind = field.type
    _ = field.name, getattr(kind, "tz", None)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    for i in range(kind.num_fields):
        _check_text(kind.field(i))


def _refused(problem: str) -> DataError:
    return DataError(f"body: {problem}", field="body")


def _check_plain(body: bytes) -> None:
    """Raise DataError for a stream with compressed buffers (Arrow format, Message.fbs)."""
    for message in pa.ipc.MessageReader.open_stream(body):
        if message.type not in ("record batch", "dictionary"):
            continue
        if _has_compression(message.metadata.to_pybytes(), message.type == "dictionary"):
            raise _refused("compressed buffers; send the stream uncompressed")


def _has_compression(metadata: bytes, dictionary: bool) -> bool:
    header = _field(metadata, struct.unpack_from("<I", metadata)[0], _MESSAGE_HEADER)
    batch = _follow(metadata, header)
    if dictionary:
        batch = _follow(metadata, _field(metadata, batch, 1))
    return _field(metadata, batch, _RECORD_BATCH_COMPRESSION) is not None


def _field(data: bytes, table: int, index: int) -> int | None:
    """Where field `index` of a flatbuffers table lies, None where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * index >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * index)[0]
    return table + offset if offset else None


def _follow(data: bytes, at: int | None) -> int:
    if at is None:
        raise ValueError("a message without its header")
    return at + int(struct.unpack_from("<I", data, at)[0])


def whole(table: pa.Table, name: str) -> pa.Array:
    """A column of a table whose chunks are combined, without a copy."""
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def lengths_of(column: pa.Array) -> np.ndarray:
    """How long each list is, int64 [n]; -1 for a null."""
    counted = pc.fill_null(pc.list_value_length(column), -1)
    found: np.ndarray = counted.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def check_names(table: pa.Table, contract: Contract) -> None:
    """Raise DataError for a column that is missing, foreign or twice there."""
    names = table.column_names
    known = {
        "unique_id", "y", "ds", "start", "observed",
        *contract.known_future, *contract.past, *contract.static,
    }  # fmt: skip
    for name in ("unique_id", "y"):
        if name not in names:
            raise DataError(f"{name}: required, but not given", field=name)
    for name in names:
        if name not in known or names.count(name) > 1:
            short = name[:60]
            raise DataError(f"{short}: no column of this model, or twice there", field=short)


def texts(table: pa.Table, name: str) -> list[str]:
    column = whole(table, name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{name}: must be text, not {column.type}", field=name)
    if column.null_count:
        raise DataError(f"{name}: null in row {column.is_null().index(True).as_py()}", field=name)
    if (pc.max(pc.binary_length(column)).as_py() or 0) > 500:
        raise DataError(f"{name}: a name of more than 500 bytes", field=name)
    found: list[str] = column.to_pylist()
    return found


def numbers(column: pa.Array, name: str) -> np.ndarray:
    """float32 or float64, NaN where null."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if not (pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        raise DataError(f"{name}: must be numbers, not {kind}", field=name)
    found: np.ndarray = column.to_numpy(zero_copy_only=False)
    return found


def instants(column: pa.Array, name: str, contract: Contract) -> np.ndarray:
    """int64 UTC microseconds; without a zone they are in the contract's."""
    kind = column.type
    if not pa.types.is_timestamp(kind):
        raise DataError(f"{name}: must be timestamps, not {kind}", field=name)
    if column.null_count:
        raise DataError(f"{name}: holds a null", field=name)
    try:
        whole = column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: {str(error)[:200]}", field=name) from None
    found: np.ndarray = whole.to_numpy(zero_copy_only=False)
    return found if kind.tz is not None else from_local_us(found, contract.time_zone)


def mask(column: pa.Array, name: str) -> np.ndarray:
    if not pa.types.is_boolean(column.type) or column.null_count:
        raise DataError(f"{name}: must be true or false everywhere", field=name)
    found: np.ndarray = column.to_numpy(zero_copy_only=False)
    return found


def statics(column: pa.Array, name: str, contract: Contract) -> Any:
    """One static value a row: numbers, or the codes of labels."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        if name not in contract.labels:
            raise DataError(f"{name}: must be numbers, not text", field=name)
        return np.array([contract.code_of(name, label) for label in column.to_pylist()])
    return numbers(column, name).astype(np.float64)
