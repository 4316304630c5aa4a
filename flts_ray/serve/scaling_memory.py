"""What scaling ahead has counted, kept where the Serve controller finds it when it starts again.

Design choices: one file on the controller's machine, because a store that hangs would stop the
controller's loop; it is written every few intervals and at least once a minute, to a draft that is
then renamed, so that a kill at any moment leaves the last whole file; nothing waits for the disk,
and a file that a power cut has damaged is told by its checksum; without a memory scaling reacts as
it does on its first day, so nothing here ever raises.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import structlog

from flts_ray.config_serve import KEEP_INTERVALS
from flts_ray.errors import FltsError
from flts_ray.local.private import private_folder
from flts_ray.serve.scaling import Counted

SAVE_S = 60.0
"""Seconds between two files, at most."""
SAVE_INTERVALS = 4
"""Intervals between two files, at most: what a kill may cost of a short clock."""
CHECKSUM, HEAD = 4, 4
MOST_BYTES = CHECKSUM + 8 * (HEAD + 2 * KEEP_INTERVALS)
"""No whole file is larger."""
_log = structlog.get_logger("flts_ray.serve")


def memory_name(name: str, store_uri: str) -> str:
    """The file of a configuration: one for each name and store."""
    return f"{name}-{zlib.crc32(store_uri.encode()):08x}.counts"


def save_s(interval_s: float) -> float:
    """Seconds between two files of counts of this length."""
    return min(SAVE_S, SAVE_INTERVALS * interval_s)


class ScalingMemory:
    """A file `file` in `folder`, by default a folder of this machine that only we can read.

    every_s: seconds between two files.
    """

    def __init__(self, file: str, folder: Path | None = None, every_s: float = SAVE_S) -> None:
        self._file = file
        self._folder = folder
        self._every_s = every_s
        self._kept: float | None = None
        self._refused = False

    def read(self) -> Counted | None:
        """What was kept last; None without it, which is told once where it is damaged."""
        try:
            path = self._path()
            if path.stat().st_size > MOST_BYTES:
                raise ValueError("larger than any that was kept")
            return _counted(path.read_bytes())
        except FileNotFoundError:
            _log.info("scaling_memory_empty", file=self._file)
        except (OSError, FltsError, ValueError) as error:
            _log.warning("scaling_memory_unreadable", file=self._file, problem=repr(error))
        return None

    def due(self, now: float) -> bool:
        """True where nothing was written for a while."""
        return self._kept is None or not 0 <= now - self._kept < self._every_s

    def keep(self, counted: Counted | None, now: float) -> None:
        """Write it, if there is anything. What the disk refuses is told once."""
        if counted is None:
            return
        self._kept = now
        try:
            path = self._path()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_bytes(_bytes(counted))
            os.replace(draft, path)
        except (OSError, FltsError) as error:
            if not self._refused:
                _log.warning("scaling_memory_not_kept", file=self._file, problem=repr(error))
            self._refused = True

    def _path(self) -> Path:
        folder = private_folder() / "scaling" if self._folder is None else self._folder
        return folder / self._file


def _bytes(counted: Counted) -> bytes:
    """A checksum, then float64: interval, end, two sums of errors, counts, ongoing."""
    head = np.array([counted.interval_s, counted.until, *counted.missed])
    body = np.concatenate([head, counted.counts, counted.ongoing]).astype("<f8").tobytes()
    return zlib.crc32(body).to_bytes(CHECKSUM, "little") + body


def _counted(raw: bytes) -> Counted:
    """Raises ValueError for anything but `_bytes`."""
    checksum, body = raw[:CHECKSUM], raw[CHECKSUM:]
    if zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum is another")
    values = np.frombuffer(body, "<f8")
    if len(values) < HEAD + 2 or len(values) % 2 or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} values are none that were kept")
    interval_s, until, missed, missed_plainly = values[:HEAD].tolist()
    counts, ongoing = np.split(values[HEAD:], 2)
    return Counted(interval_s, until, counts, ongoing, (missed, missed_plainly))
