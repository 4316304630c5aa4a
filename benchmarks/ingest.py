"""Messages a second from the broker to durable Parquet, beside a consumer that only polls.

    python -m benchmarks.ingest                              # rates and their parts
    python -m benchmarks.ingest --scaling --flat 5000000 --output benchmarks/results/ingest.json
    python -m benchmarks.ingest --store s3

100-byte JSON samples on noida-db. The bare kafka-python consumer and one ingesting process read the
same topic in turns, each in a process of its own, and the best round of each counts. The worker
runs to the end of the topic, so its time counts until the last segment is durable. Its start
(imports, clients) is no part of the seconds, and the CPU time of a second run, which finds nothing
to do, is taken off its CPU time.
`--flat` streams that many messages through one process while they are produced, and frees what is
durable, since the broker keeps its topics in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.decode import messages
from flts_ray.config import Config, parse_config
from flts_ray.ingest.chain import read_infos, segments
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.local.broker import NoidaBroker
from flts_ray.local.s3 import S3Server
from flts_ray.store import Store
from flts_ray.streams import connect

VALUES = 1_000_000
"""Most different samples; more messages repeat them."""
WAVE = 250_000
"""Messages between two looks at how far a long run is."""
AHEAD = 750_000
"""Most messages that are produced before they are durable: the topic stays under 200 MB."""


@dataclass(frozen=True)
class Spent:
    """What reading `messages` took. `peak_mb`: largest resident size of one process."""

    messages: int
    seconds: float
    cpu_seconds: float
    peak_mb: float = 0.0

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def per_core(self) -> float:
        """Messages per second of CPU time."""
        return self.messages / self.cpu_seconds

    def as_json(self) -> dict[str, float]:
        rates = {"messages_per_s": self.rate, "messages_per_cpu_s": self.per_core}
        return {name: round(value, 3) for name, value in (asdict(self) | rates).items()}


@dataclass
class Bed:
    """A broker, a place for stores, and samples."""

    folder: Path
    broker: NoidaBroker
    root: str
    environment: dict[str, str]
    values: list[bytes] = field(repr=False)

    def config(self, topic: str, run: str) -> Config:
        return parse_config(self.raw(topic, run))

    def raw(self, topic: str, run: str) -> dict[str, Any]:
        return {
            "name": "benchmark",
            "root": f"{self.root}/{run}",
            "data": {"snapshot": "latest", "covariates": {"temperature": "past"}},
            "stream": {"brokers": self.broker.brokers, "topic": topic, "group": f"{topic}-{run}"},
            "ingest": {"status_s": 1.0},
        }

    def create(self, topic: str, partitions: int) -> None:
        admin = connect.admin(self.config(topic, "0").stream, self.broker.brokers)
        admin.create_topic(topic, partitions)
        admin.close()

    def delete(self, topic: str) -> None:
        admin = connect.admin(self.config(topic, "0").stream, self.broker.brokers)
        admin.delete_topic(topic)
        admin.close()

    def fill(self, topic: str, partitions: int, count: int) -> None:
        """Produce `count` messages in runs, as batches of producers come."""
        from confluent_kafka import Producer

        producer = Producer(
            {
                "bootstrap.servers": self.broker.brokers,
                "linger.ms": 20,
                "batch.size": 2**20,
                "queue.buffering.max.messages": 400_000,
                "log_level": 0,
            }
        )
        for at in range(count):
            value = self.values[at % len(self.values)]
            producer.produce(topic, value, partition=(at // 1000) % partitions)
            if at % 1000 == 0:
                producer.poll(0)
                if len(producer) > 200_000:
                    producer.flush()
        producer.flush()

    def bare(self, topic: str) -> Spent:
        """The bare consumer over the whole topic."""
        command = [sys.executable, "-m", "benchmarks.bare_consumer", self.broker.brokers, topic]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Spent(**json.loads(done.stdout))

    def worker(self, topic: str, run: str, count: int, processes: int = 1) -> Spent:
        """Ingesting processes over the whole topic."""
        first = self._workers(topic, run, processes)
        again = self._workers(topic, run, processes)
        return Spent(count, first.seconds, first.cpu_seconds - again.cpu_seconds, first.peak_mb)

    def parts(self, topic: str) -> dict[str, float]:
        """What the CPU time of a worker is spent on."""
        path = self._written(topic, "parts")
        command = [sys.executable, "-m", "benchmarks.ingest_parts", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    def start(self, topic: str, run: str, *options: str) -> subprocess.Popen[bytes]:
        path = self._written(topic, run)
        command = [sys.executable, "-m", "flts_ray.jobs.ingest_worker", "-c", str(path), *options]
        with (self.folder / f"{topic}-{run}{''.join(options)}.log").open("wb") as log:
            return subprocess.Popen(
                command, stderr=log, env={**os.environ, **self.environment, "OMP_NUM_THREADS": "1"}
            )

    def _written(self, topic: str, run: str) -> Path:
        path = self.folder / f"{topic}-{run}.yaml"
        path.write_text(json.dumps(self.raw(topic, run)))
        return path

    def _workers(self, topic: str, run: str, processes: int) -> Spent:
        names = [("--until-end", f"--index={i}", f"--of={processes}") for i in range(processes)]
        with ExitStack() as stack:
            running = [self.start(topic, run, *options) for options in names]
            sizes = [stack.enter_context(_sampling(process.pid)) for process in running]
            used = [os.wait4(process.pid, 0)[1:] for process in running]
            # What the kernel calls the largest size may be that of this process before `exec`.
            peak = max((size for taken in sizes for size in taken()), default=0.0)
        if any(code for code, _ in used):
            raise SystemExit(f"a worker failed; see the logs in {self.folder}")
        times = []
        for options in names:
            log = (self.folder / f"{topic}-{run}{''.join(options)}.log").read_text()
            times += [_moment(log, "ingest_worker_started"), _moment(log, "ingest_worker_ended")]
        cpu = sum(usage.ru_utime + usage.ru_stime for _, usage in used)
        return Spent(0, (max(times) - min(times)).total_seconds(), cpu, peak)


@contextmanager
def bed(store: str, different: int) -> Iterator[Bed]:
    """A broker and a store in a folder that is gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ingest-")))
        root, environment = str(folder / "store"), {}
        if store == "s3":
            server = stack.enter_context(S3Server(folder / "s3"))
            root, environment = server.uri, server.environment()
            os.environ.update(environment)
        broker = stack.enter_context(NoidaBroker(folder / "broker"))
        yield Bed(folder, broker, root, environment, messages(min(different, VALUES)))


