"""The steps of preparation on a Ray cluster: the only file of the floor that knows Ray Data.

Design choices: few large tasks (one input, one bucket), because Ray Data pays for every block;
workers get a step number and answer with a small JSON report, rows travel through the store
only, so nothing large enters the object store and a lost worker costs one task.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flts_ray.config import RayConfig
from flts_ray.local.ray_environment import set_for_ray

Step = Callable[[int], dict[str, Any]]


def ray_runs() -> bool:
    """True when this process is already connected to Ray; never imports it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def run_on_ray(step: Step, count: int, config: RayConfig) -> Iterator[dict[str, Any]]:
    """Run `step` for 0 to count - 1 on the cluster; reports come as they finish."""
    if not ray_runs():
        _connect(config)
    import ray

    def report(row: dict[str, Any]) -> dict[str, str]:
        return {"report": json.dumps(step(int(row["step"])))}

    with quiet_data():
        steps = ray.data.from_items([{"step": i} for i in range(count)], override_num_blocks=count)
        for row in steps.map(report, num_cpus=1).iter_rows():
            yield json.loads(row["report"])


@contextmanager
def quiet_data(in_order: bool = False) -> Iterator[None]:
    """Ray Data neither draws nor announces its plans: the caller shows the progress.

    in_order: rows come in the order of their blocks.
    """
    import ray

    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    options = context.execution_options
    before = context.enable_progress_bars, logger.level, options.preserve_order
    context.enable_progress_bars = False
    options.preserve_order = in_order
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, level, options.preserve_order = before
        logger.setLevel(level)


def _connect(config: RayConfig) -> None:
    """Join the configured cluster, else start a local one in this process."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    set_for_ray(starts_cluster=not address)
    import ray

    if address:
        ray.init(address=address, logging_level="warning", log_to_driver=False)
        return
    ray.init(
        address="local",
        logging_level="warning",
        num_cpus=config.num_cpus,
        object_store_memory=config.object_store_mb * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
