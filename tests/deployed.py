"""A deployment of simple models: where they are, who calls it, what its replicas are."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Forecast, Task, fit_fully
from flts_ray.prepare.arrays import Windows, windows_at
from flts_ray.serve import deployment
from flts_ray.serve.challenger import Dropped
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.parity import request_of
from flts_ray.store import FolderStore
from tests.served import LEVELS, KnownSet, true_calendar
from tests.synthetic import seasonal_set

TASK = Task(6, LEVELS)
DATA = true_calendar(seasonal_set(length=300))


@dataclass(frozen=True)
class FolderRef:
    version: str
    digest: str
    folder: str


class Slow:
    """A model that takes its time."""

    def __init__(self, fitted: Fitted) -> None:
        self._fitted = fitted
        self.spec, self.stats = fitted.spec, fitted.stats

    def forecast(self, windows: Windows) -> Forecast:
        time.sleep(0.05)
        return self._fitted.forecast(windows)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self._fitted.state()


@dataclass(frozen=True)
class FolderSource:
    """The champion that `champion.json` in a folder names, and its challenger.

    Models whose version begins with `slow` take their time.
    """

    root: Path

    def current(self) -> FolderRef | None:
        return self._named("champion.json")

    def challenger(self) -> FolderRef | None:
        return self._named("challenger.json")

    def _named(self, file: str) -> FolderRef | None:
        path = self.root / file
        return FolderRef(**json.loads(path.read_text())) if path.exists() else None

    def load(self, ref: FolderRef) -> ServedModel:
        fitted: Fitted = artifact.load(Path(ref.folder))
        if ref.version.startswith("slow"):
            fitted = Slow(fitted)
        return ServedModel("demo", ref.version, ref.digest, fitted, KnownSet(DATA))


def promote(
    root: Path, version: str, season: int, file: str = "champion.json", task: Task = TASK
) -> str:
    """Make a seasonal naive model champion or challenger; returns its digest."""
    fitted = fit_fully("seasonal_naive", DATA, task, {"season": season})
    folder = root / f"model-{version}"
    digest = artifact.save(fitted, folder)
    point_at(root, FolderRef(version, digest, str(folder)), file)
    return digest


def point_at(root: Path, ref: FolderRef, file: str = "champion.json") -> None:
    draft = root / "draft.json"
    draft.write_text(json.dumps(ref.__dict__))
    os.replace(draft, root / file)


@dataclass
class Load:
    """What constant callers saw: answers by status or error, and by model version in order.

    `callers`: the versions that each of them saw; answers to different ones may cross.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    versions: list[str] = field(default_factory=list)
    callers: list[list[str]] = field(default_factory=list)
    slowest_s: float = 0.0


@asynccontextmanager
async def callers(url: str, body: dict[str, Any], count: int = 4) -> AsyncIterator[Load]:
    """`count` callers that repeat one request until the block ends."""
    load, stop = Load(), asyncio.Event()

    async def repeat(http: httpx.AsyncClient) -> None:
        mine: list[str] = []
        load.callers.append(mine)
        while not stop.is_set():
            begin = time.monotonic()
            try:
                answer = await http.post(f"{url}/v1/forecast", json=body, timeout=60)
            except httpx.HTTPError as error:
                load.outcomes[type(error).__name__] += 1
                continue
            load.slowest_s = max(load.slowest_s, time.monotonic() - begin)
            load.outcomes[str(answer.status_code)] += 1
            if answer.status_code == 200:
                version = answer.headers["x-flts-model-version"]
                assert answer.json()["model"]["version"] == version
                load.versions.append(version)
                mine.append(version)

    async with httpx.AsyncClient() as http:
        tasks = [asyncio.create_task(repeat(http)) for _ in range(count)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def until(load: Load, version: str, more: int = 10, timeout_s: float = 60) -> None:
    """Wait for `more` answers of this version."""
    end = time.monotonic() + timeout_s
    while load.versions[-more:] != [version] * more:
        assert time.monotonic() < end, (load.outcomes, load.versions[-5:])
        await asyncio.sleep(0.05)


def a_request() -> dict[str, Any]:
    return request_of(windows_at(DATA, np.array([0, 1]), np.array([250, 260]), 48, 6), LEVELS)


def live(url: str, series: Sequence[int], origins: Sequence[int]) -> list[dict[str, Any]]:
    """Answers to one who asks again every hour, and so tells what has happened since."""
    made = []
    with httpx.Client() as http:
        for origin in origins:
            at = np.full(len(series), origin)
            body = request_of(windows_at(DATA, np.array(series), at, 48, 6), LEVELS)
            answer = http.post(f"{url}/v1/forecast", json=body)
            assert answer.status_code == 200, answer.text
            made.append(answer.json())
    return made


def why_dropped(root: Path, digest: str, timeout_s: float = 30) -> str:
    """The reason in the store, as soon as it is there."""
    dropped, end = Dropped(FolderStore(str(root)), "demo"), time.monotonic() + timeout_s
    while (reason := dropped.why(digest)) is None:
        assert time.monotonic() < end, "it was not dropped"
        time.sleep(0.05)
    return reason


def replicas() -> list[Any]:
    """Handles of the deployment's actors."""
    import ray

    return [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::demo#{deployment.DEPLOYMENT}")
    ]


def replica_pids() -> set[int]:
    """Of those that answer."""
    import ray

    found = set()
    for replica in replicas():
        with suppress(ray.exceptions.RayActorError):  # just killed
            found.add(ray.get(replica.__ray_call__.remote(lambda self: os.getpid())))
    return found


def running() -> int:
    state = deployment.status("demo")
    return 0 if state is None else state.replicas.get("RUNNING", 0)
