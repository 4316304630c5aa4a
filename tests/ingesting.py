"""Ingesting processes on a real broker, and what they leave in the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from flts_ray.config import Config, parse_config
from flts_ray.ingest.chain import segments
from flts_ray.ingest.compact import compact
from flts_ray.ingest.segment import read_table
from flts_ray.ingest.verify import VerifyReport, verify_store
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.store import Store
from flts_ray.streams.connect import admin, consumer, producer

COLUMNS = ("offset", "index", "unique_id", "ds", "y", "error", "raw")
SMALL = {"segment_rows": 500, "poll_records": 200, "segment_age_s": 0.5, "status_s": 0.5}


def message(number: int) -> bytes:
    """Sample `number`; every fiftieth is no JSON, every seventieth an array of two samples."""
    if number % 50 == 0:
        return b"{not json %d" % number
    stamp = 1_700_000_000 + 60 * (number // 10)
    one = {"unique_id": f"s{number % 10}", "ds": stamp, "y": float(number)}
    return json.dumps([one, {**one, "unique_id": "extra"}] if number % 70 == 0 else one).encode()


@dataclass(frozen=True)
class Ingesting:
    """One topic, one store and the processes between them, all files in `folder`."""

    folder: Path
    brokers: str
    topic: str
    partitions: int = 2
    root: str = ""
    ingest: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    environment: Mapping[str, str] = field(default_factory=dict)
    idempotence: bool = True

    @property
    def raw(self) -> dict[str, Any]:
        return {
            "name": "t",
            "root": self.root or str(self.folder / "store"),
            "data": {"snapshot": "latest"},
            "stream": {
                "brokers": self.brokers,
                "topic": self.topic,
                "group": self.topic,
                "idempotence": self.idempotence,
            },
            "ingest": dict(self.ingest),
        }

    @property
    def config(self) -> Config:
        return parse_config(self.raw)

    def create(self) -> None:
        """Make the topic."""
        clerk = admin(self.config.stream, self.brokers)
        clerk.create_topic(self.topic, self.partitions)
        clerk.close()

    def produce(self, begin: int, end: int, timeout_s: float = 60) -> None:
        """Messages `begin` to `end`, dealt out over the partitions, acknowledged."""
        sender = producer(self.config.stream, self.brokers)
        for number in range(begin, end):
            sender.send(self.topic, message(number), partition=number % self.partitions)
        sender.flush(timeout_s)
        sender.close()

    def start(
        self, *options: str, crash: str = "", until_end: bool = True, log: str = "worker.log"
    ) -> subprocess.Popen[bytes]:
        """One worker; its output is appended to `log`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "flts.yaml"
        path.write_text(json.dumps(self.raw))
        command = [sys.executable, "-m", "flts_ray.jobs.ingest_worker", "-c", str(path), *options]
        if until_end:
            command.append("--until-end")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        environment |= {"FLTS_CRASH": crash}
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def run(self, *options: str, crash: str = "", timeout_s: float = 60) -> int:
        """One worker to its end; returns its exit code."""
        return self.start(*options, crash=crash).wait(timeout_s)

    def log(self, name: str = "worker.log") -> str:
        return (self.folder / name).read_text()

    def events(self, name: str = "worker.log") -> list[dict[str, Any]]:
        """Events of a worker's log."""
        lines = self.log(name).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def stored(self) -> int:
        """How many segments there are now."""
        folder = self.folder / "store" / "raw"
        return len(list(folder.rglob("*.parquet")))

    def tables(self, columns: Sequence[str] = COLUMNS) -> list[pa.Table]:
        """Everything that is stored, a table a partition."""
        store, epoch = Store.open(self.config.root), epoch_at(self.config, self.brokers)
        found = []
        for partition in range(self.partitions):
            keys = segments(store, self.topic, epoch, partition)
            tables = [read_table(store, key, list(columns)) for key in keys]
            found.append(pa.concat_tables(tables).combine_chunks() if tables else None)
        return found

    def compacted(self) -> list[tuple[str, str]]:
        """Path and SHA-256 of every file of the table that is made of it."""
        store, epoch = Store.open(self.config.root), epoch_at(self.config, self.brokers)
        return [(one.path, one.sha256) for one in compact(store, self.topic, epoch).files]

    def verified(self) -> VerifyReport:
        """The store, checked down to the rows against the committed offsets."""
        config = self.config
        reader = consumer(config.stream, self.brokers, group=self.topic)
        known = reader.committed(range(self.partitions))
        reader.close()
        epoch = epoch_at(config, self.brokers)
        committed = {p: found[0] for p, found in known.items() if found is not None}
        return verify_store(Store.open(config.root), self.topic, epoch, committed, deep=True)


def expected(begin: int, end: int, partitions: int, partition: int) -> list[tuple[int, float]]:
    """(offset, load) of every good row that messages `begin` to `end` make in one partition."""
    rows: list[tuple[int, float]] = []
    numbers = range(begin + (partition - begin) % partitions, end, partitions)
    for offset, number in enumerate(numbers):
        if number % 50:
            rows += [(offset, float(number))] * (2 if number % 70 == 0 else 1)
    return rows


def wait_until(condition: Any, timeout_s: float = 30, what: str = "it") -> None:
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, f"{what} never happened"
        time.sleep(0.01)


def freeze(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)


def wake(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