def rates(place: Bed, count: int, partitions: int, rounds: int) -> dict[str, Any]:
    """Bare consumer and worker in turns; the ratio of each round, and its median."""
    place.create("rates", partitions)
    place.fill("rates", partitions, count)
    bare, worker = [], []
    for turn in range(rounds):
        bare.append(place.bare("rates"))
        worker.append(place.worker("rates", str(turn), count))
    shares = place.parts("rates")
    place.delete("rates")
    pairs = list(zip(bare, worker, strict=True))
    return {
        "partitions": partitions,
        "bare": [one.as_json() for one in bare],
        "worker": [one.as_json() for one in worker],
        "ratio": round(max(w.rate for w in worker) / max(b.rate for b in bare), 3),
        "ratio_of_rounds": [round(w.rate / b.rate, 3) for b, w in pairs],
        "cpu_ratio": round(statistics.median(w.per_core / b.per_core for b, w in pairs), 3),
        "cpu_us_per_message": shares,
    }


def scaling(place: Bed, count: int) -> list[dict[str, Any]]:
    """How the rate grows with partitions and processes."""
    found = []
    for partitions, processes in ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2)):
        topic = f"scaling-{partitions}-{processes}"
        place.create(topic, partitions)
        place.fill(topic, partitions, count)
        spent = place.worker(topic, "0", count, processes)
        found.append({"partitions": partitions, "processes": processes, **spent.as_json()})
        place.delete(topic)
    return found


