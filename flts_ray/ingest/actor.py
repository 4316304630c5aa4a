"""One ingestion actor: a worker in a thread of a process that Ray starts again whenever it ends.

Design choices: all state lies in the store, so a restart is an ordinary start and a killed process
needs no farewell; an error that a new start can mend (a service that is away, or one nobody
foresaw) ends the process, because a fresh one holds no half-broken client, and the new process
waits as `restarts.py` says; an error in configuration or data stays, and is told, because no
restart mends it; nothing that goes wrong while this is noted or told keeps a process from ending
or from telling more; the class knows nothing of Ray, `supervisor.py` makes an actor of it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from flts_ray.errors import FltsError, Unavailable
from flts_ray.ingest.fleet import ActorStatus, Fleet, Forwarding, Ingesting, State
from flts_ray.ingest.restarts import forget, note_failure, note_start, starts_key
from flts_ray.ingest.worker_status import Stuck, WorkerStatus
from flts_ray.store import Store

REPORT_S = 2.0
FORWARD_S = 20.0
"""Longest wait for dead letters at the end; what is left goes with the next start."""
STORE_AWAY_S = 10.0
"""Seconds before a start whose own history cannot be read, because the store is away."""
_log = structlog.get_logger("flts_ray.ingest")


Meter = Callable[[Mapping[str, Any]], None]
"""Takes a worker's status, as JSON data, now and then."""


class IngestActor:
    """Starts working when it is made. `end` ends the process; tests put in something milder."""

    def __init__(
        self,
        fleet: Fleet,
        index: int,
        meter: Callable[[Fleet, int], Meter] | None = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        os.environ.update(fleet.environment)
        self._fleet, self._index, self._end = fleet, index, end
        self._meter = meter(fleet, index) if meter is not None else None
        self._log = _log.bind(name=fleet.config.name, index=index)
        self._stop = threading.Event()
        self._over = threading.Event()
        self._state: State = "starting"
        self._starts = 0
        self._error = ""
        self._worker: Ingesting | None = None
        self._forwarder: Forwarding | None = None
        threading.Thread(target=self._work, name="ingest", daemon=True).start()
        threading.Thread(target=self._report, name="report", daemon=True).start()

    def ping(self) -> int:
        """The process id, at once."""
        return os.getpid()

    def status(self) -> dict[str, Any]:
        """An `ActorStatus` as JSON data."""
        worker = self._worker
        draining = self._stop.is_set() and self._state == "running"
        return ActorStatus(
            index=self._index,
            of=self._fleet.size,
            state="draining" if draining else self._state,
            starts=self._starts,
            error=self._error,
            pid=os.getpid(),
            worker=None if worker is None else self._with_letters(worker.snapshot()),
        ).as_json()

    def drain(self, timeout_s: float) -> dict[str, Any]:
        """Write what is buffered, commit, stop. Returns the last status, "done" if it was done."""
        self._stop.set()
        self._over.wait(timeout_s)
        return self.status()

    def _work(self) -> None:
        try:
            self._start_after_a_while()
            if not self._stop.is_set():
                self._ingest()
            self._state = "done"
        except Exception as error:  # noqa: BLE001 - the last line before the end of the process
            if _is_final(error):
                self._state, self._error = "failed", str(error)
                self._log.error("ingest_failed", error=str(error))
            else:
                self._give_up(error)
        finally:
            self._over.set()

    def _start_after_a_while(self) -> None:
        key, store = self._place()
        try:
            starts, wait_s = note_start(store, key, time.time())
            self._starts, self._error = len(starts.at), starts.error
        except FltsError as error:
            self._error, wait_s = str(error), STORE_AWAY_S
        if wait_s:
            self._state = "waiting"
            self._log.warning("ingest_waits", seconds=wait_s, starts=self._starts)
            self._stop.wait(wait_s)

    def _ingest(self) -> None:
        self._state = "starting"
        fleet = self._fleet
        worker = fleet.open_worker(fleet.config, fleet.brokers, self._index, fleet.size)
        try:
            self._worker = worker
            self._open_forwarder(worker.snapshot().epoch)
            self._state, self._error = "running", ""
            self._log.info("ingest_started", pid=os.getpid(), starts=self._starts)
            worker.run(self._stop, until_end=fleet.until_end)
            self._forward(worker.snapshot(), close=True)
        finally:
            worker.close()
        key, store = self._place()
        forget(store, key)
        self._log.info("ingest_ended", until_end=fleet.until_end)

    def _open_forwarder(self, epoch: str) -> None:
        fleet = self._fleet
        if fleet.open_forwarder is not None:
            self._forwarder = fleet.open_forwarder(fleet.config, fleet.brokers, epoch)

    def _forward(self, status: WorkerStatus, close: bool = False) -> None:
        """Have dead letters forwarded as far as they are durable."""
        if self._forwarder is None:
            return
        for partition, one in status.partitions.items():
            if one.frontier is not None:
                self._forwarder.forward(partition, one.frontier)
        if close and not self._forwarder.close(FORWARD_S):
            self._log.warning("dead_letters_left", sent=self._forwarder.forwarded)

    def _give_up(self, error: Exception) -> None:
        """End the process, so that Ray starts another."""
        told = str(error) if isinstance(error, FltsError) else repr(error)
        self._state, self._error = "restarting", told
        # The trace of an error nobody foresaw; one that is meant for people needs none.
        unforeseen = None if isinstance(error, FltsError) else error
        self._log.error("ingest_gives_up", error=told, exc_info=unforeseen)
        try:
            key, store = self._place()
            note_failure(store, key, told)
        except FltsError as away:
            self._log.error("ingest_failure_not_noted", error=str(away))
        finally:
            self._end(1)

    def _place(self) -> tuple[str, Store]:
        config = self._fleet.config
        key = starts_key(config.stream.topic, config.name, self._index)
        return key, Store.open(config.root)

    def _report(self) -> None:
        over = False
        while not over:
            over = self._over.wait(REPORT_S)
            worker = self._worker
            try:
                if worker is not None:
                    self._tell(worker.snapshot(), over)
            except Exception as error:  # noqa: BLE001 - what fails once may work the next time
                self._log.error("ingest_report_failed", error=repr(error), exc_info=error)

    def _tell(self, status: WorkerStatus, over: bool) -> None:
        if not over:
            self._forward(status)
            self._note_progress(status)
        if self._meter is not None:
            self._meter(self._with_letters(status))

    def _note_progress(self, status: WorkerStatus) -> None:
        """Whoever stored something is in no circle of crashes: its next restart is free again."""
        if not self._starts or not status.totals["segments"]:
            return
        key, store = self._place()
        try:
            forget(store, key)
        except FltsError as error:
            self._log.warning("ingest_starts_kept", error=str(error))
        else:
            self._starts = 0

    def _with_letters(self, status: WorkerStatus) -> dict[str, Any]:
        found = plain(status)
        found["totals"]["forwarded"] = self._forwarder.forwarded if self._forwarder else 0
        return found


def _is_final(error: Exception) -> bool:
    """Whether a new process would only meet the same again."""
    if isinstance(error, Stuck):
        return True
    return isinstance(error, FltsError) and not isinstance(error, Unavailable)


def plain(status: WorkerStatus) -> dict[str, Any]:
    """A worker's status as JSON data: partitions become text keys."""
    found: dict[str, Any] = json.loads(status.as_json())
    return found
