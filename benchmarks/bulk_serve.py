"""Bulk forecasts a second of a whole deployment, against the model alone in as many processes.

    python -m benchmarks.bulk --serve [--kind ar] [--series 10000 --series 1000] [--replicas 2]

The deployment is that of `flts serve`, in processes of its own behind its own ingress; as many
callers as replicas, each a process, post Arrow streams over loopback. Right before each round the
same processes run the model by itself, a thread each, on the same windows and the same cores, so a
ratio is that of one moment. CPU is that of every process of the deployment, Ray's daemons and the
ingress included, and of the callers. An answer whose numbers differ from the model's is an error.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.bulk import PATH, POINTS, START_US, Wire, alone, arrow_wire, load_set, served_form
from benchmarks.serving.export import LENGTH, SERIES, golden
from benchmarks.serving.servers import SERVERS, Running, cpu_s, running
from flts_ray.config_serve import ServeConfig
from flts_ray.models import artifact
from flts_ray.models.base import Fitted
from flts_ray.models.lean import load_lean
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import windows_of
from flts_ray.serve.rows import AskedSeries

EACH = 10_000
"""Series that every process forecasts in a round, in as many requests as that takes."""


@dataclass(frozen=True)
class Task:
    """What one process does in a round; `port` None: the model by itself."""

    series: int
    port: int | None


@dataclass(frozen=True)
class Spent:
    """`begin` and `end` on the clock that all processes share; `cpu_s` of this process."""

    begin: float
    end: float
    cpu_s: float


@dataclass(frozen=True)
class Round:
    """`clock_s` from the first begin to the last end; seconds of CPU by who spent them."""

    clock_s: float
    cpu_s: Mapping[str, float]

    @property
    def all_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


class Worker:
    """One process that runs the model, or calls the deployment, when told to."""

    def __init__(self, folder: Path, sizes: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, str(folder), tuple(sizes)), daemon=True
        )
        self._process.start()
        theirs.close()

    def tell(self, task: Task) -> None:
        self._pipe.send(task)

    def spent(self) -> Spent:
        """Of the task that was told. Raises EOFError where the process ended over it."""
        found: Spent = self._pipe.recv()
        return found

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def work(pipe: Connection, folder: str, sizes: Sequence[int]) -> None:
    """Answer each Task with Spent until the pipe is closed."""
    fitted = load_lean(Path(folder) / "store" / "lean")
    batch = ServeConfig().max_batch
    asked = {series: questions(fitted, series) for series in sizes}
    pipe.send(Spent(0.0, 0.0, 0.0))  # ready
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        windows, wire, want = asked[task.series]
        began, cpu = time.monotonic(), time.process_time()
        found: list[bytes] = []
        for _ in range(max(1, EACH // task.series)):
            if task.port is None:
                alone(fitted, windows, batch)
            else:
                found.append(ask(task.port, wire))
        made = Spent(began, time.monotonic(), time.process_time() - cpu)
        for raw in found:
            np.testing.assert_allclose(wire.means(raw), want, rtol=1e-4)
        pipe.send(made)


def questions(fitted: Fitted, series: int) -> tuple[Any, Wire, np.ndarray]:
    """Windows for the model, the same in a body, and the model's means."""
    y = load_set(series, POINTS).y.reshape(series, POINTS).astype(np.float32)
    ids = [f"new-{i}" for i in range(series)]
    asked = [
        AskedSeries(field="", id=name, named=True, start=START_US, y=row)
        for name, row in zip(ids, y, strict=True)
    ]
    windows = windows_of(asked, ServedModel("bulk", "1", "digest", fitted))
    want = alone(fitted, windows, ServeConfig().max_batch)
    return windows, arrow_wire(ids, y), want


def ask(port: int, wire: Wire) -> bytes:
    """The answer's body. Raises RuntimeError for anything but 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", PATH + wire.query, wire.body, {"content-type": wire.media})
        answer = connection.getresponse()
        raw = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {raw[:300]!r}")
    return raw


def prepare(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The model in `folder` as `with_ours` reads it; returns requests with their answers."""
    fitted = served_form(kind)
    digest = artifact.save(fitted, folder / "store" / "lean")
    tags = {"kind": kind, "prepared_hash": "0" * 64, "artifact_key": "lean", "digest": digest}
    (folder / "tags.json").write_text(json.dumps(tags))
    return golden(fitted, load_set(SERIES, LENGTH))[:4]


@contextmanager
def workers(folder: Path, sizes: Sequence[int], count: int) -> Iterator[list[Worker]]:
    made = [Worker(folder, sizes) for _ in range(count)]
    try:
        for one in made:
            one.spent()
        yield made
    finally:
        for one in made:
            one.close()


def together(herd: Sequence[Worker], task: Task, deployment: Running | None) -> Round:
    """Let all of them do the task at once."""
    parts = {} if deployment is None else by_part(deployment.pids())
    before = {name: cpu_s(pids) for name, pids in parts.items()}
    for one in herd:
        one.tell(task)
    spent = [one.spent() for one in herd]
    cpu = {name: cpu_s(pids) - before[name] for name, pids in parts.items()}
    clock = max(one.end for one in spent) - min(one.begin for one in spent)
    return Round(clock, cpu | {"callers": sum(one.cpu_s for one in spent)})


def by_part(pids: Iterable[int]) -> dict[str, list[int]]:
    """Processes of a deployment: replicas, the ingress and what Ray itself runs."""
    found: dict[str, list[int]] = {"replicas": [], "ingress": [], "ray": []}
    for pid in pids:
        with suppress(OSError):
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            replica, ingress = b"ServeReplica" in name, b"haproxy" in name.split(b"\0")[0].lower()
            found["replicas" if replica else "ingress" if ingress else "ray"].append(pid)
    return found


def measure_served(
    kind: str, sizes: Sequence[int], rounds: int, replicas: int
) -> list[dict[str, Any]]:
    """A row for each number of series in a request."""
    server = next(one for one in SERVERS if one.name == "ours")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flts-bulk-")))
        requests = prepare(folder, kind)
        deployed = stack.enter_context(running(server, folder, replicas, requests))
        herd = stack.enter_context(workers(folder, sizes, replicas))
        return [_row(kind, series, rounds, herd, deployed) for series in sizes]


def _row(
    kind: str, series: int, rounds: int, herd: Sequence[Worker], deployed: Running
) -> dict[str, Any]:
    raw, ours = [], []
    for _ in range(rounds + 1):
        raw.append(together(herd, Task(series, None), None))
        ours.append(together(herd, Task(series, deployed.port), deployed))
    raw, ours = raw[1:], ours[1:]  # the first round warms everything up
    total = len(herd) * series * max(1, EACH // series)
    pairs = list(zip(raw, ours, strict=True))
    return {
        "kind": kind,
        "series": series,
        "points": POINTS,
        "replicas": len(herd),
        "cores": os.cpu_count(),
        "forecasts_per_s": {
            "model": round(total / min(one.clock_s for one in raw)),
            "served": round(total / min(one.clock_s for one in ours)),
        },
        "ratio": round(median(a.clock_s / b.clock_s for a, b in pairs), 3),
        "ratio_cpu": round(median(a.all_cpu_s / b.all_cpu_s for a, b in pairs), 3),
        "cpu_us_each": {"model": round(1e6 * median(one.all_cpu_s for one in raw) / total, 1)}
        | {
            name: round(1e6 * median(one.cpu_s[name] for one in ours) / total, 1)
            for name in ours[0].cpu_s
        },
    }
