"""The project's own models for one task of the accuracy benchmark, in a process of their own.

    python -m benchmarks.accuracy_ours --task etth1-96 --model gru --output gru.npz

What `flts train` does for one kind is done here without Ray and tracking: all trials of the
configuration, of which validation chooses, then the refit up to the test span. Nothing stops a
trial early to save time, so the CPU seconds are no fewer than those of a study. `blend` and
`champion` read the models that the other kinds left behind: `champion` is what `flts train` would
put before its gate, the best on validation.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_tasks import JOBS, job_arrays, job_config, task_of
from benchmarks.peers.meter import Meter, cpu_seconds
from benchmarks.peers.protocol import LEVELS, ForecastData, TaskData
from flts_ray.config import Config
from flts_ray.errors import DataError
from flts_ray.evaluate.backtest import Origins, backtest
from flts_ray.evaluate.finalists import Finalist, best_on_validation
from flts_ray.models import artifact
from flts_ray.models.base import Fitted
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.tune.blend import blend_best
from flts_ray.tune.outcome import StudyResult, TrialOutcome, read_outcomes, trial_folder
from flts_ray.tune.refit import refit_trial
from flts_ray.tune.space import sample_trials
from flts_ray.tune.study import trial_setting
from flts_ray.tune.trial import TrialRun

SINGLE = ("seasonal_naive", "ar", "prophet", "gru", "lstm")
OURS = (*SINGLE, "blend", "champion")
SPENT = "cpu.json"


def fit_kind(
    kind: str, config: Config, data: SeriesArrays, study: Path, meter: Meter
) -> tuple[Fitted, dict[str, Any]]:
    """Run the trials of one kind and refit the best. Raises DataError if none is usable."""
    before = cpu_seconds()
    with meter.part("fit"):
        outcomes = _run_trials(kind, config, data, study)
        best = StudyResult(study.name, tuple(outcomes)).best_per_kind().get(kind)
        if best is None or best.artifact is None:
            errors = "; ".join(f"{one.trial_id}: {one.error}" for one in outcomes)
            raise DataError(f"{kind}: no usable trial ({errors or 'none is configured'})")
        place = trial_folder(study, best.trial_id) / "refit"
        error = refit_trial(best.artifact, place, data, trial_setting(config, data, study).compute)
    if error is not None:
        meter.notes.append(f"the refit failed: {error}")
    (study / kind).mkdir(parents=True, exist_ok=True)
    (study / kind / SPENT).write_text(json.dumps(cpu_seconds() - before), encoding="utf-8")
    fitted = artifact.load(place if error is None else best.artifact)
    tried = [
        {"trial": one.trial_id, "params": dict(one.params), "validation": one.valid_score}
        for one in outcomes
    ]
    return fitted, {"chosen": best.trial_id, "trials": tried}


def _run_trials(kind: str, config: Config, data: SeriesArrays, study: Path) -> list[TrialOutcome]:
    setting = trial_setting(config, data, study)
    plans = [plan for plan in sample_trials(config.models, config.tune.seed) if plan.kind == kind]
    found = []
    for plan in plans:
        run = TrialRun(plan, data, setting)
        while run.step().status == "pending":
            pass
        found.append(run.outcome)
    return found


def put_together(
    model: str, config: Config, data: SeriesArrays, study: Path, meter: Meter
) -> tuple[Fitted, dict[str, Any]]:
    """The blend of the models in `study`, or the study's champion. Its fit is that of them all.

    Raises DataError if there are no models yet, or no blend.
    """
    plans = sample_trials(config.models, config.tune.seed)
    result = StudyResult(study.name, tuple(read_outcomes(study, plans).values()))
    singles = _finalists(study, result)
    if not singles:
        raise DataError("no model has been fitted for this task yet; run the single models first")
    with meter.part("fit"):
        made = blend_best(config, data, study, result, singles)
    spent = [study / one.kind / SPENT for one in singles]
    meter.spent["fit"] += sum(json.loads(path.read_text(encoding="utf-8")) for path in spent)
    meter.notes.append(f"blend: {made.said}")
    every = [*singles, *([made.finalist] if made.finalist is not None else [])]
    chosen = made.finalist if model == "blend" else best_on_validation(every)
    if chosen is None:
        raise DataError(f"there is no blend: {made.said}")
    return chosen.fitted, {"chosen": chosen.name, "members": [one.name for one in singles]}


def _finalists(study: Path, result: StudyResult) -> list[Finalist]:
    """The best trial of each kind, refitted where that went well."""
    found = []
    for one in result.best_per_kind().values():
        assert one.artifact is not None
        refit = trial_folder(study, one.trial_id) / "refit"
        folder = refit if refit.exists() else one.artifact
        found.append(
            Finalist(one.trial_id, artifact.load(folder), folder, valid_score=one.valid_score)
        )
    return found


def forecast(task: TaskData, data: SeriesArrays, fitted: Fitted, meter: Meter) -> ForecastData:
    """Forecasts of every window of the task."""
    with meter.part("predict"):
        found = backtest(fitted, data, Origins(task.series, task.positions))
    quantiles = np.stack([found.quantile(level) for level in LEVELS], axis=-1)
    return ForecastData(np.arange(len(task.series)), found.mean, quantiles, {})


def run(name: str, model: str, root: Path) -> ForecastData:
    """Fit and forecast with one model. Raises FltsError for what stops it."""
    job = JOBS[name]
    config = job_config(job, root)
    data = job_arrays(config)
    task, study, meter = task_of(job, config, data), (root / name / "study").resolve(), Meter(0.0)
    make = fit_kind if model in SINGLE else put_together
    fitted, settings = make(model, config, data, study, meter)
    found = forecast(task, data, fitted, meter)
    about = {
        "settings": settings,
        "fit_cpu_s": meter.spent["fit"],
        "predict_cpu_s": meter.spent["predict"],
        "process_cpu_s": cpu_seconds(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cut_off": False,
        "notes": meter.notes,
        "version": "",
    }
    return ForecastData(found.windows, found.mean, found.quantiles, about)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(JOBS), required=True)
    parser.add_argument("--model", choices=OURS, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path(".flts/benchmark-accuracy"))
    given = parser.parse_args(arguments)
    run(given.task, given.model, given.root).save(given.output)


if __name__ == "__main__":
    main()
