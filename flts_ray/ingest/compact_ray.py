"""Compaction as tasks of Ray Data; the bytes are those of compaction in this process."""

from __future__ import annotations

from functools import partial

from flts_ray.config import RayConfig
from flts_ray.prepare.dataset import run_on_ray
from flts_ray.prepare.steps import Run


def on_ray(config: RayConfig) -> Run:
    """Runs the steps of `compact` on the cluster, which is joined or started if need be."""
    return partial(run_on_ray, config=config)
