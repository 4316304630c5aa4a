"""The best trial of each kind, refitted on training and validation span together.

Design choices: validation has chosen the settings, and its newest windows are the best there is
to learn from before the test span, so the model that is judged and served has learned from them
too; one task a kind, side by side, on the data that lies once in shared memory; a refit is a
folder of its own beside the trial's model, which appears as a whole or not at all, so a resumed
study finds what is done and the trial stays as it was scored; a refit that fails costs that kind
its newest windows and the study nothing, because the trial's own model takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from flts_ray.config import Config
from flts_ray.errors import ArtifactError
from flts_ray.models import artifact
from flts_ray.models.base import Compute, forecaster
from flts_ray.models.introduce import introduced
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import Census, PreparedSet
from flts_ray.tune.held import Held, ray_runs
from flts_ray.tune.outcome import StudyResult, TrialOutcome, trial_folder
from flts_ray.tune.study import trial_setting
from flts_ray.tune.trial import describe

Failure = str | None


def refit_best(
    study: StudyResult,
    data: SeriesArrays,
    folder: Path,
    config: Config,
    prepared: PreparedSet | None = None,
    held: Held | None = None,
) -> dict[str, Path]:
    """Refit the best trial of each kind; the folder of the model to judge, by trial id.

    folder: the study's own, as in `run_study`. A refitted model is left in
    `folder/artifacts/<trial id>/refit`; one that is complete is not made again. Where a refit
    fails, the trial's own artifact is returned and a warning is logged. Runs on Ray where it is
    initialised, else in this process. Ctrl-C cancels what is running and is raised on.
    prepared: where `data` was loaded from; if it has more than `tune.by_bucket_rows` rows, or
    more series than `data`, it is read by bucket for the linear model, and every model knows all
    of its series afterwards. held: `data` in the object store, if others use it there too.
    """
    folder = folder.resolve()
    best = {outcome.trial_id: outcome for outcome in study.best_per_kind().values()}
    left = {name: one for name, one in best.items() if not _complete(_place(folder, name))}
    compute = trial_setting(config, data, folder).compute
    sampled = prepared is not None and data.n_series < prepared.manifest.series
    census = prepared.census(data.ids) if left and prepared is not None and sampled else None
    large = _linear_of_large(left, config, prepared, sampled)
    rest = {name: one for name, one in left.items() if name not in large}
    if rest and ray_runs():
        # A set that nobody asks for any more stays out of the object store.
        failed = _on_ray(rest, held or Held(data), folder, config, compute, census)
    else:
        failed = _failures(
            rest,
            lambda name, one: refit_trial(_own(one), _place(folder, name), data, compute, census),
        )
    failed |= _failures(
        large,
        lambda name, one: refit_by_bucket(_own(one), _place(folder, name), prepared, census),
    )
    for name, error in failed.items():
        structlog.get_logger().warning("refit_failed", trial=name, error=error)
    return {
        name: _instead(folder, name, outcome, census) if name in failed else _place(folder, name)
        for name, outcome in best.items()
    }


def _instead(folder: Path, name: str, outcome: TrialOutcome, census: Census | None) -> Path:
    """The trial's own model, told of the series that it did not see."""
    own = _own(outcome)
    if census is None:
        return own
    told = trial_folder(folder, name) / "introduced"
    artifact.save(introduced(artifact.load(own), census), told)
    return told


def refit_trial(
    source: Path, target: Path, data: SeriesArrays, compute: Compute, census: Census | None = None
) -> Failure:
    """Refit the model stored in `source` and store it in `target`. Returns what went wrong.

    census: of the set that `data` is a sample of.
    """
    try:
        fitted = artifact.load(source)
        refitted = forecaster(fitted.spec.kind).refit(fitted, data, compute)
        artifact.save(refitted if census is None else introduced(refitted, census), target)
    except Exception as error:  # noqa: BLE001 - models may raise anything; it is reported
        return describe(error)
    return None


def _linear_of_large(
    left: Mapping[str, TrialOutcome], config: Config, prepared: PreparedSet | None, sampled: bool
) -> dict[str, TrialOutcome]:
    """The linear models, if the set is too large to be summed where it is loaded."""
    if prepared is None or not (sampled or prepared.manifest.rows > config.tune.by_bucket_rows):
        return {}
    return {name: one for name, one in left.items() if one.kind == "ar"}


def refit_by_bucket(
    source: Path, target: Path, prepared: PreparedSet | None, census: Census | None = None
) -> Failure:
    """Refit the linear model stored in `source` on a set that is read by bucket."""
    from flts_ray.models.ar import FittedAR
    from flts_ray.tune.set_sums import refit_on_set

    try:
        fitted = artifact.load(source)
        assert isinstance(fitted, FittedAR)
        assert prepared is not None  # else nothing is large
        refitted = refit_on_set(fitted, prepared)
        artifact.save(refitted if census is None else introduced(refitted, census), target)
    except Exception as error:  # noqa: BLE001 - tasks may raise anything; it is reported
        return describe(error)
    return None


def _on_ray(
    left: Mapping[str, TrialOutcome],
    held: Held,
    folder: Path,
    config: Config,
    compute: Compute,
    census: Census | None,
) -> dict[str, str]:
    """Refit side by side; the errors by trial id, those of lost workers among them."""
    import ray

    from flts_ray.tune.spread import RaySpread

    task = ray.remote(
        num_cpus=config.tune.cpus_per_trial, num_gpus=config.tune.gpus_per_trial, max_retries=1
    )(refit_trial)
    compute = replace(compute, spread=RaySpread(held.reference))
    known = None if census is None else ray.put(census)
    running = {
        name: task.remote(_own(one), _place(folder, name), held.reference, compute, known)
        for name, one in left.items()
    }

    def ended(name: str, _: TrialOutcome) -> Failure:
        try:
            return ray.get(running[name])
        except ray.exceptions.RayError as error:
            return f"the worker process was lost ({type(error).__name__})"

    try:
        return _failures(left, ended)
    except BaseException:
        for reference in running.values():
            ray.cancel(reference, force=True)
        raise


def _failures(
    left: Mapping[str, TrialOutcome], refit: Callable[[str, TrialOutcome], Failure]
) -> dict[str, str]:
    found = {name: refit(name, outcome) for name, outcome in left.items()}
    return {name: error for name, error in found.items() if error is not None}


def _place(folder: Path, trial_id: str) -> Path:
    return trial_folder(folder, trial_id) / "refit"


def _own(outcome: TrialOutcome) -> Path:
    assert outcome.artifact is not None  # a best trial has one
    return outcome.artifact


def _complete(place: Path) -> bool:
    if not place.exists():
        return False
    try:
        artifact.digest(place)
    except ArtifactError:
        return False
    return True
