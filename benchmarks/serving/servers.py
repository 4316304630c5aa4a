"""The servers that are compared, and how each of them is started, asked and stopped.

Design choices: every server is a process of its own with all its children, known by a mark in
their environment, so that memory and processor time of proxies and daemons count too, and nothing
is left behind; one that does not start is a result with its last words.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flts_ray.local.process import free_port

ROOT = Path(__file__).parents[2]
OWN, PEERS = ROOT / ".venv" / "bin" / "python", ROOT / ".venv-bench-serve" / "bin" / "python"
MARK = "FLTS_BENCH_SERVER"
START_S, STOP_S = 180.0, 40.0
Json = dict[str, Any]


class Failed(Exception):
    """A server did not start, or answered wrongly."""


@dataclass(frozen=True)
class Server:
    """How to start and to ask one. `wrap` makes its body of a request; `read` finds the forecast
    in its answer, None where there is none."""

    name: str
    title: str
    python: Path
    module: str
    path: str
    wrap: Callable[[Json], Json]
    read: Callable[[Any], Json] | None
    arguments: tuple[str, ...] = ()

    def request(self, body: Json, place: str) -> bytes:
        """A whole HTTP request."""
        sent = json.dumps(self.wrap(body), separators=(",", ":")).encode()
        lines = f"host: {place}\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}"
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n\r\n".encode() + sent


def _same(body: Json) -> Json:
    return body


def _listed(body: Json) -> Json:
    return {"series": [body]}


def _records(body: Json) -> Json:
    return {"dataframe_records": [body]}


SERVERS = (
    Server("ours", "flts serve", OWN, "with_ours", "/v1/forecast", _same,
           lambda answer: answer["forecasts"][0]),
    Server("empty", "empty handler, same ingress", OWN, "with_ours", "/v1/forecast", _same, None,
           ("empty",)),
    Server("fastapi_onnx", "FastAPI by hand: ONNX, micro-batches", PEERS, "with_fastapi_onnx",
           "/forecast", _same, lambda answer: answer),
    Server("bentoml", "BentoML: ONNX, batches", PEERS, "with_bentoml", "/forecast", _listed,
           lambda answer: answer[0]),
    Server("litserve", "LitServe: ONNX, batches", PEERS, "with_litserve", "/predict", _same,
           lambda answer: answer),
    Server("fastapi_torch", "FastAPI: torch, no batches", PEERS, "with_fastapi_torch",
           "/forecast", _same, lambda answer: answer),
    Server("mlflow", "mlflow models serve: ONNX", PEERS, "with_mlflow", "/invocations", _records,
           lambda answer: answer["predictions"][0]),
)  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Resident sizes of all processes of a server in MB: shared pages count in every process
    (`resident`) or once (`proportional`)."""

    resident: int
    proportional: int
    processes: int


class Running:
    """A server that answers at `port`."""

    def __init__(self, server: Server, port: int, mark: str) -> None:
        self.server = server
        self.port = port
        self._mark = f"{MARK}={mark}".encode()

    def pids(self) -> list[int]:
        """Its processes, whoever their parent is."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        return found

    def memory(self) -> Memory:
        """What its processes hold now."""
        resident = proportional = 0
        pids = self.pids()
        for pid in pids:
            with suppress(OSError):
                sizes = _sizes(pid)
                resident += sizes["Rss"]
                proportional += sizes["Pss"]
        return Memory(resident // 1024, proportional // 1024, len(pids))

    def check(self, golden: list[Json]) -> None:
        """Ask every golden request once. Raises Failed for an answer that differs."""
        url = f"http://127.0.0.1:{self.port}{self.server.path}"
        with httpx.Client(timeout=30) as http:
            for one in golden:
                try:
                    answer = http.post(url, json=self.server.wrap(one["body"]))
                except httpx.HTTPError as error:
                    raise Failed(repr(error)) from error
                if answer.status_code != 200:
                    raise Failed(f"{answer.status_code} {answer.text[:300]}")
                self._check_body(answer, one)

    def _check_body(self, answer: httpx.Response, golden: Json) -> None:
        if self.server.read is None:
            return
        try:
            check_answer(self.server.read(answer.json()), golden)
        except (LookupError, TypeError, ValueError) as error:
            raise Failed(f"no forecast ({error!r}) in {answer.text[:300]}") from error


def check_answer(found: Json, golden: Json) -> None:
    """Raise Failed unless the forecast is the model's own within its tolerance."""
    shown = [found["mean"], *found["quantiles"].values()]
    apart = np.abs(np.array(shown) - np.array([golden["mean"], *golden["quantiles"]])).max()
    if not apart <= golden["tolerance"]:
        raise Failed(f"a forecast is {apart:.3g} away from the model's own")


@contextmanager
def running(server: Server, folder: Path, workers: int, golden: list[Json]) -> Iterator[Running]:
    """The server, started, warm and known to answer rightly. Raises Failed."""
    mark, port, log = uuid.uuid4().hex, free_port(), folder / f"{server.name}.log"
    about = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(server.python), "-m", f"benchmarks.serving.{server.module}"]
    command += [str(folder), str(port), str(workers), *server.arguments]
    if not server.python.exists():
        raise Failed(f"{server.python} is not there; `make bench-setup-serve` makes it")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=about, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
    made = Running(server, port, mark)
    try:
        _await(made, process, log, golden[:1])
        made.check(golden)
        yield made
    finally:
        _stop(made, process)


def _await(made: Running, process: subprocess.Popen[bytes], log: Path, golden: list[Json]) -> None:
    until, said = time.monotonic() + START_S, "no answer"
    while time.monotonic() < until:
        if process.poll() is not None:
            said = f"it ended with {process.returncode}"
            break
        try:
            made.check(golden)
            return
        except Failed as error:
            said = str(error)
            time.sleep(0.2)
    last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise Failed(f"{said}; its last words: {last[-500:]}")


def _stop(made: Running, process: subprocess.Popen[bytes]) -> None:
    """End all of it, by and by with force."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    until = time.monotonic() + 5
    while (left := made.pids()) and time.monotonic() < until:
        time.sleep(0.2)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _sizes(pid: int) -> Mapping[str, int]:
    """Resident sizes in KiB by name."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of processor time of these processes, children that ended included."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
