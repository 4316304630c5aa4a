"""What scaling ahead has counted, when Ray Serve's controller is killed while it counts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import serve

from flts_ray.config import Config, parse_config
from flts_ray.config_serve import AheadConfig, AuthConfig, ServeConfig
from flts_ray.local.private import private_folder
from flts_ray.local.ray_environment import set_for_ray
from flts_ray.serve import deployment
from flts_ray.serve.scaling import Counted
from flts_ray.serve.scaling_memory import SAVE_INTERVALS, ScalingMemory, memory_name
from tests.deployed import FolderSource, Load, a_request, callers, promote, running
from tests.running import MARK, Place
from tests.running import until as until_true

pytestmark = pytest.mark.integration
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
INTERVAL_S = 0.25
SEASON = 8
CLOCK = AheadConfig(interval_s=INTERVAL_S, ahead_s=1.0, season_s=SEASON * INTERVAL_S)
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    """A deployment that scales ahead, in a cluster of its own that leaves no process behind."""
    promote(root, "1", season=24)
    # A socket's path must be short, so pytest's own folder is too deep.
    place = Place(Path(tempfile.mkdtemp(prefix="flts-")))
    os.environ[MARK] = place.mark
    set_for_ray(starts_cluster=True, serving=ServeConfig())
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=str(place.folder),
    )
    try:
        address = deployment.deploy(_config(root), "unused", partial(FolderSource, root))
        deployment.wait_ready(address, PATIENCE_S)
        yield address
    finally:
        serve.shutdown()
        ray.shutdown()
        until_true(lambda: not place.processes(), PATIENCE_S, "the end of every process")
        shutil.rmtree(place.folder, ignore_errors=True)
        for left in (kept_in(root), kept_in(root).with_suffix(".draft")):
            left.unlink(missing_ok=True)


def kept_in(root: Path) -> Path:
    """Where the controller keeps its counts."""
    return private_folder() / "scaling" / memory_name("demo", str(root.resolve()))


def _config(root: Path) -> Config:
    limits = ServeConfig(
        port=0,
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=1000.0,
        scale_ahead=True,
        ahead=CLOCK,
        auth=AuthConfig(required=False),
    )
    return parse_config(
        {
            "name": "demo",
            "root": str(root),
            "data": {"path": "unused.csv"},
            "serve": limits.model_dump(),
        }
    )


def test_a_killed_controller_goes_on_from_what_it_counted(url: str, root: Path) -> None:
    async def work() -> Load:
        async with callers(url, a_request(), 2) as load:
            await asyncio.to_thread(_kill_and_follow, kept_in(root), load)
        return load

    load = asyncio.run(work())
    assert set(load.outcomes) == {"200"}, load.outcomes


def _kill_and_follow(file: Path, load: Load) -> None:
    # What was counted before the first request is repeated where nobody counted.
    last = kept_when(file, lambda kept: len(kept.counts) > SEASON and kept.counts[-SEASON:].all())
    for kill in (kill_while_it_writes, kill_now):
        before = kill(file)
        goes_on(last, before)
        answered = load.outcomes["200"]
        last = kept_when(file, partial(counts_anew, before))
        goes_on(before, last)
        assert last.counts[len(before.counts) :].min() > 0, "silence was taken for no load"
        until_true(lambda: running() == 1, PATIENCE_S, "what the controller knows of replicas")
        until_true(partial(has_answered, load, answered + 20), PATIENCE_S, "more answers")


def has_answered(load: Load, least: int) -> bool:
    return load.outcomes["200"] >= least


def counts_anew(before: Counted, kept: Counted) -> bool:
    """The last counts are seen, not those of a season ago, and new forecasts were judged."""
    if len(kept.counts) < max(2 * SEASON, len(before.counts) + SAVE_INTERVALS):
        return False
    seen = kept.counts[-SAVE_INTERVALS:] != kept.counts[-SAVE_INTERVALS - SEASON : -SEASON]
    return bool(seen.all()) and kept.missed != before.missed


def kept_when(file: Path, condition: Callable[[Counted], object]) -> Counted:
    """The first memory in the file that fulfils the condition."""
    end = time.monotonic() + PATIENCE_S
    while (kept := memory(file).read()) is None or not condition(kept):
        assert time.monotonic() < end, kept
        time.sleep(0.1)
    return kept


def goes_on(before: Counted, after: Counted) -> None:
    """Every count of `before` is at the beginning of `after`, whose intervals keep to its clock."""
    many = len(before.counts)
    np.testing.assert_array_equal(after.counts[:many], before.counts)
    np.testing.assert_array_equal(after.ongoing[:many], before.ongoing)
    passed = (after.until - before.until) / INTERVAL_S
    assert passed == pytest.approx(len(after.counts) - many, abs=1e-3)


def kill_while_it_writes(file: Path) -> Counted:
    """As soon as a draft is there; returns what the file holds then."""
    pid, draft = controller(), str(file.with_suffix(".draft"))
    end = time.monotonic() + PATIENCE_S
    while not os.path.exists(draft):
        assert time.monotonic() < end, "nothing is written"
    return killed(pid, file)


def kill_now(file: Path) -> Counted:
    """At any moment; returns what the file holds then."""
    return killed(controller(), file)


def killed(pid: int, file: Path) -> Counted:
    os.kill(pid, signal.SIGKILL)
    kept = memory(file).read()
    assert kept is not None, "a kill damaged the memory"
    until_true(lambda: controller() != pid, PATIENCE_S, "another controller")
    return kept


def memory(file: Path) -> ScalingMemory:
    return ScalingMemory(file.name, file.parent)


def controller() -> int:
    """Its process, as soon as one answers."""
    end = time.monotonic() + PATIENCE_S
    while True:
        handle = ray.get_actor(CONTROLLER, namespace="serve")
        asked = handle.__ray_call__.remote(lambda self: os.getpid())
        try:
            return int(ray.get(asked, timeout=PATIENCE_S))
        except ray.exceptions.RayActorError:  # just killed
            assert time.monotonic() < end
            time.sleep(0.1)
