"""How long a replica takes from its process to serving, and what it weighs.

    python -m benchmarks.replica_start --kind blend --repeat 3

Starts Ray Serve with one replica, kills its process as often as asked and looks at the one that
takes its place: seconds from the start of the process to each stage, and its resident memory
after a hundred requests. `cpu` is its processor time, which other work on the machine changes
less than the clock. The registry is a server that answers in microseconds and the model is
in the replica's cache, as after any restart on the same machine.

Stages: `ray` until our first module is imported (interpreter, Ray's worker, Ray Serve), `imports`
until the source of models is made, `look` the registry's answer, `load` the model checked,
restored and tried, `ready` until Serve counts the replica as running.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np

STAGES = ("ray", "imports", "look", "load", "ready")
HEAVY = ("torch", "pandas", "scipy", "sklearn", "prophet", "cmdstanpy", "mlflow", "matplotlib")
IMPORTED = time.time()
"""When this module came: what a replica imports first of ours is what names its source."""


@dataclass
class Timed:
    """A source of models that writes down when it was asked, one file a process."""

    folder: str
    inner: Any

    def current(self) -> Any:
        begin = time.time()
        found = self.inner.current()
        self.times = {"made": begin, "looked": time.time()}
        return found

    def challenger(self) -> None:
        """The champion alone is timed."""

    def load(self, ref: Any) -> Any:
        found = self.inner.load(ref)
        import sys

        about = {
            "imported": IMPORTED,
            **self.times,
            "loaded": time.time(),
            "heavy": sorted(set(HEAVY) & set(sys.modules)),
        }
        (Path(self.folder) / f"{os.getpid()}.json").write_text(json.dumps(about))
        return found


def timed_source(folder: str, mlflow_uri: str, store_uri: str, name: str) -> Timed:
    from flts_ray.serve.replica import registry_source

    return Timed(folder, registry_source(mlflow_uri, store_uri, name))


def make_model(kind: str, root: Path) -> dict[str, str]:
    """A small champion in a store at `root`; returns the tags of its version."""
    from flts_ray.models import artifact
    from flts_ray.models.base import Task, fit_fully
    from flts_ray.models.blend import WeightTable, blend_of
    from flts_ray.models.lean import lean_copy
    from tests.served import true_calendar
    from tests.synthetic import seasonal_set

    data = true_calendar(seasonal_set(n_series=20, length=600))
    task = Task(24, (0.025, 0.1, 0.5, 0.9, 0.975))
    quick = {"epochs": 1, "hidden": 64, "windows_per_epoch": 256, "refit_epochs": 0}
    kinds = ("ar", "gru", "lstm", "prophet") if kind == "blend" else (kind,)
    fits = [
        (one, fit_fully(one, data, task, quick if one in ("gru", "lstm") else {})) for one in kinds
    ]
    fitted = fits[0][1]
    if kind == "blend":
        rows = np.zeros(data.n_series, np.int64)
        weights = np.full((1, len(fits)), 1 / len(fits))
        fitted = blend_of(fits, WeightTable.of(weights, rows, np.zeros((24, 5))))
    digest = artifact.save(fitted, root / "full")
    tags = {"digest": digest, "kind": kind, "prepared_hash": "0" * 64, "artifact_key": "full"}
    with lean_copy(root / "full") as lean:
        if lean != root / "full":
            artifact._write({p.name: p.read_bytes() for p in lean.iterdir()}, root / "lean")
            tags |= {"lean_key": "lean", "lean_digest": artifact.digest(root / "lean")}
    return tags


@contextmanager
def registry_of(tags: dict[str, str]) -> Iterator[str]:
    """The one call of MLflow that replicas make, answered with a version of these tags."""
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    body = json.dumps({"model_version": {"name": "bench", "version": "1", "tags": listed}}).encode()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is for the result."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def process_start(pid: int) -> float:
    """Wall clock of the start of a process of this machine."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and the part of it that is its own."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    whole = int(status["VmRSS"].split()[0])
    return whole // 1024, int(status["RssAnon"].split()[0]) // 1024


