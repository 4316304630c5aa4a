"""The folder that forecasts of many series are written to.

    part-00000.parquet, ...           forecasts, one file a bucket
    _refused/part-00000.parquet, ...  series that cannot be forecast, where there are any
    _manifest.json                    what they are of, their counts, files and digests

Design choices: the manifest is written last, so a folder with one is complete; a marker is written
first, so that only a folder which this command has begun is ever written over unasked; whatever
is no forecast lies below an underscore, where readers of Parquet folders do not look.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flts_ray.errors import DataError
from flts_ray.store import NotFound, Store

MANIFEST = "_manifest.json"
UNFINISHED = "_unfinished.json"
REFUSED_FOLDER = "_refused"
ROWS_PER_GROUP = 2**18
_OURS = re.compile(rf"({REFUSED_FOLDER}/)?part-\d{{5,}}\.parquet|{MANIFEST}|{UNFINISHED}")


class OutputFolder:
    """A folder or `s3://bucket/prefix`."""

    def __init__(self, place: str) -> None:
        self._store = Store.open(place)

    @property
    def place(self) -> str:
        """Its address, the same in every process."""
        return self._store.root

    def manifest(self) -> dict[str, Any] | None:
        """What complete forecasts there are of; None where they are not complete.

        Raises DataError for a manifest of something else.
        """
        try:
            raw = json.loads(self._store.get(MANIFEST))
        except NotFound:
            return None
        except ValueError:
            raw = None
        if not isinstance(raw, dict) or "of" not in raw:
            raise self._taken(f"its {MANIFEST} is not one of forecasts")
        return raw

    def begin(self, of: str, force: bool) -> dict[str, Any] | None:
        """Make room for the forecasts that `of` names; or the manifest where they are there.

        force: write over whatever forecasts there are. Raises DataError for a folder that holds
        others, or anything else.
        """
        if not force:
            found = self.manifest()
            if found is not None and found["of"] == of:
                return found
            if found is not None:
                raise self._taken(
                    f"it holds forecasts by version {found.get('version')} of another input, "
                    "version, horizon or quantiles"
                )
        keys = [item.key for item in self._store.list()]
        if keys and not force and UNFINISHED not in keys:
            raise self._taken(f"it holds {keys[0]}" + (" and more" if len(keys) > 1 else ""))
        self._store.put(UNFINISHED, json.dumps({"of": of}).encode())
        # The manifest first: without it no reader takes the rest for complete.
        for key in sorted(keys, key=lambda key: key != MANIFEST):
            if _OURS.fullmatch(key) and key != UNFINISHED:
                self._store.delete(key)
        return None

    def write(self, bucket: int, table: pa.Table, refused: pa.Table) -> list[dict[str, Any]]:
        """Store the files of a bucket; empty tables have none. Returns them for the manifest."""
        name = f"part-{bucket:05d}.parquet"
        named = {name: table, f"{REFUSED_FOLDER}/{name}": refused}
        return [self._file(key, rows) for key, rows in named.items() if len(rows)]

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Mark it as complete."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        self._store.put(MANIFEST, text.encode())
        self._store.delete(UNFINISHED)

    def _file(self, key: str, table: pa.Table) -> dict[str, Any]:
        sink = pa.BufferOutputStream()
        # Numbers of forecasts hardly repeat: looking for repeats costs more than all the rest.
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        pq.write_table(
            table,
            sink,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            use_dictionary=texts,
        )
        data = sink.getvalue().to_pybytes()
        self._store.put(key, data)
        return {"path": key, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    def _taken(self, why: str) -> DataError:
        return DataError(
            f"--output {self.place}: {why}; choose another folder, or --force to write over "
            "forecasts in it",
            field="output",
        )
