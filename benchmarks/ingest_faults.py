"""Ingestion under fire: how many messages are lost or stored twice.

    python -m benchmarks.ingest_faults                            # 200 kills, 1,000,000 messages
    python -m benchmarks.ingest_faults --broker tansu --kills 50 --messages 100000

Workers write to an S3 server through a proxy that is slow, busy (503), cuts answers off or goes
away. They are killed with SIGKILL from outside and at chosen points from inside, stopped and woken
behind a successor, and doubled; the broker is restarted (noida-db cleanly, Tansu with SIGKILL). In
the end the store is compared with what the broker holds, offset by offset.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from flts_ray.errors import Conflict, Unavailable
from flts_ray.ingest.faults import POINTS
from flts_ray.local.broker import Broker, NoidaBroker, TansuBroker
from flts_ray.local.s3 import S3Server
from flts_ray.streams.connect import consumer, producer
from tests.faulty_proxy import MODES, FaultyProxy
from tests.ingesting import Ingesting, freeze, message, wake

TOPIC = "load"
BUCKET = "faults"
BLOCK = 2000
LIFE_S = 6.0
SETTINGS = {
    "segment_rows": 4000,
    "segment_age_s": 1.0,
    "buffer_bytes": 4 * 2**20,
    "poll_records": 2000,
    "status_s": 2.0,
}
CRASHES = tuple(point for point in POINTS if point != "compacting")
NUMBER = re.compile(rb'(?:"y": |json )(\d+)')


@dataclass
class Result:
    """What the run did and what it found. `lost`, `repeated`, `wrong`: offsets of the broker's log
    that are not stored, stored more than once, or with another content. `forgotten`: messages
    that the broker acknowledged to the producer and does not hold."""

    broker: str
    seconds: float = 0.0
    messages: int = 0
    segments: int = 0
    kills: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    forgotten: int = 0
    problems: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    store_faults: int = 0

    @property
    def ok(self) -> bool:
        return self.lost + self.repeated + self.wrong == 0 and not self.problems


class Fire:
    """The workers, and everything that happens to them."""

    def __init__(
        self, site: Ingesting, broker: Broker, proxy: FaultyProxy, options: argparse.Namespace
    ) -> None:
        self.site, self.broker, self.proxy = site, broker, proxy
        self.rng = random.Random(options.seed)
        self.seen: Counter[str] = Counter()
        self.slots: list[list[subprocess.Popen[bytes]]] = [[] for _ in range(options.workers)]
        self.asleep: list[tuple[float, subprocess.Popen[bytes]]] = []
        self.born: dict[int, float] = {}
        self.life_s, self.restarts = options.life, options.restarts
        self.kills = 0

    def burn(self, kills: int, producing: multiprocessing.process.BaseProcess) -> None:
        """Until so many processes were killed and all messages are produced."""
        while self.kills < kills or producing.is_alive():
            for index in range(len(self.slots)):
                self._keep_alive(index)
            self._wake_sleepers(time.monotonic())
            fault = self.rng.choices(
                [self._kill, self._freeze, self._double, self._store, self._restart_broker],
                [60, 6, 6, 25, self.restarts],
            )[0]
            if self.kills < kills or fault in (self._store, self._restart_broker):
                fault()
            time.sleep(self.rng.uniform(0.0, 1.0))

    def finish(self) -> list[int]:
        """Faults end; every worker drains, then one more of each goes to the end of the log."""
        self.proxy.mode = "pass"
        self._wake_sleepers(float("inf"))
        running = [process for slot in self.slots for process in slot]
        for process in running:
            process.terminate()
        codes = [process.wait(120) for process in running]
        self.kills += sum(code == -9 for code in codes)
        count = len(self.slots)
        last = [self.site.start("--index", str(i), "--of", str(count)) for i in range(count)]
        return [process.wait(600) for process in last]

    def __enter__(self) -> Fire:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind, whatever happened."""
        for process in [p for slot in self.slots for p in slot] + [p for _, p in self.asleep]:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _keep_alive(self, index: int) -> None:
        slot = self.slots[index]
        for process in [process for process in slot if process.poll() is not None]:
            slot.remove(process)
            name = "killed" if process.returncode == -9 else f"exit {process.returncode}"
            self.kills += process.returncode == -9
            self.seen[name] += 1
        if not slot:
            slot.append(self._start(index))

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        crash = ""
        if self.rng.random() < 0.4:
            crash = f"{self.rng.choice(CRASHES)}:{self.rng.randint(1, 8)}"
            self.seen["ordered to crash"] += 1
        place = ("--index", str(index), "--of", str(len(self.slots)))
        process = self.site.start(*place, crash=crash, until_end=False)
        self.born[process.pid] = time.monotonic()
        return process

    def _any(self) -> tuple[list[subprocess.Popen[bytes]], subprocess.Popen[bytes]]:
        slot = self.rng.choice([slot for slot in self.slots if slot])
        return slot, self.rng.choice(slot)

    def _kill(self) -> None:
        """Most have begun to work by then; some have not."""
        process = self._any()[1]
        if time.monotonic() - self.born[process.pid] > self.rng.uniform(0, self.life_s):
            process.kill()

    def _freeze(self) -> None:
        slot, process = self._any()
        freeze(process)
        slot.remove(process)
        self.seen["zombies"] += 1
        self.asleep.append((time.monotonic() + self.rng.uniform(2, 8), process))

    def _wake_sleepers(self, now: float) -> None:
        for item in [item for item in self.asleep if item[0] <= now]:
            self.asleep.remove(item)
            wake(item[1])
            self.rng.choice(self.slots).append(item[1])

    def _double(self) -> None:
        index = self.rng.randrange(len(self.slots))
        if len(self.slots[index]) < 2:
            self.slots[index].append(self._start(index))
            self.seen["second owners"] += 1

    def _store(self) -> None:
        mode = self.rng.choice(("pass", "pass", "pass", *MODES))
        self.proxy.mode = mode
        self.seen[f"store {mode}"] += 1

    def _restart_broker(self) -> None:
        if isinstance(self.broker, TansuBroker):
            self.broker.kill()
        else:
            self.broker.stop()
        time.sleep(self.rng.uniform(0, 2))
        limit = time.monotonic() + 30
        while not self.broker.alive:
            try:
                self.broker.start()
            except Conflict:  # the old process is still ending
                if time.monotonic() > limit:
                    raise
                time.sleep(0.5)
        self.seen["broker restarts"] += 1


