"""Replicas before the load: the service forecasts its own request rate, beside the reactive rule.

    python -m benchmarks.scale_ahead                 # four minutes; prints what happened
    python -m benchmarks.scale_ahead --seasons 5 --season 60

A day is compressed into `--season` seconds: mostly a few requests a second, then many for a third
of it. The reactive rule alone sees one season; with `scale_ahead` the first two are counted and the
others foreseen. `RISE` is when the load steps up; times are seconds from there, negative before it.
Asked and answered is counted throughout, so a scale-down that loses a request shows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import numpy as np

from benchmarks.serve_stage import cluster
from flts_ray.config import Config, parse_config
from flts_ray.config_serve import AheadConfig, AuthConfig, ServeConfig
from flts_ray.models.base import Fitted, Forecast, Task, fit_fully
from flts_ray.prepare.arrays import Windows, windows_at
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.parity import request_of
from flts_ray.store import FolderStore
from tests.synthetic import seasonal_set

NAME = "wave"
LOW, HIGH = 4.0, 40.0
"""Requests a second."""
BUSY = 1 / 3
MODEL_S = 0.05
DATA = seasonal_set(length=300, covariates=False)
TASK = Task(6, (0.1, 0.5, 0.9))


@dataclass(frozen=True)
class Ref:
    version: str = "1"
    digest: str = "wave"


class Slow:
    """A model that waits, so that replicas are busy and cores are not."""

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted
        self.spec, self.stats = fitted.spec, fitted.stats

    def forecast(self, windows: Windows) -> Forecast:
        time.sleep(MODEL_S)
        return self._fitted.forecast(windows)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self._fitted.state()


class Source:
    """One champion for ever."""

    def current(self) -> Ref:
        return Ref()

    def challenger(self) -> None:
        return None

    def load(self, ref: Ref) -> ServedModel:
        fitted = fit_fully("seasonal_naive", DATA, TASK, {"season": 24})
        return ServedModel(NAME, ref.version, ref.digest, Slow(fitted))


@dataclass
class Season:
    """What one of them saw; seconds from its RISE."""

    answers: Counter[str] = field(default_factory=Counter)
    replicas: list[tuple[float, int, int]] = field(default_factory=list)
    """Moment, replicas that start, replicas that serve."""
    busy_s: list[float] = field(default_factory=list)
    """Latencies of the first five seconds after the rise."""

    def edges(self) -> tuple[float | None, float | None, float | None]:
        """When a single replica was left, when a second one began, when that one served."""
        alone = next((i for i, (_, _, n) in enumerate(self.replicas) if n == 1), None)
        if alone is None:
            return None, None, None
        later = self.replicas[alone:]
        begun = next((at for at, starting, n in later if starting + n > 1), None)
        served = next((at for at, _, n in later if n > 1), None)
        return later[0][0], begun, served

    def told(self, name: str) -> str:
        p95 = float(np.quantile(self.busy_s, 0.95)) * 1e3 if self.busy_s else float("nan")
        alone, begun, served = self.edges()
        return (
            f"{name:10s} a single replica from {_at(alone)}, a second begins {_at(begun)} and "
            f"serves {_at(served)}; p95 of the first 5 s {p95:.0f} ms; answers {dict(self.answers)}"
        )


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:+.1f} s"


async def season(url: str, body: bytes, length_s: float) -> Season:
    """One season of load: the quiet part, RISE, the busy part."""
    seen, begin = Season(), time.monotonic()
    rise = begin + length_s * (1 - BUSY)
    tasks: set[asyncio.Task[None]] = set()
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)

    async with httpx.AsyncClient(limits=limits, timeout=60) as http:

        async def ask(due: float) -> None:
            try:
                answer = await http.post(
                    f"{url}/v1/forecast", content=body, headers={"content-type": "application/json"}
                )
                seen.answers[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                seen.answers[type(error).__name__] += 1
            if 0 <= due - rise < 5:
                seen.busy_s.append(time.monotonic() - due)

        watching = asyncio.create_task(_watch(seen, rise))
        due = begin
        while due < begin + length_s:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(ask(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += 1 / (LOW if due < rise else HIGH)
        await asyncio.gather(*tasks)
        watching.cancel()
    return seen


async def _watch(seen: Season, rise: float) -> None:
    from flts_ray.serve.deployment import status

    while True:
        state = await asyncio.to_thread(status, NAME)
        replicas = {} if state is None else state.replicas
        moment = time.monotonic() - rise
        seen.replicas.append((moment, replicas.get("STARTING", 0), replicas.get("RUNNING", 0)))
        await asyncio.sleep(0.2)


def config(root: str, length_s: float, upscale_delay_s: float, scale_ahead: bool) -> Config:
    limits = ServeConfig(
        port=0,
        min_replicas=1,
        max_replicas=2,
        cpus_per_replica=0.5,
        target_ongoing_requests=1.0,
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=3.0,
        scale_ahead=scale_ahead,
        ahead=AheadConfig(interval_s=1.0, ahead_s=12.0, season_s=length_s),
        auth=AuthConfig(required=False),
    )
    return parse_config(
        {"name": NAME, "root": root, "data": {"path": "unused.csv"}, "serve": limits.model_dump()}
    )


def run(length_s: float, seasons: int, upscale_delay_s: float) -> list[Season]:
    """The reactive season, then those with the forecast; prints each."""
    from flts_ray.serve import deployment

    windows = windows_at(DATA, np.array([0]), np.array([250]), 48, 6)
    body = json.dumps(request_of(windows, TASK.levels)).encode()
    made = []
    with tempfile.TemporaryDirectory() as root:
        FolderStore(root)
        for ahead, count in ((False, 1), (True, seasons)):
            wanted = config(root, length_s, upscale_delay_s, ahead)
            url = deployment.deploy(wanted, "unused", partial(Source))
            deployment.wait_ready(url)
            for number in range(count):
                one = asyncio.run(season(url, body, length_s))
                made.append(one)
                print(one.told(f"ahead {number + 1}" if ahead else "reactive"), flush=True)
        deployment.undeploy(NAME)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--season", type=float, default=45.0, help="seconds")
    parser.add_argument("--seasons", type=int, default=4, help="with the forecast")
    parser.add_argument(
        "--upscale-delay", type=float, default=ServeConfig().upscale_delay_s, help="seconds"
    )
    given = parser.parse_args(arguments)
    with cluster(ServeConfig()):
        run(given.season, given.seasons, given.upscale_delay)


if __name__ == "__main__":
    main()
