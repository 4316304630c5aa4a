"""Addresses of what a command serves, left where other commands find them.

Design choices: one file a model name, because two models may share a root; it is locked while
its author lives, so that what a killed process left behind is recognised without trusting process
numbers, which are reused.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def announced(folder: Path, name: str) -> Mapping[str, str]:
    """Addresses by service that a running command announced for the model; empty if none."""
    try:
        with _path(folder, name).open(encoding="utf-8") as stream:
            if _can_lock(stream.fileno()):
                return {}
            found: dict[str, str] = json.load(stream)["services"]
    except FileNotFoundError:
        return {}
    return found


@contextmanager
def announce(folder: Path, name: str, services: Mapping[str, str]) -> Iterator[None]:
    """Tell other commands the addresses of what runs here, until the block ends."""
    path = _path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"pid": os.getpid(), "services": dict(services)}
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".", delete=False, encoding="utf-8"
    ) as draft:
        fcntl.flock(draft.fileno(), fcntl.LOCK_EX)
        json.dump(record, draft)
        draft.flush()
        os.replace(draft.name, path)
        try:
            yield
        finally:
            if path.exists() and path.stat().st_ino == os.fstat(draft.fileno()).st_ino:
                path.unlink()


def _path(folder: Path, name: str) -> Path:
    return folder / "run" / f"{name}.json"


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
