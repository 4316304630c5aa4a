"""Every answer as a row of Parquet, written beside the traffic.

Design choices: the path of a request only appends a reference to what was answered, so its cost
does not grow with the log; one thread writes what has gathered as one new object that nobody
touches again, so a reader sees whole files and two replicas never meet; what the store does not
take stays in a bounded buffer and is tried again; rows are numbered, so that a gap in a replica's
numbers is a loss somebody can count; answers are encoded a little at a time, while they are still
in the caches of the processor and their memory can be used again.

Layout: `forecasts/<name>/date=<UTC day>/<replica>-<first row>.parquet`; columns: `log_table.py`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from flts_ray.config_serve import ForecastLogConfig
from flts_ray.errors import FltsError
from flts_ray.serve.log_entry import Entry
from flts_ray.serve.observe import Made
from flts_ray.store import Store

if TYPE_CHECKING:
    # A replica that has answered nothing yet does without the weight of Arrow.
    from flts_ray.serve.log_table import LogFile

LUMP_BYTES = 2**20
"""Forecasts, by their size in memory, that are encoded together."""
FILE_BYTES = 8 * 2**20
"""Encoded bytes after which a file is written."""
CLOSE_S = 10.0
"""How long a replica that stops tries to write what it has."""
_log = structlog.get_logger("flts_ray.serve")


@dataclass
class LogCounts:
    """Rows so far: `taken` = `written` + `lost` + those in the buffer."""

    taken: int = 0
    written: int = 0
    lost: int = 0


@dataclass
class _Ended:
    """A file for the store."""

    key: str
    body: bytes
    rows: int


@dataclass
class _Buffer:
    """What waits, oldest first; safe to share by threads."""

    most: int
    entries: deque[Entry] = field(default_factory=deque)
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, entry: Entry) -> int:
        """Append; returns how many of the oldest rows had to go for it."""
        lost = 0
        with self.lock:
            self.entries.append(entry)
            self.size += entry.size
            while self.size > self.most and len(self.entries) > 1:
                gone = self.entries.popleft()
                self.size -= gone.size
                lost += gone.rows
        return lost

    def take(self, size: int) -> list[Entry]:
        """Remove and return the oldest, about `size` bytes of them."""
        taken: list[Entry] = []
        with self.lock:
            while self.entries and size > 0:
                taken.append(self.entries.popleft())
                size -= taken[-1].size
                self.size -= taken[-1].size
        return taken


class ForecastLog:
    """Records what it observes under `forecasts/<name>/` of `store`, until `close`."""

    def __init__(
        self,
        store: Store,
        name: str,
        settings: ForecastLogConfig,
        *,
        clock: Callable[[], float] = time.time,
        replica: str | None = None,
    ) -> None:
        self.counts = LogCounts()
        self._store = store
        self._name = name
        self._clock = clock
        self._pause = settings.flush_s
        self._replica = replica or uuid.uuid4().hex[:16]
        self._buffer = _Buffer(int(settings.max_mb * 2**20))
        self._wake = threading.Event()
        self._closing = False
        self._next_row = 0
        self._file: LogFile | None = None
        self._ended: _Ended | None = None
        self._writing = threading.Lock()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="forecast-log", daemon=True)
        self._thread.start()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Answers without a forecast are not recorded."""

    def forecast(self, made: Made) -> None:
        """Note down an answer. O(1), whatever has been logged before."""
        entry = Entry(
            int(self._clock() * 1e6), made.forecast_id, made.version, made.digest, made.role,
            made.degraded, made.horizon, made.seconds, made.forecast,
        )  # fmt: skip
        self.counts.taken += entry.rows
        self.counts.lost += self._buffer.add(entry)
        if self._buffer.size >= LUMP_BYTES:
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Rows in the buffer and in files that the store has not taken yet."""
        return self.counts.taken - self.counts.written - self.counts.lost

    def flush(self) -> bool:
        """Write all that waits; False if the store did not take it, which is said once."""
        return self._work(whole=True)

    def close(self) -> int:
        """Write what waits and stop; returns the rows that the store did not take in time."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        until = time.monotonic() + CLOSE_S
        while not self.flush() and time.monotonic() < until:
            time.sleep(0.2)
        left = self.waiting
        if left:
            _log.error("forecast_log_lost", rows=left, name=self._name)
        return left

    def _run(self) -> None:
        due = time.monotonic() + self._pause
        while not self._closing:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            late = time.monotonic() >= due
            # After a refusal the buffer is still large: without the pause this would spin.
            if not self._work(whole=late) and not self._closing:
                time.sleep(min(self._pause, 1.0))
            if late:
                due = time.monotonic() + self._pause

    def _work(self, whole: bool) -> bool:
        """Encode what waits and write files that are full, or all of it."""
        with self._writing:
            try:
                self._put()
                while self._buffer.entries:
                    self._encode()
                    self._end(FILE_BYTES)
                    self._put()
                if whole:
                    self._end(0)
                    self._put()
            except FltsError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    _log.warning("forecast_log_waits", problem=self._said, rows=self.waiting)
                return False
            self._said = ""
            return True

    def _encode(self) -> None:
        """Move the oldest entries into the file."""
        from flts_ray.serve.log_table import LogFile

        entries = self._buffer.take(LUMP_BYTES)
        if self._file is None:
            self._file = LogFile(self._next_row, entries[0].made_us)
        try:
            self._file.add(entries)
        except Exception:  # noqa: BLE001 -- logged with its trace and counted
            # One answer that cannot be written must not end the log of all others.
            self.counts.lost += sum(entry.rows for entry in entries)
            _log.exception("forecast_log_refused", entries=len(entries))
            return
        self._next_row = self._file.first_row + self._file.rows

    def _end(self, size: int) -> None:
        """End the file if it has at least this size."""
        file = self._file
        if file is None or not file.rows or file.size < size:
            return
        day = datetime.fromtimestamp(file.made_us / 1e6, UTC).date()
        name = f"{self._replica}-{file.first_row:012d}.parquet"
        key = f"forecasts/{self._name}/date={day}/{name}"
        self._ended, self._file = _Ended(key, file.body(), file.rows), None

    def _put(self) -> None:
        """Write an ended file. It is kept until the store has it, because nobody knows what a lost
        answer meant and the same key can be created only once."""
        if self._ended is None:
            return
        self._store.put_new(self._ended.key, self._ended.body)
        self.counts.written += self._ended.rows
        self._ended = None