def next_replica(
    folder: Path, known: set[str], name: str, timeout_s: float = 90
) -> tuple[int, float]:
    """Pid of the replica that is not `known`, and when Serve counted it as running."""
    from flts_ray.serve.deployment import status

    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        new = {path.stem for path in folder.iterdir()} - known
        state = status(name)
        if new and state is not None and state.replicas.get("RUNNING") == 1:
            return int(new.pop()), time.time()
        time.sleep(0.02)
    raise SystemExit(f"no new replica within {timeout_s:g} s: {status(name)}")


def seen(folder: Path, pid: int, ready: float) -> dict[str, Any]:
    """Seconds of each stage of a replica."""
    about = json.loads((folder / f"{pid}.json").read_text())
    ends = [about["imported"], about["made"], about["looked"], about["loaded"], ready]
    begins = [process_start(pid), *ends[:-1]]
    spent = {s: e - b for s, b, e in zip(STAGES, begins, ends, strict=True)}
    return {**spent, "total": ready - begins[0], "heavy": about["heavy"]}


def ask(url: str, count: int) -> None:
    """Requests of a series that no model knows."""
    y = (100 + 10 * np.sin(np.arange(600) * 2 * np.pi / 24)).tolist()
    known = {"event": [0.0] * 624}
    body = {"start": "2024-01-01T00:00:00Z", "y": y, "past": {"lagged": y}, "static": {"number": 1}}
    with httpx.Client(base_url=url, timeout=30) as http:
        for _ in range(count):
            answer = http.post(
                "/v1/forecast", json={**body, "known_future": known, "unique_id": "s1"}
            )
            answer.raise_for_status()


def measure(kind: str, repeat: int, trained: bool = False) -> list[dict[str, Any]]:
    from flts_ray.config import parse_config
    from flts_ray.jobs.session import ray_cluster
    from flts_ray.serve.deployment import deploy, undeploy

    with tempfile.TemporaryDirectory() as made:
        root, seen_in = Path(made) / "store", Path(made) / "times"
        root.mkdir()
        seen_in.mkdir()
        tags = make_model(kind, root)
        if trained:
            tags = {name: value for name, value in tags.items() if not name.startswith("lean")}
        config = parse_config(
            {
                "name": "bench",
                "root": str(root),
                "data": {"path": "unused.csv"},
                "serve": {"port": 0, "max_replicas": 1, "auth": {"required": False}},
            }
        )
        rows = []
        with registry_of(tags) as registry, ray_cluster(config):
            source = partial(timed_source, str(seen_in), registry, str(root), "bench")
            url = deploy(config, registry, source)
            known: set[str] = set()
            for turn in range(repeat + 1):
                pid, ready = next_replica(seen_in, known, "bench")
                known.add(str(pid))
                row = seen(seen_in, pid, ready) | {"cpu": processor_s(pid)}
                ask(url, 100)
                row["rss_mb"], row["own_mb"] = resident_mb(pid)
                if turn:  # the first one starts while Ray itself does
                    rows.append(row)
                if turn < repeat:
                    os.kill(pid, signal.SIGKILL)
            undeploy("bench")
        return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", default="blend", help="blend of four kinds, or one of them")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--trained", action="store_true", help="without an export: networks run in torch"
    )
    given = parser.parse_args(arguments)
    rows = measure(given.kind, given.repeat, given.trained)
    heavy = ", ".join(rows[0]["heavy"]) or "none"
    print(f"replica of a {given.kind} champion, seconds; heavy libraries in it: {heavy}")
    names = (*STAGES, "total", "cpu")
    print(" ".join(f"{name:>8}" for name in (*names, "rss MB", "own MB")))
    for row in rows:
        parts = " ".join(f"{row[name]:8.2f}" for name in names)
        print(f"{parts} {row['rss_mb']:8d} {row['own_mb']:8d}")
    print(f"median total {statistics.median(row['total'] for row in rows):.2f} s")


if __name__ == "__main__":
    # By name, so that a replica imports this module and does not get a copy of it.
    from benchmarks import replica_start

    replica_start.main()