def produce(site: Ingesting, messages: int, seconds: float) -> None:
    """All messages, spread over the time; a block that is not acknowledged is sent again."""
    begun = time.monotonic()
    for begin in range(0, messages, BLOCK):
        while not _produced(site, begin, min(begin + BLOCK, messages)):
            time.sleep(0.5)
        time.sleep(max(0.0, begun + seconds * begin / messages - time.monotonic()))
    # What the broker acknowledged and forgot is made up for by more of the same.
    while (missing := messages - _in_log(site)) > 0:
        _produced(site, messages, messages + missing)


def _in_log(site: Ingesting) -> int:
    reader = consumer(site.config.stream, site.brokers, group="benchmark")
    try:
        bounds = reader.bounds(range(site.partitions))
    finally:
        reader.close()
    return sum(end - start for start, end in bounds.values())


def _produced(site: Ingesting, begin: int, end: int) -> bool:
    try:
        sender = producer(site.config.stream, site.brokers)
    except Unavailable:
        return False
    try:
        for number in range(begin, end):
            sender.send(TOPIC, message(number), partition=number // 7 % site.partitions)
        sender.flush(30)
    except Unavailable:
        return False
    finally:
        with suppress(Unavailable):
            sender.close()
    return True


def in_broker(site: Ingesting, partition: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and numbers of all messages that the broker holds of a partition."""
    reader = consumer(site.config.stream, site.brokers, group="benchmark")
    try:
        start, end = reader.bounds([partition])[partition]
        reader.assign([partition])
        reader.seek(partition, start)
        offsets: list[int] = []
        numbers: list[int] = []
        while reader.position(partition) < end:
            for records in reader.poll(1.0, 50_000):
                offsets += records.offsets
                numbers += [_number(value or b"") for value in records.values]
    finally:
        reader.close()
    return np.array(offsets), np.array(numbers)


def _number(value: bytes) -> int:
    found = NUMBER.search(value)
    return int(found[1]) if found else -1


def in_store(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset, index and number of every stored row."""
    loads = table["y"].to_numpy(zero_copy_only=False).copy()
    bad = np.flatnonzero(np.isnan(loads))
    raw = table["raw"].take(pa.array(bad)).to_pylist()
    loads[bad] = [_number(value or b"") for value in raw]
    return table["offset"].to_numpy(), table["index"].to_numpy(), loads.astype(np.int64)


def compare(site: Ingesting, result: Result, messages: int) -> None:
    """Fill in what is lost, repeated or wrong."""
    seen = np.zeros(messages, bool)
    for partition, table in enumerate(site.tables(("offset", "index", "y", "raw"))):
        offsets, numbers = in_broker(site, partition)
        seen[numbers[numbers < messages]] = True
        stored, index, loads = in_store(table)
        first = index == 0
        pairs = stored * 2 + index
        result.messages += len(offsets)
        result.lost += len(np.setdiff1d(offsets, stored[first]))
        result.repeated += len(pairs) - len(np.unique(pairs))
        known = dict(zip(offsets.tolist(), numbers.tolist(), strict=True))
        rows = zip(stored.tolist(), loads.tolist(), strict=True)
        result.wrong += sum(known.get(offset) != load for offset, load in rows)
        pair = (numbers % 70 == 0) & (numbers % 50 != 0)
        result.wrong += abs(int(pair.sum()) - int((~first).sum()))
    result.forgotten = int((~seen).sum())


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """One run."""
    result = Result(options.broker)
    with ExitStack() as stack:
        server = stack.enter_context(S3Server(folder / "s3", bucket=BUCKET))
        proxy = stack.enter_context(FaultyProxy(server.port))
        broker = stack.enter_context(_broker(options.broker, folder, server))
        behind = {**server.environment(), "AWS_ENDPOINT_URL": proxy.url}
        site = Ingesting(
            folder,
            broker.brokers,
            TOPIC,
            options.partitions,
            f"s3://{BUCKET}/t",
            SETTINGS,
            behind,
            idempotence=not isinstance(broker, TansuBroker),
        )
        site.create()
        begun = time.monotonic()
        spread = options.kills * options.life / 4
        context = multiprocessing.get_context("spawn")
        sender = context.Process(target=produce, args=(site, options.messages, spread))
        sender.start()
        stack.callback(sender.kill)
        fire = stack.enter_context(Fire(site, broker, proxy, options))
        fire.burn(options.kills, sender)
        codes = fire.finish()
        result.seconds = round(time.monotonic() - begun, 1)
        result.kills, result.faults = fire.kills, dict(fire.seen)
        result.store_faults = proxy.faults
        result.problems = [f"a last worker ended with {code}" for code in codes if code]
        with _environment(server.environment()):
            compare(site, result, options.messages)
            report = site.verified()
            result.problems += [str(problem) for problem in report.problems]
            result.segments = report.segments
    return result


def _broker(kind: str, folder: Path, server: S3Server) -> Broker:
    if kind == "noida":
        return NoidaBroker(folder / "broker")
    server.administration().make_bucket("tansu")
    return TansuBroker(folder / "broker", server.environment(), "tansu")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--broker", choices=("noida", "tansu"), default="noida")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--life", type=float, default=LIFE_S, help="a worker's most seconds before it may be hit"
    )
    parser.add_argument(
        "--restarts", type=float, default=3.0, help="broker restarts in a hundred faults; 0: none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept after the run; default: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = measure(options, folder)
    told = json.dumps(asdict(result), indent=2)
    if options.output:
        options.output.write_text(told + "\n")
    print(told)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