def flat(place: Bed, count: int, partitions: int) -> dict[str, Any]:
    """One process reads while `count` messages are produced; its resident size over time."""
    place.create("flat", partitions)
    config = place.config("flat", "0")
    epoch = epoch_at(config, place.broker.brokers)
    store = Store.open(config.root)
    admin = connect.admin(config.stream, place.broker.brokers)
    process = place.start("flat", "0")
    sizes: list[tuple[int, float]] = []
    durable = produced = 0
    start = time.perf_counter()
    with _sampling(process.pid) as sampled:
        while durable < count:
            if produced < count and produced - durable < AHEAD:
                place.fill("flat", partitions, WAVE)
                produced += WAVE
            else:
                time.sleep(0.5)
            ends = {p: _frontier(store, epoch, p) for p in range(partitions)}
            admin.delete_records("flat", ends)
            durable = sum(ends.values())
            sizes += [(durable, size) for size in sampled()]
            if process.poll() is not None:
                raise SystemExit(f"the worker failed; see the logs in {place.folder}")
    seconds = time.perf_counter() - start
    process.send_signal(signal.SIGTERM)
    process.wait()
    admin.close()
    fifths = [[s for n, s in sizes if n * 5 // (durable + 1) == fifth] for fifth in range(5)]
    return {
        "messages": durable,
        "seconds": round(seconds, 1),
        "peak_mb_by_fifth": [round(max(part), 1) if part else None for part in fifths],
    }


def _frontier(store: Store, epoch: str, partition: int) -> int:
    keys = segments(store, "flat", epoch, partition)[-1:]
    return read_infos(store, keys)[0].end if keys else 0


@contextmanager
def _sampling(pid: int) -> Iterator[Any]:
    """Resident size of a process, in MB, twenty times a second; the call takes what there is."""
    found: list[float] = []
    over = threading.Event()
    page_mb = os.sysconf("SC_PAGE_SIZE") / 2**20

    def look() -> None:
        while not over.wait(0.05):
            try:
                found.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page_mb)
            except (OSError, IndexError):
                return  # it has ended

    def take() -> list[float]:
        taken = found.copy()
        del found[: len(taken)]
        return taken

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield take
    finally:
        over.set()
        thread.join()


def _moment(log: str, event: str) -> datetime:
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    found = [line["timestamp"] for line in lines if line["event"] == event]
    return datetime.fromisoformat(found[-1])


def show(console: Console, report: dict[str, Any]) -> None:
    """The numbers as tables."""
    table = Table(title=f"{report['messages']:,} messages of 100 bytes, store: {report['store']}")
    for head in ("", "messages/s", "messages/CPU s", "peak MB"):
        table.add_column(head, justify="right")
    lines = [("bare", one) for one in report["rates"]["bare"]]
    lines += [("worker", one) for one in report["rates"]["worker"]]
    for one in report.get("scaling", ()):
        lines.append((f"{one['partitions']} partitions, {one['processes']} processes", one))
    for name, one in lines:
        numbers = (one["messages_per_s"], one["messages_per_cpu_s"], one["peak_mb"])
        table.add_row(name, *(f"{number:,.0f}" for number in numbers))
    console.print(table)
    console.print(f"ratio {report['rates']['ratio']}, of CPU time {report['rates']['cpu_ratio']}")
    console.print("CPU us per message:", report["rates"]["cpu_us_per_message"])
    if "flat" in report:
        console.print(report["flat"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", choices=("folder", "s3"), default="folder")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--flat", type=int, default=0, metavar="MESSAGES")
    parser.add_argument("--output", type=Path, help="write all numbers as JSON")
    given = parser.parse_args(arguments)
    report: dict[str, Any] = {"messages": given.messages, "store": given.store}
    report["cores"] = os.cpu_count()
    with bed(given.store, max(given.messages, given.flat)) as place:
        report["rates"] = rates(place, given.messages, given.partitions, given.rounds)
        if given.scaling:
            report["scaling"] = scaling(place, given.messages // 2)
        if given.flat:
            report["flat"] = flat(place, given.flat, given.partitions)
    show(Console(), report)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
