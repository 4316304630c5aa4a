"""CSV and Parquet files as streams of raw column batches.

Design choices: CSV columns stay text here, because a typed reader stops at the first value it
cannot convert and names no others; only the wanted columns are converted; one thread, since order
and line numbers matter more than speed and other processes want the second core.
"""

from __future__ import annotations

import csv
import hashlib
import io
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from pyarrow import fs

from flts_ray.errors import DataError
from flts_ray.s3_clients import scan_filesystem
from flts_ray.sources.inputs import Input

_BLOCK_BYTES = 4 << 20
_HEADER_BYTES = 1 << 20
_BATCH_ROWS = 131_072
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class RawBatch:
    """Wanted columns as stored, and the file row (from 0, without header) of each value."""

    rows: np.ndarray
    columns: dict[str, pa.Array]


@dataclass
class CsvFile:
    """`skipped` grows while batches are read: lines with a wrong number of fields, and why."""

    item: Input
    header: list[str]
    delimiter: str
    skipped: list[tuple[int, str]] = field(default_factory=list)

    def place(self, row: int) -> str:
        line = row + 2
        numbers = [number for number, _ in self.skipped]
        # Lines that the reader skips are missing from its row count.
        while (shifted := row + 2 + bisect_right(numbers, line)) != line:
            line = shifted
        return f"line {line}"

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        first = 0
        self.skipped.clear()
        with explained(self.item), _stream(self.item) as stream:
            for batch in self._reader(stream, columns):
                rows = np.arange(first, first + batch.num_rows)
                first += batch.num_rows
                yield _without_blank(RawBatch(rows, dict(zip(columns, batch.columns, strict=True))))

    def _reader(self, stream: Any, columns: Sequence[str]) -> pacsv.CSVStreamingReader:
        return pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(
                delimiter=self.delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=self._skip,
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
            ),
        )

    def _skip(self, row: pacsv.InvalidRow) -> str:
        blank = not row.text.strip()
        what = f"{row.actual_columns} fields, the header has {row.expected_columns}"
        insort(self.skipped, (row.number, "" if blank else what))
        return "skip"


@dataclass(frozen=True)
class ParquetFile:
    item: Input
    schema: pa.Schema

    @property
    def header(self) -> list[str]:
        return [*self.schema.names, *sorted(self.item.lacks)]

    def place(self, row: int) -> str:
        return f"row {row + 1}"

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        import pyarrow.parquet as pq

        first = 0
        system, path = _system(self.item.uri)
        with explained(self.item), system.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            there = [name for name in columns if name not in self.item.lacks]
            for batch in file.iter_batches(_BATCH_ROWS, columns=there, use_threads=False):
                rows = np.arange(first, first + batch.num_rows)
                first += batch.num_rows
                missing = pa.nulls(batch.num_rows, pa.float64())
                yield RawBatch(
                    rows, {n: batch.column(n) if n in there else missing for n in columns}
                )


def open_file(item: Input, time_column: str) -> CsvFile | ParquetFile:
    """Read the header. Raises DataError for a file that is empty, no text or no Parquet, or whose
    content is not what `item.sha256` says."""
    if item.sha256 is not None:
        _check_content(item, item.sha256)
    if item.format == "csv":
        return _open_csv(item, time_column)
    import pyarrow.parquet as pq

    system, path = _system(item.uri)
    with explained(item), system.open_input_file(path) as source:
        return ParquetFile(item, pq.read_schema(source))


def _check_content(item: Input, expected: str) -> None:
    """Read once more than needed: rows that went on already could not be taken back."""
    digest = hashlib.sha256()
    system, path = _system(item.uri)
    with explained(item), system.open_input_file(path) as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{item.uri}: changed since it was written (SHA-256 differs); restore the object from "
            "a backup, or choose another data.snapshot",
            field="data.snapshot",
        )


@contextmanager
def explained(item: Input) -> Iterator[None]:
    """Errors of readers and file systems become DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        kind = "Parquet" if item.format == "parquet" else "CSV text in UTF-8"
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{item.uri}: cannot be read as {kind}: {said[0][:300]}; replace the damaged file, or "
            "set data.format if it is of another kind",
            field="data.path",
        ) from None


def _open_csv(item: Input, time_column: str) -> CsvFile:
    with explained(item), _stream(item) as stream:
        start = stream.read(_HEADER_BYTES)
    try:
        # An incomplete character at the cut belongs to a later line.
        text = start.decode(
            "utf-8-sig", errors="strict" if len(start) < _HEADER_BYTES else "ignore"
        )
    except UnicodeDecodeError as error:
        text = start[: error.start].decode("utf-8-sig")
        if "\n" not in text and "\r" not in text:
            raise DataError(_no_text(item), field="data.path") from None
    if "\0" in text:
        raise DataError(_no_text(item), field="data.path")
    if not text.strip():
        raise DataError(
            f"{item.uri}: the file is empty; replace it or remove it from data.path",
            field="data.path",
        )
    if len(text.splitlines()) == 1 and len(start) < _HEADER_BYTES:
        raise no_rows(item)
    headers = {mark: _first_record(text, mark) for mark in _DELIMITERS}
    fitting = [mark for mark in _DELIMITERS if time_column in headers[mark]]
    delimiter = max(fitting or _DELIMITERS, key=lambda mark: len(headers[mark]))
    return CsvFile(item, headers[delimiter], delimiter)


def no_rows(item: Input) -> DataError:
    return DataError(
        f"{item.uri}: the file has a header but no rows; fill it or remove it from data.path",
        field="data.path",
    )


def _first_record(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])


def _no_text(item: Input) -> str:
    return (
        f"{item.uri}: cannot be read as CSV: it is no UTF-8 text; save it as CSV in UTF-8, or set "
        "data.format if it is of another kind"
    )


def _without_blank(batch: RawBatch) -> RawBatch:
    """Without lines on which every wanted column is empty."""
    blank = np.ones(batch.rows.size, bool)
    for values in batch.columns.values():
        blank &= np.asarray(pc.equal(values, "").fill_null(True))
    if not blank.any():
        return batch
    keep = pa.array(~blank)
    columns = {name: values.filter(keep) for name, values in batch.columns.items()}
    return RawBatch(batch.rows[~blank], columns)


def _system(uri: str) -> tuple[fs.FileSystem, str]:
    if uri.startswith("s3://"):
        return scan_filesystem(), uri.removeprefix("s3://")
    return fs.LocalFileSystem(), uri


def _stream(item: Input) -> Any:
    """The content; names ending in .gz are unpacked."""
    system, path = _system(item.uri)
    return system.open_input_stream(path)
