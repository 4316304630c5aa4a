"""A prepared set on disk: open it, and load all or some of its series into arrays.

Design choices: a file is checked against the SHA-256 in the manifest before it is parsed, so a
damaged or foreign set is refused and never half loaded; wanted series cost only their buckets;
arrays are filled bucket by bucket, so loading needs one bucket more than the result; what it costs
to say that a name is unknown grows neither with the names nor with a large set.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flts_ray.errors import ArtifactError, DataError
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, turns
from flts_ray.prepare.buckets import bucket_of
from flts_ray.prepare.kernel import STATIC_PREFIX, STATS
from flts_ray.prepare.manifest import MANIFEST_NAME, QUARANTINE_NAME, Manifest, set_folder
from flts_ray.store import Store

COMPARED = 5000
"""Series in a set whose names are all compared with an unknown one."""
_NAMED = 20


@dataclass(frozen=True)
class Census:
    """Every series of a set, without its rows.

    test_us: int64 [series], UTC microseconds, where the test span of each begins.
    """

    stats: SeriesStats
    test_us: np.ndarray


@dataclass(frozen=True)
class PreparedSet:
    """A complete prepared set under a root. Cheap to hold and to send: no rows inside."""

    root: str
    manifest: Manifest

    @property
    def contract(self) -> Contract:
        return self.manifest.contract

    @property
    def hash(self) -> str:
        return self.manifest.hash

    @property
    def location(self) -> str:
        """Address of the set's folder."""
        return f"{self.root.rstrip('/')}/{set_folder(self.manifest.hash)}"

    def ids(self) -> tuple[str, ...]:
        """Every series of the set, in the order of `arrays()`."""
        return _ids([self._read(name, ["unique_id"]) for name in self._files("series")])

    def quarantine(self) -> pa.Table:
        """Series that were left out: unique_id, code, reason, rows; sorted by unique_id."""
        return self._read(QUARANTINE_NAME)

    def arrays(self, ids: Sequence[str] | None = None) -> SeriesArrays:
        """The wanted series in the wanted order, all of them for None.

        Raises DataError for a series that is not in the set (with its quarantine reason or the
        nearest name), ArtifactError for a missing or changed file.
        """
        if ids is None:
            return self._load(self._files("series"))
        wanted = {_file("series", bucket_of(name, self.manifest.buckets)) for name in ids}
        loaded = self._load([name for name in self._files("series") if name in wanted])
        position = {name: i for i, name in enumerate(loaded.ids)}
        unknown = [name for name in ids if name not in position]
        if unknown:
            raise self._unknown(unknown)
        return loaded.take([position[name] for name in ids])

    def sample(self, most: int) -> SeriesArrays:
        """All series, or of a set with more than `most` so many of them, always the same.

        Buckets go by one hash of the names and who is taken within them by another, so the sample
        is as good as drawn by chance however names are made.
        """
        if self.manifest.series <= most:
            return self.arrays()
        files = self._files("series")
        enough = -(-most * len(files) // self.manifest.series)
        while (found := self._load(files[:enough])).n_series < most:
            enough += 1  # buckets are of unequal size
        drawn = np.argsort(turns(found.ids), kind="stable")[:most]
        return found.take(np.sort(drawn))

    def census(self, first: Sequence[str]) -> Census:
        """What is known of each series of the set: of these first, then of all others."""
        tables = [self._read(name) for name in self._files("series")]
        stats = SeriesStats(_ids(tables), *(_column(tables, s, np.float64) for s in STATS))
        start, valid_end = (_column(tables, s, np.int64) for s in ("start_us", "valid_end"))
        begin = np.array([stats.row_of[name] for name in first], dtype=np.int64)
        others = np.ones(len(start), dtype=bool)
        others[begin] = False
        order = np.concatenate([begin, np.flatnonzero(others)])
        test_us = steps_after(start[order], valid_end[order], self.contract)
        return Census(stats.take(order), test_us)

    def buckets(self) -> tuple[str, ...]:
        """Names of the parts of the set; together they hold every series once."""
        return tuple(self._files("series"))

    def bucket(self, name: str) -> SeriesArrays:
        """The series of one part. Raises ArtifactError for a missing or changed file."""
        return self._load([name])

    def is_whole(self) -> bool:
        """True when every file of the manifest is there (contents are checked on reading)."""
        folder = set_folder(self.manifest.hash)
        sizes = {found.key: found.size for found in Store.open(self.root).list(folder)}
        wanted = {f"{folder}/{file['path']}": file["size"] for file in self.manifest.files}
        return all(sizes.get(key) == size for key, size in wanted.items())

    def _files(self, kind: str) -> list[str]:
        names = (file["path"] for file in self.manifest.files)
        return sorted(name for name in names if name.startswith(f"{kind}/"))

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        expected = {file["path"]: file["sha256"] for file in self.manifest.files}[name]
        key = f"{set_folder(self.manifest.hash)}/{name}"
        store = Store.open(self.root)
        if not store.exists(key):
            raise ArtifactError(f"{self.location}/{name}: missing; run `flts prepare` again")
        data = store.get(key)
        if hashlib.sha256(data).hexdigest() != expected:
            raise ArtifactError(
                f"{self.location}/{name}: changed since it was written (SHA-256 differs); run "
                "`flts prepare --force`"
            )
        return pq.read_table(pa.BufferReader(data), columns=columns)

    def _load(self, names: Sequence[str]) -> SeriesArrays:
        tables = [self._read(name) for name in names]
        lengths = _column(tables, "rows", np.int64)
        arrays = self._empty(tables, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        begin, contract = 0, self.contract
        # Names and stamps of rows follow from the series, and are larger than the values.
        columns = ["y", "observed", *contract.future, *contract.past]
        for name in names:
            table = self._read(name.replace("series/", "data/", 1), columns)
            _fill(arrays, table, slice(begin, begin + len(table)))
            begin += len(table)
        if begin != lengths.sum():
            raise ArtifactError(
                f"{self.location}: {begin} rows, the series need {lengths.sum()}; run "
                "`flts prepare --force`"
            )
        return arrays

    def _empty(self, tables: Sequence[pa.Table], offsets: np.ndarray) -> SeriesArrays:
        """Arrays with everything a series has once, and rows still to be filled."""
        contract, rows = self.contract, int(offsets[-1])
        static = [_static(tables, name, contract) for name in contract.static]
        n_series = len(offsets) - 1
        return SeriesArrays(
            contract=contract,
            stats=SeriesStats(_ids(tables), *(_column(tables, s, np.float64) for s in STATS)),
            offsets=offsets,
            start_us=_column(tables, "start_us", np.int64),
            train_end=_column(tables, "train_end", np.int64),
            valid_end=_column(tables, "valid_end", np.int64),
            y=np.empty(rows, dtype=np.float64),
            observed=np.empty(rows, dtype=np.bool_),
            future=np.empty((rows, len(contract.future)), dtype=np.float32),
            past=np.empty((rows, len(contract.past)), dtype=np.float32),
            static=np.stack(static, axis=1) if static else np.zeros((n_series, 0), np.float32),
        )

    def _unknown(self, names: Sequence[str]) -> DataError:
        named = names[:_NAMED]
        found = self.quarantine()
        chosen = found.filter(pc.is_in(found["unique_id"], pa.array(named, pa.string())))
        left_out = {row["unique_id"]: row["reason"] for row in chosen.to_pylist()}
        problems = [
            f"{name}: in quarantine, {left_out[name]}" if name in left_out else f"{name}: unknown"
            for name in named
        ]
        first = next((at for at, name in enumerate(named) if name not in left_out), None)
        if first is not None:
            problems[first] += self._nearest(named[first])
        return DataError(
            f"unique_id: {len(names)} series not in the prepared set of {self.manifest.series}; "
            "ask for one of its series",
            field="unique_id",
            problems=problems,
        )

    def _nearest(self, name: str) -> str:
        if self.manifest.series > COMPARED:
            return ""
        near = difflib.get_close_matches(name, self.ids(), 1)
        return f"; did you mean {near[0]}?" if near else ""


def open_prepared(root: str, set_hash: str) -> PreparedSet:
    """The prepared set with this hash (or its first 16 digits). Raises ArtifactError."""
    found = find_prepared(root, set_hash)
    if found is None:
        raise ArtifactError(
            f"{root}/{set_folder(set_hash)}: no complete prepared set there; run `flts prepare`"
        )
    return found


def find_prepared(root: str, set_hash: str) -> PreparedSet | None:
    """The prepared set if its manifest was written. Raises ArtifactError if it is damaged."""
    store = Store.open(root)
    key = f"{set_folder(set_hash)}/{MANIFEST_NAME}"
    if not store.exists(key):
        return None
    manifest = Manifest.from_json(store.get(key), where=f"{root}/{key}")
    if not manifest.hash.startswith(set_hash):
        raise ArtifactError(f"{root}/{key}: belongs to {manifest.hash}, not {set_hash}")
    return PreparedSet(store.root, manifest)


def _file(kind: str, bucket: int) -> str:
    return f"{kind}/bucket-{bucket:05d}.parquet"


def _ids(tables: Sequence[pa.Table]) -> tuple[str, ...]:
    return tuple(name for table in tables for name in table["unique_id"].to_pylist())


def _column(tables: Sequence[pa.Table], name: str, dtype: type[np.generic]) -> np.ndarray:
    parts = [table[name].to_numpy() for table in tables]
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def _static(tables: Sequence[pa.Table], name: str, contract: Contract) -> np.ndarray:
    """Numbers (0 where missing) or codes of sorted categories, float32 [series]."""
    values: list[Any] = []
    for table in tables:
        raw = table[f"{STATIC_PREFIX}{name}"].to_pylist()
        if name in contract.labels:
            values += [contract.code_of(name, value) for value in raw]
        else:
            values += [0.0 if value is None else float(value) for value in raw]
    return np.asarray(values, dtype=np.float32)


def _fill(arrays: SeriesArrays, table: pa.Table, rows: slice) -> None:
    contract = arrays.contract
    arrays.y[rows] = table["y"].to_numpy()
    arrays.observed[rows] = table["observed"].to_numpy()
    for i, name in enumerate(contract.future):
        arrays.future[rows, i] = table[name].to_numpy()
    for i, name in enumerate(contract.past):
        arrays.past[rows, i] = table[name].to_numpy()
