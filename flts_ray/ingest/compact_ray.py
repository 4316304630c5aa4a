"""Compaction as tasks of Ray Data; the bytes are those of compaction in this process.

Design choices: a step that runs elsewhere opens the store there, so it takes along the addresses
and keys of this process's environment; they are neither shown nor left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flts_ray.config import RayConfig
from flts_ray.ingest.fleet import environment_for_actors, surrounded_by
from flts_ray.prepare.dataset import run_on_ray
from flts_ray.prepare.steps import Report, Run, Step


def on_ray(config: RayConfig) -> Run:
    """Runs the steps of `compact` on the cluster, which is joined or started if need be."""

    def run(step: Step, count: int) -> Iterator[Report]:
        return run_on_ray(_Elsewhere(step, environment_for_actors()), count, config)

    return run


@dataclass(frozen=True)
class _Elsewhere:
    step: Step
    environment: Mapping[str, str] = field(repr=False)

    def __call__(self, index: int) -> Report:
        with surrounded_by(self.environment):
            return self.step(index)
