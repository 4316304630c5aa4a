"""Parts of a fit on a real local Ray: beside each other, with no CPU to spare, and with losses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from flts_ray.models import ar_map
from flts_ray.models.ar_settings import Settings, layout_of
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.spread import Failed
from flts_ray.prepare.arrays import SeriesArrays, origins_in, widened
from flts_ray.tune.spread import LOST, RaySpread
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration

DATA = seasonal_set(n_series=6, length=400)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def eager(held: object = None) -> RaySpread:
    """Asks for help at once."""
    return RaySpread(held, alone_s=0.0, help_pays_s=0.0)


def total(data: SeriesArrays, part: int, seconds: float = 0.0) -> tuple[float, int, bool, str]:
    """A sum, and who made it from which memory."""
    time.sleep(seconds)
    own = bool(data.y.flags.writeable)
    return float(data.y[data.rows(part)].sum()), os.getpid(), own, os.environ["OMP_NUM_THREADS"]


def test_workers_share_the_work_and_one_copy_of_the_set() -> None:
    parts = [row % 6 for row in range(200)]
    work = partial(total, seconds=0.02)
    asked = []
    spread = RaySpread(on_done=lambda done, of: asked.append((done, of)), alone_s=0, help_pays_s=0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = list(spread(work, DATA, parts, [1.0] * len(parts)))
    results = [one for one in found if not isinstance(one, Failed)]
    assert [one[0] for one in results] == [float(DATA.y[DATA.rows(p)].sum()) for p in parts]
    helped = [one for one in results if one[1] != os.getpid()]
    assert len(helped) > 20
    assert {(own, threads) for _, _, own, threads in helped} == {(False, "1")}
    assert asked[-1] == (200, 200)


def test_what_differs_from_the_held_set_is_sent() -> None:
    spread = eager(ray.put(DATA))
    assert list(spread._sent(widened(spread.data))[1]) == ["train_end"]
    more = replace(spread.data, y=spread.data.y + 1.0)
    found = list(spread(partial(total, seconds=0.02), more, [0] * 100, [1.0] * 100))
    expected = float(more.y[more.rows(0)].sum())
    assert {one[0] for one in found if not isinstance(one, Failed)} == {expected}
    assert len({one[1] for one in found if not isinstance(one, Failed)}) > 1


class Trial:
    """Holds a CPU as a trial of a study does, within a placement group of its own."""

    def total(self, spread: RaySpread) -> list[float]:
        found = spread(partial(total, seconds=0.01), spread.data, [0, 1, 2] * 40, [1.0] * 120)
        return [one[0] for one in found if not isinstance(one, Failed)]


def test_trials_that_hold_every_cpu_finish_their_parts() -> None:
    groups = [placement_group([{"CPU": 1}]) for _ in range(2)]
    trials = [
        ray.remote(Trial)
        .options(
            num_cpus=1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_capture_child_tasks=True
            ),
        )
        .remote()
        for group in groups
    ]
    spread = eager(ray.put(DATA))
    found = ray.get([trial.total.remote(spread) for trial in trials], timeout=60)
    expected = [float(DATA.y[DATA.rows(row)].sum()) for row in (0, 1, 2)] * 40
    assert found == [expected, expected]
    for group in groups:
        remove_placement_group(group)


def kills(data: SeriesArrays, part: int, caller: int, told: Path) -> int:
    """Part 3 takes its worker down; who asks waits in part 1 until it has."""
    if part == 3:
        if os.getpid() == caller:
            raise RuntimeError("the process that asks must not run it")
        time.sleep(0.5)
        told.touch()
        os._exit(1)
    while part == 1 and os.getpid() == caller and not told.exists():
        time.sleep(0.01)
    return part


def test_a_lost_worker_costs_only_the_part_that_kills_it(tmp_path: Path) -> None:
    parts = [0, 3, *[1] * 60]
    work = partial(kills, caller=os.getpid(), told=tmp_path / "told")
    # The dangerous part is the costliest, so it is the first that a task gets.
    found = list(eager()(work, DATA, parts, [1.0, 1e3, *[1.0] * 60]))
    assert found == [0, Failed(LOST), *[1] * 60]


def test_prophet_fits_its_series_in_tasks() -> None:
    task = Task(6, (0.1, 0.5, 0.9))
    here = fit_fully("prophet", DATA, task).state()[1]
    spread = fit_fully("prophet", DATA, task, {}, Compute(spread=eager())).state()[1]
    for name, array in here.items():
        # A task runs on one BLAS thread, this process on any number: the last bits may differ.
        np.testing.assert_allclose(spread[name], array, rtol=1e-6, atol=1e-9)


def test_sums_made_in_tasks_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ar_map, "PART_WINDOWS", 64)
    layout = layout_of(DATA, 6, Settings(lags=24))
    chosen = origins_in(DATA, "train", layout.lookback, 6)
    here = ar_map.moments_of(ar_map.Sample(DATA, *chosen), layout)
    there = ar_map.moments_of(ar_map.Sample(DATA, *chosen, eager()), layout)
    for name, value in vars(here).items():
        np.testing.assert_allclose(getattr(there, name), value, rtol=1e-9, atol=1e-9)
