"""Removal of table files that no reader needs any more.

Design choices: conservative: a file goes only if none of the newest `keep` entries names it and
it is old, which is looked at again right before it goes, because a compactor may be about to name
it; what a compactor spilled goes by its age alone, in whichever life of the topic it died; an entry
that was the newest a short while ago counts as one of them, because a reader may have begun with
it; log entries are small and lead back to the offsets of old models, so they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from pyarrow import fs

from flts_ray.errors import ConfigError, Unavailable
from flts_ray.ingest.compact import SPILL
from flts_ray.sources.table_log import (
    LogEntry,
    entries_upto,
    entry_key,
    newest_entry,
    table_folder,
)
from flts_ray.store import Store

KEEP = 10
OLDER_THAN = timedelta(days=1)
"""Longer than any compaction takes, and any reader needs the snapshot it began with."""


def sweep(
    store: Store,
    topic: str,
    epoch: str,
    now: datetime,
    *,
    keep: int = KEEP,
    older_than: timedelta = OLDER_THAN,
) -> list[str]:
    """Delete what crashed compactors left and files of snapshots before the newest `keep`.

    `now` with a time zone; what was written more than `older_than` before is old.
    Returns the keys. Raises ConfigError for keep < 1: the newest snapshot always stays.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}; at least the newest snapshot has to stay: 1 or more")
    folder = table_folder(topic, epoch)
    found = list(_old_files(store, folder, now - older_than))
    # Read after the listing: what was named meanwhile is known.
    newest = newest_entry(store, topic, epoch)
    kept = _kept(store, newest, keep, set(found)) if newest else ()
    named = {f"{folder}/{file.path}" for entry in kept for file in entry.files}
    unnamed = [key for key in found if key.startswith(f"{folder}/date=") and key not in named]
    spilled = list(_old_files(store, f"{SPILL}/{topic}", now - older_than))
    gone = [key for key in (*unnamed, *spilled) if _delete_old(store, key, now - older_than)]
    _remove_empty(store, {key.rpartition("/")[0] for key in gone if key.startswith(f"{SPILL}/")})
    return gone


def _kept(store: Store, newest: LogEntry, keep: int, old: Set[str]) -> Iterator[LogEntry]:
    """The newest entries, and those that the next one replaced a short while ago."""
    entries = entries_upto(store, newest)
    yield from islice(entries, keep)
    for entry in entries:
        if entry_key(entry.topic, entry.epoch, entry.number + 1) in old:
            return
        yield entry


def _old_files(store: Store, folder: str, before: datetime) -> Iterator[str]:
    selector = fs.FileSelector(_path(store, folder), recursive=True, allow_not_found=True)
    for info in _infos(store, selector):
        if _is_old(info, before):
            yield info.path.removeprefix(_path(store, "")).lstrip("/")


def _delete_old(store: Store, key: str, before: datetime) -> bool:
    (info,) = _infos(store, [_path(store, key)])
    if not _is_old(info, before):
        return False
    store.delete(key)
    return True


def _remove_empty(store: Store, folders: Set[str]) -> None:
    # Only on this machine is a folder more than the beginning of a key.
    if not isinstance(store.filesystem()[0], fs.LocalFileSystem):
        return
    for folder in folders:
        # One that is not empty stays, as it should.
        with suppress(OSError):
            Path(_path(store, folder)).rmdir()


def _is_old(info: fs.FileInfo, before: datetime) -> bool:
    # A store that tells no time tells no age either.
    written = info.mtime
    return info.type == fs.FileType.File and written is not None and _aware(written) < before


def _aware(written: datetime) -> datetime:
    return written if written.tzinfo else written.replace(tzinfo=UTC)


def _path(store: Store, key: str) -> str:
    base = store.filesystem()[1]
    return f"{base}/{key}" if key else base


def _infos(store: Store, which: fs.FileSelector | list[str]) -> list[fs.FileInfo]:
    try:
        return list(store.filesystem()[0].get_file_info(which))
    except OSError as error:
        raise Unavailable(f"{store.root}: cannot be listed: {error}; check the store") from None
