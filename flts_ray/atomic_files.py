"""Files that appear as a whole or not at all.

Design choices: bytes are written and synced under a hidden part name in the same folder; a rename
replaces what was there, a hard link refuses to; the folder is synced too, so that a name that was
reported survives a power cut.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PART = ".part-"


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes replace `path` as a whole when the block ends without an error."""
    with _part(path) as part:
        with part.open("xb") as stream:
            yield stream
            _sync(stream)
        os.replace(part, path)
    _sync_folder(path.parent)


def create_new(path: Path, data: bytes) -> bool:
    """True if this call made the file, False if it was there; of racing callers one gets True."""
    with _part(path) as part:
        with part.open("xb") as stream:
            stream.write(data)
            _sync(stream)
        try:
            # A hard link, unlike a rename, refuses a name that is taken.
            os.link(part, path)
        except FileExistsError:
            return False
    _sync_folder(path.parent)
    return True


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(PART + uuid.uuid4().hex)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
