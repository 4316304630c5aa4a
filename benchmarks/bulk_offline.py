"""`flts forecast --input s3://... --output s3://...` beside the model alone, on the same cores.

    python -m benchmarks.bulk --offline [--kind ar] [--series 10000 --series 50000 ...]

The command runs as users run it, in a process of its own with a Ray that it starts, on an S3
server on this machine that holds model, input and output, whose processor time is told apart. What
the command takes is start-up and a price a series: two sizes tell them apart, and the last row has
the difference of the two largest. The model alone forecasts as many windows in as many processes
as cores, a thread each, right before each command.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.bulk import HORIZON, POINTS, START_US, load_set
from benchmarks.bulk_serve import EACH, Task, prepare, together, workers
from benchmarks.replica_start import registry_of
from benchmarks.serving.servers import MARK, OWN, ROOT, SERVERS, Running, cpu_s
from flts_ray.local.s3 import S3Server
from flts_ray.store import Store

FILES = 8
SAMPLE_S = 0.25
HOUR_US = 3_600_000_000


@dataclass
class Watched:
    """What a command and all that it started took; looked at now and then while it runs."""

    running: Running
    peak_mb: int = 0
    cpu: dict[int, float] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            for pid in self.running.pids():
                self.cpu[pid] = max(self.cpu.get(pid, 0.0), own_cpu_s(pid))
            self.peak_mb = max(self.peak_mb, self.running.memory().proportional)

    def stop(self) -> None:
        self._done.set()


def own_cpu_s(pid: int) -> float:
    """Seconds of processor time of a process, 0 where it is gone; without its children's."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextmanager
def s3_store(folder: Path) -> Iterator[Running]:
    """A server whose address and keys are in this process's environment meanwhile."""
    before, mark = dict(os.environ), uuid.uuid4().hex
    try:
        os.environ[MARK] = mark
        with S3Server(folder, "bench") as server:
            del os.environ[MARK]
            os.environ.update(server.environment())
            yield Running(SERVERS[0], server.port, mark)
    finally:
        os.environ.clear()
        os.environ.update(before)


def put_model(folder: Path, store: Store) -> None:
    """The artifact of `prepare` to where its version's tags say."""
    for path in (folder / "store" / "lean").iterdir():
        store.put(f"lean/{path.name}", path.read_bytes())


def put_input(store: Store, series: int) -> None:
    """Histories as rows of Parquet files, a part of the series in each."""
    y = load_set(series, POINTS).y.reshape(series, POINTS).astype(np.float32)
    ds = pa.array(START_US + HOUR_US * np.arange(POINTS)).cast(pa.timestamp("us", "UTC"))
    for number, part in enumerate(np.array_split(np.arange(series), FILES)):
        ids = pa.array([f"new-{i}" for i in part])
        rows = pa.array(np.repeat(np.arange(len(part), dtype=np.int32), POINTS))
        steps = pa.array(np.tile(np.arange(POINTS, dtype=np.int32), len(part)))
        table = pa.table(
            {"unique_id": ids.take(rows), "ds": ds.take(steps), "y": y[part].ravel()}
        )  # fmt: skip
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        store.put(f"{series}/part-{number}.parquet", sink.getvalue().to_pybytes())


def command_line(folder: Path, tracking: str, series: int) -> list[str]:
    """The command, with a configuration in `folder`."""
    config = {
        "name": "bench",
        "root": "s3://bench/store",
        "data": {"path": f"s3://bench/input/{series}/", "id": "unique_id", "frequency": "1h"},
        "mlflow": {"uri": tracking},
        "prepare": {"engine": "ray"},
        "ray": {"num_cpus": os.cpu_count()},
    }
    path = folder / f"{series}.yaml"
    path.write_text(json.dumps(config))
    places = ["--input", f"s3://bench/input/{series}/", "--output", f"s3://bench/out/{series}/"]
    return [str(OWN.parent / "flts"), "forecast", "--config", str(path), *places, "--force"]


def run_command(command: Sequence[str], folder: Path, store: Running) -> dict[str, float]:
    """Seconds of the clock and of CPU, its own and the store's, and its most memory."""
    mark = uuid.uuid4().hex
    about = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    watched = Watched(Running(SERVERS[0], 0, mark))
    thread = threading.Thread(target=watched.watch)
    pids = store.pids()
    store_s, begin = cpu_s(pids), time.monotonic()
    thread.start()
    try:
        done = subprocess.run(command, cwd=folder, env=about, capture_output=True, text=True)
        clock = time.monotonic() - begin
    finally:
        watched.stop()
        thread.join()
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {
        "clock_s": round(clock, 1),
        "cpu_s": round(sum(watched.cpu.values()), 1),
        "store_cpu_s": round(cpu_s(pids) - store_s, 1),
        "peak_mb": watched.peak_mb,
    }


def check(store: Store, series: int) -> None:
    """Raise SystemExit unless every series has its forecasts."""
    manifest = json.loads(store.get(f"{series}/_manifest.json"))
    table = pq.read_table(pa.BufferReader(store.get(f"{series}/{manifest['files'][0]['path']}")))
    finite = pc.all(pc.is_finite(table["mean"])).as_py()
    if (manifest["series"], manifest["rows"]) != (series, series * HORIZON) or not finite:
        raise SystemExit(f"{manifest['series']} of {series} series were forecast")


def measure_offline(kind: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each size, and one for what the largest has more than the next."""
    cores = os.cpu_count() or 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flts-bulk-")))
        prepare(folder, kind)
        server = stack.enter_context(s3_store(folder / "s3"))
        put_model(folder, Store.open("s3://bench/store"))
        tags = json.loads((folder / "tags.json").read_text())
        tracking = stack.enter_context(registry_of(tags))
        herd = stack.enter_context(workers(folder, [EACH], cores))
        rows = []
        for series in sorted(sizes):
            put_input(Store.open("s3://bench/input"), series)
            together(herd, Task(EACH, None), None)
            alone = together(herd, Task(EACH, None), None)
            command = command_line(folder, tracking, series)
            took = run_command(command, folder, server)
            check(Store.open("s3://bench/out"), series)
            rows.append(_row(kind, series, took, cores * EACH / alone.clock_s,
                             1e6 * alone.all_cpu_s / (cores * EACH)))  # fmt: skip
    return [*rows, _steady(rows)] if len(rows) > 1 else rows


def _row(
    kind: str, series: int, took: Mapping[str, float], model_per_s: float, model_us: float
) -> dict[str, Any]:
    # A busy machine may hold the smaller run up by more than the larger one has to do.
    per_s = round(series / took["clock_s"]) if took["clock_s"] > 0 else None
    return {
        "kind": kind,
        "series": series,
        **took,
        "forecasts_per_s": {
            "model": round(model_per_s),
            "command": per_s,
        },
        "cpu_us_each": {
            "model": round(model_us, 1),
            "command": round(1e6 * took["cpu_s"] / series, 1),
        },
    }


def _steady(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The work itself: start-up cancels out of the difference of two sizes."""
    few, many = rows[-2:]
    names = ("clock_s", "cpu_s", "store_cpu_s", "peak_mb")
    more = {name: round(many[name] - few[name], 1) for name in names}
    models = [row["forecasts_per_s"]["model"] for row in rows]
    us = [row["cpu_us_each"]["model"] for row in rows]
    return _row(
        f"{many['kind']}, steady", many["series"] - few["series"], more, max(models), min(us)
    )
