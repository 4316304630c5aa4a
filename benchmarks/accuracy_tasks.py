"""The tasks of the accuracy benchmark: the project's own configurations, and the windows in them.

Design choices: a task is a configuration of the project with a few overrides, so that the numbers
are those a user gets; everybody is judged on the same windows, whose origins leave two days of
history and are taken at every step of the test span; models that are fitted again at every origin
are run on a subsample with a stated stride, and everybody is scored on that too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np

from benchmarks.peers.protocol import TaskData
from flts_ray.config import Config, load_config
from flts_ray.panel import steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesArrays, origins_in
from flts_ray.prepare.run import prepare

FEW = 100
"""Windows of the subsample of a task, about."""


@dataclass(frozen=True)
class Job:
    """One task. scaled: errors are judged in standard deviations of each series' training span."""

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    scaled: bool = False
    apart: bool = False
    """Each series has a table of its own."""


def _etth1(horizon: int) -> Job:
    title = f"ETTh1, {horizon} hours ahead"
    return Job(
        f"etth1-{horizon}", title, "configs/etth1.yaml", (f"task.horizon={horizon}",), scaled=True
    )


def _lte(horizon: int) -> Job:
    ahead = f"{horizon} x 2 min" if horizon > 1 else "2 min"
    overrides = ("data.targets=[down]", f"task.horizon={horizon}")
    return Job(
        f"lte-{horizon}", f"LTE down, {ahead} ahead", "configs/lte.yaml", overrides, apart=True
    )


JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job("demo-48", "Demand of Victoria, 48 half-hours ahead", "configs/demo.yaml", ()),
        _etth1(96),
        _lte(30),
        _lte(1),
        *(_etth1(horizon) for horizon in (192, 336, 720)),
    )
}
"""In the order in which they are run."""


def job_config(job: Job, root: Path) -> Config:
    """The configuration of a task, with everything it keeps below `root`."""
    overrides = [f"root={root}", "prepare.engine=local", *job.overrides]
    if job.config.endswith("demo.yaml"):
        path = root / "input" / "elecdemand.csv"
        if not path.exists():
            from flts_ray.jobs.demo import write_input

            write_input(path)
        overrides += ["data.snapshot=null", f"data.path={path}"]
    return load_config(job.config, overrides)


def job_arrays(config: Config) -> SeriesArrays:
    """The prepared set; made unless it is there."""
    return prepare(config).arrays()


def task_of(job: Job, config: Config, data: SeriesArrays) -> TaskData:
    """The windows of a task and everything a runner may read."""
    season, horizon = data.contract.season, config.task.horizon
    series, positions = origins_in(data, "test", 2 * season, horizon)
    lengths = data.lengths
    stamps = [
        steps_after(np.repeat(data.start_us[i], lengths[i]), np.arange(lengths[i]), data.contract)
        for i in range(data.n_series)
    ]
    contract = data.contract
    known = data.future if contract.known_future else data.future[:, :0]
    return TaskData(
        name=job.name,
        horizon=horizon,
        season=season,
        ids=np.asarray(data.ids),
        offsets=data.offsets,
        train_end=data.train_end,
        valid_end=data.valid_end,
        y=np.concatenate([filled(data.y[data.rows(i)]) for i in range(data.n_series)]),
        observed=data.observed,
        wall_us=to_local_us(np.concatenate(stamps), contract.time_zone),
        series=series,
        positions=positions,
        few=few_windows(series, season),
        known=known,
        past=data.past,
    )


def few_stride(series: np.ndarray, season: int) -> int:
    """Windows between two of the subsample; shares no factor with the season, so that origins
    visit every time of day."""
    stride = max(1, len(series) // FEW)
    while gcd(stride, season) > 1:
        stride += 1
    return stride


def few_windows(series: np.ndarray, season: int) -> np.ndarray:
    """Every `few_stride`-th window of each series, bool [n]; series: int64 [n], in runs."""
    first = np.concatenate([[0], np.cumsum(np.bincount(series))])[:-1]
    return (np.arange(len(series)) - first[series]) % few_stride(series, season) == 0


def filled(y: np.ndarray) -> np.ndarray:
    """Gaps hold the last value before them; a gap at the start the first one after it."""
    seen = np.where(np.isfinite(y), np.arange(len(y)), -1)
    last = np.maximum.accumulate(seen)
    return y[np.where(last >= 0, last, int(np.argmax(seen >= 0)))]
