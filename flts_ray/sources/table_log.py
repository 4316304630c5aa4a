"""The log of a topic's table: numbered entries, each a whole state of the table.

Design choices: an entry is created, never changed, and its number can be taken only once, so two
compactors at once need no lock; it names every file of the table, so whoever read one entry works
on that state whatever is written meanwhile, and the segments that it added, so all entries up to
it lead back to every offset; it holds the hash of the entry before it, so none can be altered
unnoticed. The lives of a topic (epochs) are numbered in the order in which their first table was
made; readers that cannot ask the broker take the last of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flts_ray.errors import ArtifactError, Conflict, DataError
from flts_ray.store import Exists, NotFound, Store

TABLE = "table"
ATTEMPTS = 20
"""Times that others may be quicker before it is an error."""
_REMEDY = "restore the object from a backup"


@dataclass(frozen=True)
class TableFile:
    """One file of the table; `path` is below the table's folder, `date` the UTC date of its rows.

    columns: each covariate it has, `number` or `text` by the values it holds.
    """

    path: str
    date: str
    rows: int
    size: int
    sha256: str
    columns: dict[str, str]


@dataclass(frozen=True)
class HeldSegment:
    """A segment that an entry added: its key in the store, its offsets [begin, end), its rows.

    `lost`: how many of its offsets the broker no longer had when they were read.
    """

    key: str
    partition: int
    begin: int
    end: int
    rows: int
    bad_rows: int
    lost: int
    checksum: str


@dataclass(frozen=True)
class LogEntry:
    """A state of the table, also called snapshot.

    previous: SHA-256 of the entry before; None for the first. ranges: half-open range of offsets
    of each partition. lost: offsets inside of them that the broker no longer had, where there are
    any. segments: those added since the entry before. files: all files of the table, by path.
    """

    number: int
    previous: str | None
    topic: str
    epoch: str
    ranges: dict[int, tuple[int, int]]
    lost: dict[int, int]
    segments: tuple[HeldSegment, ...]
    files: tuple[TableFile, ...]
    created_by_version: str

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return sum(file.rows for file in self.files)

    def to_json(self) -> bytes:
        """Canonical bytes: the same entry gives the same object."""
        raw = asdict(self)
        return (json.dumps(raw, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Names the entry, as the next one does."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> LogEntry:
        """Raises ArtifactError if it is damaged."""
        try:
            raw: dict[str, Any] = json.loads(data)
            ranges = {int(p): (int(b), int(e)) for p, (b, e) in raw["ranges"].items()}
            return cls(**{
                **raw,
                "ranges": dict(sorted(ranges.items())),
                "lost": {int(p): int(count) for p, count in raw["lost"].items()},
                "segments": tuple(HeldSegment(**one) for one in raw["segments"]),
                "files": tuple(TableFile(**one) for one in raw["files"]),
            })  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{where}: no readable entry of a table's log ({error!r}); {_REMEDY}"
            ) from None


def table_folder(topic: str, epoch: str) -> str:
    """Folder of one life of a topic: its log and its files."""
    return f"{TABLE}/{topic}/{epoch}"


def entry_key(topic: str, epoch: str, number: int) -> str:
    """Key of an entry; keys sort by number."""
    return f"{_log_folder(topic, epoch)}/{number:020d}.json"


def newest_entry(store: Store, topic: str, epoch: str) -> LogEntry | None:
    """The state of now; None if there is no table yet."""
    keys = [item.key for item in store.list(_log_folder(topic, epoch))]
    return _read(store, keys[-1]) if keys else None


def read_entry(store: Store, topic: str, epoch: str, number: int) -> LogEntry:
    """One entry. Raises NotFound."""
    return _read(store, entry_key(topic, epoch, number))


def entries_upto(store: Store, entry: LogEntry) -> Iterator[LogEntry]:
    """The entry and all before it, newest first. Raises ArtifactError if one was altered."""
    yield entry
    while entry.previous is not None:
        key = entry_key(entry.topic, entry.epoch, entry.number - 1)
        data = store.get(key)
        if hashlib.sha256(data).hexdigest() != entry.previous:
            raise ArtifactError(
                f"{store.uri(key)}: altered since entry {entry.number} was written; {_REMEDY}"
            )
        entry = LogEntry.from_json(data, store.uri(key))
        yield entry


def append_entry(store: Store, entry: LogEntry) -> bool:
    """Store an entry; False if another one has its number.

    Raises Unavailable if nobody knows whether it was stored; doing everything again is harmless.
    """
    if entry.number == 1:
        _register(store, entry.topic, entry.epoch)
    data = entry.to_json()
    key = entry_key(entry.topic, entry.epoch, entry.number)
    # A client may repeat a write whose answer was lost; then the winner too is told Exists.
    return not isinstance(store.put_new(key, data), Exists) or store.get(key) == data


def current_epoch(store: Store, topic: str) -> str | None:
    """The life of the topic whose first table was made last; None if it has no table."""
    for epoch in reversed(_epochs(store, topic)):
        if store.list(_log_folder(topic, epoch)):
            return epoch
    return None


def _log_folder(topic: str, epoch: str) -> str:
    return f"{table_folder(topic, epoch)}/log"


def _epochs(store: Store, topic: str) -> list[str]:
    found = []
    for item in store.list(f"{TABLE}/{topic}/epochs"):
        try:
            found.append(str(json.loads(store.get(item.key))["epoch"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{store.uri(item.key)}: names no epoch ({error!r}); {_REMEDY}"
            ) from None
    return found


def _register(store: Store, topic: str, epoch: str) -> None:
    folder = f"{TABLE}/{topic}/epochs"
    for _ in range(ATTEMPTS):
        if epoch in _epochs(store, topic):
            return
        # Not their count: one that was removed leaves a number that is not the last.
        number = _last_number(store, folder) + 1
        data = (json.dumps({"epoch": epoch}) + "\n").encode()
        store.put_new(f"{folder}/{number:020d}.json", data)
    raise Conflict(
        f"{store.uri(folder)}: {ATTEMPTS} times another number was taken before epoch {epoch} was "
        "registered; repeat, and if that does not help look at what is stored there"
    )


def _last_number(store: Store, folder: str) -> int:
    keys = [item.key for item in store.list(folder)]
    if not keys:
        return 0
    name = keys[-1].rpartition("/")[2].removesuffix(".json")
    if not (name.isascii() and name.isdecimal()):
        raise ArtifactError(f"{store.uri(keys[-1])}: its name is no number; move it away")
    return int(name)


def _read(store: Store, key: str) -> LogEntry:
    return LogEntry.from_json(store.get(key), store.uri(key))


def no_table(root: str, topic: str) -> DataError:
    """What to do where nothing was ingested."""
    return NotFound(
        f"{root}: there is no table of topic {topic}; `flts ingest run` stores the topic, then "
        "`flts ingest compact` makes its table",
        field="data.snapshot",
    )
