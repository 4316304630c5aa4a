"""Objects that a message points at, to rows.

Design choices: only the buckets that the configuration names can be read, below the place it gives
them; the size is asked before anything is fetched; the object is copied to this machine before it
is parsed, so that a store that goes away (wait, then repeat) is never taken for an object that is
damaged (a dead letter); where the store says no, it is asked for a key that nobody has: if it
answers that, the refusal concerns this object (a dead letter), else everybody waits for the keys or
rights to be corrected; it is read like any input file, with the same columns and the same rules.
"""

from __future__ import annotations

import csv
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.config import DataConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.claim_size import column_bytes
from flts_ray.ingest.decode_columns import check_columns, label
from flts_ray.ingest.decode_sample import Claim, Refusal, shown
from flts_ray.store import Denied, NotFound, ObjectInfo, Store, confined

_PART_BYTES = 8 << 20
# What S3 takes as a key, and what file systems take as one name of it.
_LONGEST_KEY = 1024
_LONGEST_NAME = 200
# Rows in memory are a little larger than their text; much larger means a decompression bomb.
_GROWTH = 4
# Texts of one column have offsets of 32 bits.
_MOST_ROW_BYTES = 2**30
_MOST_SAID = 500
_BROKEN = (
    DataError,
    pa.ArrowException,
    csv.Error,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)


@dataclass(frozen=True)
class Claimed:
    """Rows of one object: unique_id, ds, y and covariates, in its order.

    `nbytes` of the object or of its rows in memory, whichever is more.
    """

    table: pa.Table
    nbytes: int


@dataclass(frozen=True)
class ClaimReader:
    """Reads claimed objects. `places`: bucket name in a message to the address of a store;
    `data` says what the columns mean; `max_bytes` is the largest object that is read, and four
    times that, but no more than `max_row_bytes`, the most that its rows may need in memory."""

    places: Mapping[str, str]
    data: DataConfig
    max_bytes: int
    max_row_bytes: int = 2**28

    def read(self, claim: Claim) -> Claimed | Refusal:
        """The object's rows, or why they are refused.

        Raises Unavailable if the store cannot be asked, or refuses everything: repeat later.
        """
        place = self.places.get(claim.bucket)
        if place is None:
            return Refusal(
                "claim_refused", f"bucket: {shown(claim.bucket)} is not one of stream.claims"
            )
        try:
            key = _short(confined(claim.object), place)
        except DataError as error:
            return Refusal("claim_refused", f"object: {error}"[:_MOST_SAID])
        store = Store.open(place)
        try:
            info = store.head(key)
            if info.size > self.max_bytes:
                said = f"object: {shown(key)} has {info.size} bytes of at most {self.max_bytes}"
                return Refusal("claim_too_large", said)
            return self._copied_and_read(store, info)
        except NotFound as error:
            return Refusal("claim_not_found", f"object: {error}"[:_MOST_SAID])
        except Denied as error:
            if not _answers(store):
                raise
            return _unreadable(str(error))

    def _copied_and_read(self, store: Store, info: ObjectInfo) -> Claimed | Refusal:
        with _on_this_machine(), tempfile.TemporaryDirectory(prefix="flts-claim-") as folder:
            path = Path(folder, info.key.rpartition("/")[2])
            _copy(store, info, path)
            try:
                read = self._rows(path)
            except _BROKEN as error:
                return _unreadable(str(error).replace(str(path), store.uri(info.key)))
            except OSError as error:
                # What the system reports has a number; damage that a reader reports has none.
                if error.errno is not None:
                    raise
                return _unreadable(str(error).replace(str(path), store.uri(info.key)))
        if isinstance(read, Refusal):
            return read
        return Claimed(read, max(info.size, read.nbytes))

    def _rows(self, path: Path) -> pa.Table | Refusal:
        from flts_ray.sources.inputs import find_inputs
        from flts_ray.sources.read import read_batches

        only = {"path": str(path), "test_path": None, "snapshot": None}
        data = self.data.model_copy(update=only)
        item = find_inputs(data)[0]
        most = min(_GROWTH * self.max_bytes, self.max_row_bytes, _MOST_ROW_BYTES)
        if item.format == "parquet" and column_bytes(item, data, most) > most:
            return _too_large(most)
        parts, size = [], 0
        for part in read_batches(item, data):
            parts.append(part)
            size += part.nbytes
            if size > most:
                return _too_large(most)
        rows = pa.concat_tables(parts, promote_options="permissive")
        rows = rows.sort_by([("order", "ascending"), ("unique_id", "ascending")])
        return self._checked(rows)

    def _checked(self, rows: pa.Table) -> pa.Table | Refusal:
        covariates = self.data.covariates
        made = {
            "unique_id": rows.column("unique_id"),
            "ds": rows.column("ds"),
            "y": _missing_is_null(rows.column("y")),
        }
        for name, role in covariates.items():
            values = rows.column(name)
            made[name] = _text(values) if role == "static" else _missing_is_null(values)
        found = check_columns(pa.table(made), covariates)
        for row, refusal in sorted(found.problems.items()):
            return Refusal(refusal.code, f"object: row {row + 1}, {refusal.detail}")
        return found.table


def _short(key: str, place: str) -> str:
    """The key itself; raises DataError for one that no store can hold."""
    longest = max(len(part.encode()) for part in key.split("/"))
    whole = f"{place.removeprefix('s3://').strip('/').partition('/')[2]}/{key}"
    held = whole.lstrip("/") if place.startswith("s3://") else key
    if longest > _LONGEST_NAME or len(held.encode()) > _LONGEST_KEY:
        raise DataError(
            f"{shown(key)} is too long; keys have at most {_LONGEST_KEY} bytes with what "
            f"stream.claims puts before them, and {_LONGEST_NAME} between slashes"
        )
    return key


def _answers(store: Store) -> bool:
    """Whether the store answers about a key that nobody has."""
    try:
        store.head(f"flts-{uuid.uuid4().hex}")
    except NotFound:
        return True
    except Denied:
        return False
    return True


def _too_large(most: int) -> Refusal:
    return Refusal(
        "claim_too_large",
        f"object: its rows need more than {most} bytes; split it, or raise stream.max_claim_bytes "
        "and ingest.buffer_bytes",
    )


def _unreadable(said: str) -> Refusal:
    return Refusal("claim_unreadable", f"object: {said}"[:_MOST_SAID])


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Trouble with the copies of objects is no fault of the object."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{error.filename or tempfile.gettempdir()}: {error.strerror}; claimed objects are "
            "copied here: make room or set TMPDIR"
        ) from None


def _copy(store: Store, info: ObjectInfo, path: Path) -> None:
    """Raises Unavailable, also where the object changed meanwhile; NotFound if it went away."""
    with path.open("wb") as stream:
        for start in range(0, info.size, _PART_BYTES):
            stream.write(store.get_range(info.key, start, min(_PART_BYTES, info.size - start)))
    now = store.head(info.key)
    if (now.size, now.etag) != (info.size, info.etag):
        raise Unavailable(f"{store.uri(info.key)}: it changed while it was read; it is read again")


def _missing_is_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Labels; a static column of numbers was read as such, and is text in a stream."""
    if not pa.types.is_floating(values.type):
        return values
    numbers = values.to_numpy()
    distinct, place = np.unique(numbers, return_inverse=True)
    texts = [None if np.isnan(value) else label(float(value)) for value in distinct]
    return pa.array(texts, pa.string()).take(pa.array(place))
