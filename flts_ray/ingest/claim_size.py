"""How much memory the columns of a Parquet object need, told before they are read.

Design choices: a few bytes of Parquet can stand for gigabytes (runs, dictionaries), so the facts in
the footer are looked at first, then texts are read as dictionaries and places in them, which are
never larger than the file says, and their lengths are summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.sources.files import explained
from flts_ray.sources.inputs import Input

_NUMBER = 8
_AT_ONCE = 65_536


def column_bytes(item: Input, data: DataConfig, most: int) -> int:
    """Bytes of the columns of a Parquet file that are used, or something above `most`.

    Raises DataError for nested columns and for a damaged file.
    """
    with explained(item):
        return _column_bytes(Path(item.uri), data, most)


def _column_bytes(path: Path, data: DataConfig, most: int) -> int:
    used = {data.time, data.id, data.target, *(data.targets or ()), *data.covariates}
    with pq.ParquetFile(path) as file:
        schema, facts = file.schema_arrow, file.metadata
        names = [field.name for field in schema if field.name in used]
        size = max(facts.num_rows * _NUMBER * len(names), _uncompressed(facts, set(names)))
    nested = [name for name in names if pa.types.is_nested(schema.field(name).type)]
    if nested:
        raise DataError(f"{path}: column {nested[0]!r} holds lists or structs; write plain values")
    texts = [name for name in names if not _is_fixed(schema.field(name).type)]
    if size > most or not texts:
        return size
    for part in _text_sizes(path, texts):
        size += part
        if size > most:
            break
    return size


def _uncompressed(facts: pq.FileMetaData, names: set[str]) -> int:
    groups = (facts.row_group(at) for at in range(facts.num_row_groups))
    columns = (group.column(at) for group in groups for at in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema in names)


def _is_fixed(kind: pa.DataType) -> bool:
    return not pa.types.is_dictionary(kind) and kind.num_buffers == 2


def _text_sizes(path: Path, names: list[str]) -> Iterator[int]:
    """Bytes of the texts, part by part."""
    with pq.ParquetFile(path, read_dictionary=names) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=names, use_threads=False):
            for column in batch.columns:
                spelled = pa.types.is_dictionary(column.type) and not _is_fixed(
                    column.type.value_type
                )
                yield _spelled_out(column) if spelled else column.nbytes


def _spelled_out(column: pa.DictionaryArray) -> int:
    lengths = pc.binary_length(column.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
    places = column.indices.drop_null().to_numpy()
    return int(np.asarray(lengths, np.int64)[places].sum())
