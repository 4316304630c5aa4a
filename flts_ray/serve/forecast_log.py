"""Every answer as a row of Parquet, written beside the traffic.

Design choices: the path of a request only appends a reference to what was answered, so its cost
does not grow with the log; one thread writes what has gathered as one new object that nobody
touches again, so a reader sees whole files and two replicas never meet; what the store does not
take stays in a bounded buffer and is tried again; rows are numbered, so that a gap in a replica's
numbers is a loss somebody can count.

Layout: `forecasts/<name>/date=<UTC day>/<replica>-<first row>.parquet`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from flts_ray.config_serve import ForecastLogConfig
from flts_ray.errors import FltsError
from flts_ray.models.base import Forecast
from flts_ray.serve.observe import Made, Role
from flts_ray.store import Store

FILE_BYTES = 16 * 2**20
"""Forecasts, by their size in memory, that go into one file."""
CLOSE_S = 10.0
"""How long a replica that stops tries to write what it has."""
STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "forecast_id": pa.string(),
        "unique_id": pa.string(),
        "origin": STAMP,
        "made_at": STAMP,
        "version": pa.string(),
        "digest": pa.string(),
        "role": pa.dictionary(pa.int8(), pa.string()),
        "degraded": pa.bool_(),
        "horizon": pa.int32(),
        "mean": pa.list_(pa.float32()),
        "levels": pa.list_(pa.float64()),
        "quantiles": pa.list_(pa.float32()),
        "latency_ms": pa.float32(),
    }
)
"""A row is one series of one answer. `quantiles` holds all levels of the first step, then those of
the second; `row` counts the rows of one replica from 0."""
_log = structlog.get_logger("flts_ray.serve")


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer as it waits: without the history that the model saw, which may be long."""

    made_us: int
    forecast_id: str
    version: str
    digest: str
    role: Role
    degraded: bool
    horizon: int
    seconds: float
    forecast: Forecast

    @property
    def size(self) -> int:
        return int(self.forecast.quantiles.nbytes + self.forecast.mean.nbytes)

    @property
    def rows(self) -> int:
        return len(self.forecast.ids)


@dataclass
class LogCounts:
    """Rows so far: `taken` = `written` + `lost` + those in the buffer."""

    taken: int = 0
    written: int = 0
    lost: int = 0


@dataclass
class _File:
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
        self._stuck: _File | None = None
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
        if self._buffer.size >= FILE_BYTES:
            self._wake.set()

    @property
    def waiting(self) -> int:
        """Rows in the buffer."""
        return self.counts.taken - self.counts.written - self.counts.lost

    def flush(self) -> bool:
        """Write all that waits; False if the store did not take it, which is said once."""
        with self._writing:
            try:
                while self._stuck is not None or self._buffer.entries:
                    self._write_one()
            except FltsError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    _log.warning("forecast_log_waits", problem=self._said, rows=self.waiting)
                return False
            self._said = ""
            return True

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
        while not self._closing:
            self._wake.wait(self._pause)
            self._wake.clear()
            # After a refusal the buffer is still large: without the pause this would spin.
            if not self.flush() and not self._closing:
                time.sleep(min(self._pause, 1.0))

    def _write_one(self) -> None:
        """One object; it is kept until the store has it, because nobody knows what a lost answer
        meant and the same key can be created only once."""
        if self._stuck is None:
            entries = self._buffer.take(FILE_BYTES)
            try:
                self._stuck = self._file(entries)
            except Exception:  # noqa: BLE001 -- logged with its trace and counted
                # One answer that cannot be written must not end the log of all others.
                self.counts.lost += sum(entry.rows for entry in entries)
                _log.exception("forecast_log_refused", entries=len(entries))
                return
        self._store.put_new(self._stuck.key, self._stuck.body)
        self.counts.written += self._stuck.rows
        self._stuck = None

    def _file(self, entries: Sequence[Entry]) -> _File:
        first = self._next_row
        table = table_of(entries, first)
        self._next_row += table.num_rows
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=1)
        day = datetime.fromtimestamp(entries[0].made_us / 1e6, UTC).date()
        key = f"forecasts/{self._name}/date={day}/{self._replica}-{first:012d}.parquet"
        return _File(key, sink.getvalue().to_pybytes(), table.num_rows)


def table_of(entries: Sequence[Entry], first_row: int) -> pa.Table:
    """Entries as rows of `SCHEMA`, one a series; `first_row` is the number of the first one."""
    counts = [entry.rows for entry in entries]
    total = sum(counts)

    def spread(values: Sequence[object]) -> np.ndarray:
        return np.repeat(np.array(values, dtype=object), counts)

    def lists(parts: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
        """parts: [rows, width] each."""
        widths = np.repeat([part.shape[1] for part in parts], counts)
        borders = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
        flat = np.concatenate([part.ravel() for part in parts])
        return pa.ListArray.from_arrays(pa.array(borders), pa.array(flat, type=kind))

    forecasts = [entry.forecast for entry in entries]
    steps = [entry.horizon for entry in entries]
    mean = [f.mean[:, :h].astype(np.float32) for f, h in zip(forecasts, steps, strict=True)]
    quantiles = [
        f.quantiles[:, :h].astype(np.float32).reshape(len(f.ids), h * len(f.levels))
        for f, h in zip(forecasts, steps, strict=True)
    ]
    levels = [np.tile(np.asarray(f.levels), (len(f.ids), 1)) for f in forecasts]
    columns = {
        "row": np.arange(first_row, first_row + total),
        "forecast_id": spread([entry.forecast_id for entry in entries]),
        "unique_id": [name for f in forecasts for name in f.ids],
        "origin": pa.array(np.concatenate([f.origin_us for f in forecasts]), STAMP),
        "made_at": pa.array(np.repeat([entry.made_us for entry in entries], counts), STAMP),
        "version": spread([entry.version for entry in entries]),
        "digest": spread([entry.digest for entry in entries]),
        "role": pa.array(spread([entry.role for entry in entries])).dictionary_encode().cast(
            SCHEMA.field("role").type
        ),
        "degraded": np.repeat([entry.degraded for entry in entries], counts),
        "horizon": np.repeat(np.array(steps, np.int32), counts),
        "mean": lists(mean, pa.float32()),
        "levels": lists(levels, pa.float64()),
        "quantiles": lists(quantiles, pa.float32()),
        "latency_ms": np.repeat(np.array([e.seconds * 1e3 for e in entries], np.float32), counts),
    }  # fmt: skip
    return pa.table(columns, schema=SCHEMA)


def read_log(store: Store, name: str, day: str | None = None) -> pa.Table:
    """Everything recorded for a model, or that of one UTC day (YYYY-MM-DD), file by file."""
    prefix = f"forecasts/{name}" + (f"/date={day}" if day else "")
    tables = [
        pq.read_table(pa.BufferReader(store.get(found.key)))
        for found in store.list(prefix)
        if found.key.endswith(".parquet")
    ]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
