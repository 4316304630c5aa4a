"""The worker process of a study: a Tune Trainable around `TrialRun`.

Design choices: `reset_config` starts the next trial in the same process, so imports and the look
into the object store are paid once a worker; arrays stay in shared memory (they are read-only
there), and tasks that help a trial look at the same ones. Only trials that yield several epochs
report `epoch`, the time attribute of the scheduler, which therefore never touches the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray.tune import Trainable

from flts_ray.models.base import forecaster
from flts_ray.tune.space import TrialPlan
from flts_ray.tune.spread import RaySpread
from flts_ray.tune.trial import TrialRun, TrialSetting


class TrialWorker(Trainable):
    """Runs one trial after the other. `config["plan"]` holds the fields of a `TrialPlan`."""

    def setup(
        self,
        config: dict[str, Any],
        spread: RaySpread | None = None,
        setting: TrialSetting | None = None,
    ) -> None:
        if spread is None or setting is None:
            raise ValueError("TrialWorker needs spread and setting; wrap it in with_parameters")
        self._data = spread.data
        self._shared = replace(setting, compute=replace(setting.compute, spread=spread))
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._run = TrialRun(TrialPlan(**new_config["plan"]), self._data, self._shared)
        return True

    def step(self) -> dict[str, Any]:
        outcome = self._run.step()
        result: dict[str, Any] = {
            "outcome": outcome.to_json(),
            "done": outcome.status != "pending",
        }
        if outcome.status != "failed":
            result["valid_score"] = outcome.valid_score
            if forecaster(outcome.kind).iterative:
                result["epoch"] = outcome.epochs
        return result
