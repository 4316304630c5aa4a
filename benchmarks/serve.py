"""Requests a second of one model behind several servers, on one machine, in one go.

    make bench-setup-serve                          # once: .venv-bench-serve, 2 GB
    python -m benchmarks.serve                      # about 20 minutes on two quiet cores
    python -m benchmarks.serve --seconds 1 --rounds 1 --only ours,fastapi_onnx --output try

The project's own deployment behind HAProxy is compared with an empty handler there and with what
else serves models: FastAPI, LitServe, BentoML, MLflow. In each round every server is started,
checked against the model's own forecasts, warmed up, asked in closed and open loop, and stopped;
every other round takes them in reverse, so that a slow spell of the machine hits none of them
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.serving import callers
from benchmarks.serving.servers import OWN, PEERS, SERVERS, Failed, Running, Server, cpu_s, running
from benchmarks.serving.verdict import Point, as_json, judge, markdown, point

RESULTS = Path(__file__).parent / "results"
CLIENTS, RATES = (1, 8, 32, 128), (100, 400, 1000)
WARM_CLIENTS = 16
PACKAGES = ("litserve", "bentoml", "fastapi", "uvicorn", "mlflow", "onnxruntime", "torch")
TITLES = {server.name: server.title for server in SERVERS}


@dataclass(frozen=True)
class Plan:
    """What is asked. `lead_s` of every point and the warm-up do not count."""

    clients: tuple[int, ...]
    rates: tuple[int, ...]
    seconds: float
    rounds: int
    workers: int
    processes: int

    @property
    def lead_s(self) -> float:
        return min(0.5, self.seconds / 4)


@dataclass
class Found:
    """Everything that was measured so far."""

    points: list[Point] = field(default_factory=list)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Benchmark:
    """Asks running servers."""

    def __init__(self, plan: Plan, folder: Path, pool: ProcessPoolExecutor) -> None:
        self._plan = plan
        self._folder = folder
        self._pool = pool
        self._golden: list[dict[str, Any]] = json.loads((folder / "golden.json").read_text())
        self.found = Found()

    def turn(self, server: Server, number: int) -> None:
        """All points of one server in one round."""
        plan, found = self._plan, self.found
        try:
            with running(server, self._folder, plan.workers, self._golden) as made:
                self._point(made, WARM_CLIENTS, 0, max(1.0, plan.seconds / 2), number)
                for clients in plan.clients:
                    found.points.append(self._point(made, clients, 0, plan.seconds, number))
                found.memory[server.name] = asdict(made.memory())
                for rate in plan.rates:
                    found.points.append(self._point(made, 0, rate, plan.seconds, number))
        except Failed as why:
            found.failed[server.name] = str(why)
            print(f"{server.name}: {why}", file=sys.stderr)

    def _point(self, made: Running, clients: int, rate: int, seconds: float, number: int) -> Point:
        plan, name = self._plan, made.server.name
        place = ("127.0.0.1", made.port)
        requests = [made.server.request(one["body"], f"127.0.0.1:{made.port}")
                    for one in self._golden]  # fmt: skip
        spans = (plan.lead_s, seconds)
        work = list(callers.jobs(place, requests, clients, rate, spans, plan.processes))
        asking = [self._pool.submit(callers.call, job) for job in work]
        pids, first = made.pids(), work[0].begin + plan.lead_s
        time.sleep(max(0.0, first - time.time()))
        spent = -cpu_s(pids)
        time.sleep(max(0.0, first + seconds - time.time()))
        spent += cpu_s(pids)
        seen = [one.result() for one in asking]
        errors: Counter[str] = Counter()
        for one in seen:
            errors.update(one.errors)
        latencies = [latency for one in seen for latency in one.latency_s]
        loop, load = ("open", rate) if rate else ("closed", clients)
        found = point((name, loop, load, number), latencies, errors, seconds, spent)
        print(
            f"round {number} {name:14s} {loop:6s} {load:5d} {found.per_s:8,.0f}/s p50 "
            f"{found.p50:7.1f} p99 {found.p99:7.1f} ms CPU {found.cpu_ms:6.2f} ms {dict(errors)}",
            flush=True,
        )
        return found


def measure(plan: Plan, model: str, names: Sequence[str], folder: Path) -> Found:
    """Run the plan; needs minutes."""
    command = [str(OWN), "-m", "benchmarks.serving.export", str(folder), model]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    chosen = [server for server in SERVERS if server.name in names]
    with ExitStack() as stack:
        pool = stack.enter_context(
            ProcessPoolExecutor(plan.processes, mp_context=get_context("spawn"))
        )
        bench = Benchmark(plan, folder, pool)
        for number in range(1, plan.rounds + 1):
            for server in chosen if number % 2 else chosen[::-1]:
                bench.turn(server, number)
    return bench.found


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {"cpus": os.cpu_count(), "model": model, "load_before": round(os.getloadavg()[0], 2)}


def versions() -> dict[str, str]:
    """Of the packages that serve, as far as they are installed."""
    if not PEERS.exists():
        return {}
    code = (
        "import importlib.metadata as m, json, sys; "
        "known = {d.name.lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({n: known[n] for n in sys.argv[1:] if n in known}))"
    )
    answer = subprocess.run(
        [PEERS, "-c", code, *PACKAGES], check=True, capture_output=True, text=True
    )
    return dict(json.loads(answer.stdout))


def write(found: Found, about: dict[str, Any], output: Path) -> str:
    """Both files; returns the Markdown."""
    judged = judge(found.points)
    titles = {name: title for name, title in TITLES.items() if name in about["servers"]}
    text = markdown(found.points, judged, titles, found.memory, found.failed)
    head = (
        f"# Serving: one model, {len(titles)} servers\n\n"
        f"Model `{about['model']}`, {about['plan']['workers']} processes a server, "
        f"{about['plan']['rounds']} rounds of {about['plan']['seconds']:g} s a point, "
        f"{about['machine']['cpus']} cores ({about['machine']['model']}, load "
        f"{about['machine']['load_before']} before), callers on the same cores. "
        f"`python -m benchmarks.serve` makes it again.\n\n"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(head + text)
    whole = about | {"memory_mb": found.memory, "failed": found.failed}
    whole |= as_json(found.points, judged)
    output.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    return head + text


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    names = given.only.split(",") if given.only else list(TITLES)
    if unknown := set(names) - set(TITLES):
        raise SystemExit(f"--only: unknown {sorted(unknown)}; known: {', '.join(TITLES)}")
    plan = Plan(
        given.clients, given.rates, given.seconds, given.rounds, given.workers, given.processes
    )
    about = {"model": given.model, "plan": asdict(plan), "servers": names}
    about |= {"machine": machine(), "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="flts-serve-") as made:
        found = measure(plan, given.model, names, Path(made))
    print(write(found, about, Path(given.output)))


def _parser() -> argparse.ArgumentParser:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(",") if part)

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"some of {','.join(TITLES)}")
    parser.add_argument("--model", choices=("default", "stepwise"), default="default")
    parser.add_argument("--clients", type=numbers, default=CLIENTS, help="closed loop")
    parser.add_argument("--rates", type=numbers, default=RATES, help="open loop, requests/s")
    parser.add_argument("--workers", type=int, default=2, help="replicas and worker processes")
    parser.add_argument("--processes", type=int, default=2, help="that callers run in")
    parser.add_argument("--output", default=str(RESULTS / "serve"), help="path without a suffix")
    return parser


if __name__ == "__main__":
    main()
