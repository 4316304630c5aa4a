"""The order of the steps: prepare, tune, judge, gate, promote.

Design choices: the candidate is the best trial on the validation span; the test span is looked
at once, for it, the best of every other kind and the champion, and decides only whether the
candidate is promoted, never which model is the candidate; parity between the artifact served
over HTTP and the model in memory is the last check before the promotion.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from flts_ray.config import Config
from flts_ray.errors import Unavailable
from flts_ray.evaluate.finalists import Finalist, Judged
from flts_ray.evaluate.gate import Decision
from flts_ray.evaluate.scoreboard import Scoreboard, comparison_table
from flts_ray.models import artifact
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import PreparedSet
from flts_ray.prepare.run import prepare
from flts_ray.promote import conclude, decide, judge_together
from flts_ray.registry import ModelVersion
from flts_ray.runs import CONFIG_HASH, PREPARED_HASH, StudyRuns
from flts_ray.services import Narrator, Services
from flts_ray.tune.outcome import StudyInterrupted, StudyResult, read_outcomes, study_id
from flts_ray.tune.space import sample_trials
from flts_ray.tune.study import run_study


@dataclass(frozen=True)
class TrainReport:
    """What a training came to. `version` is the registered candidate, promoted or not."""

    prepared: PreparedSet
    study: StudyResult
    judged: tuple[Judged, ...]
    decision: Decision
    version: ModelVersion
    promoted: bool

    @property
    def candidate(self) -> str:
        """The trial that was put before the gate."""
        return self.decision.candidate


def train(
    config: Config,
    services: Services,
    narrator: Narrator,
    now: datetime,
    *,
    resume: bool = False,
    force: bool = False,
) -> TrainReport:
    """Run everything up to the promotion or its refusal (which is no error here).

    Raises FltsError subclasses for what stops the run, StudyInterrupted on Ctrl-C.
    """
    prepared = run_prepare(config, narrator, force=force)
    data = prepared.arrays()
    runs = StudyRuns.connect(
        services.mlflow_uri, config.mlflow.experiment or config.name, config.name
    )
    parent, study = run_tuning(config, services, prepared, data, runs, narrator, resume=resume)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        judged, champion = judge_study(config, services, data, study, narrator)
        log_judged(runs, judged, champion)
        candidate = best_on_validation(judged)
        decision = decide(config, data, candidate, champion, judged, now)
        version = register(services, prepared, candidate, study)
        promoted = conclude(services, data, candidate, champion, decision, version, now, narrator)
        runs.log_json(parent, decision.to_json(), "decision")
        runs.log_table(parent, comparison_table(boards(judged), config.judge.score), "candidates")
        status = "FINISHED"
    finally:
        runs.end_study(parent, status)
    return TrainReport(prepared, study, judged, decision, version, promoted)


def run_prepare(config: Config, narrator: Narrator, *, force: bool = False) -> PreparedSet:
    """Prepare, unless the same set is there already."""
    narrator.step("Prepare")
    prepared = prepare(config, force=force, progress=narrator.stage)
    found = prepared.manifest
    left_out = sum(found.quarantine.values())
    narrator.step(
        "Prepared",
        f"{found.series} series, {found.rows:,} rows at {found.contract.freq}"
        + (f", {left_out} series in quarantine" if left_out else ""),
    )
    return prepared


def run_tuning(
    config: Config,
    services: Services,
    prepared: PreparedSet,
    data: SeriesArrays,
    runs: StudyRuns,
    narrator: Narrator,
    *,
    resume: bool,
) -> tuple[str, StudyResult]:
    """Run or resume the study. Returns its tracking run and its outcome."""
    folder = services.folder / "studies" / study_id(config, prepared.hash)
    note = folder / "parent_run"
    if resume and note.exists():
        parent = runs.resume_study(note.read_text())
    else:
        parent = runs.start_study(
            {"name": config.name, "horizon": config.task.horizon, "score": config.judge.score},
            {CONFIG_HASH: config.digest(), PREPARED_HASH: prepared.hash},
        )
        runs.log_json(parent, config.model_dump(mode="json"), "config")
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(parent)
    narrator.step("Tune", f"study {folder.name}, at most {config.tune.budget_s:g} s")
    try:
        with narrator.study() as show:
            study = run_study(config, data, folder, runs, parent, True, show)
    except StudyInterrupted:
        runs.end_study(parent, "KILLED")
        raise
    return parent, study


def finalists_of(study: StudyResult) -> list[Finalist]:
    """The best trial of each kind on validation. Raises Unavailable if none is usable."""
    best = study.best_per_kind()
    if not best:
        errors = sorted({o.error for o in study.outcomes if o.error})
        raise Unavailable("no trial of the study succeeded:\n  " + "\n  ".join(errors[:5]))
    return [
        Finalist(o.trial_id, artifact.load(o.artifact), o.artifact, o.run_id, o.valid_score)
        for o in best.values()
        if o.artifact is not None
    ]


def judge_study(
    config: Config,
    services: Services,
    data: SeriesArrays,
    study: StudyResult,
    narrator: Narrator,
) -> tuple[tuple[Judged, ...], Judged | None]:
    """Judge the finalists and the champion once on the same windows of the test span."""
    finalists = finalists_of(study)
    return judge_together(config, services, data, finalists, narrator)


def best_on_validation(judged: Sequence[Judged]) -> Judged:
    """The candidate: the lowest validation score, whatever the test span says."""
    return min(judged, key=lambda j: (j.finalist.valid_score or 0.0, j.finalist.name))


def boards(judged: Sequence[Judged], champion: Judged | None = None) -> list[Scoreboard]:
    """Scoreboards of all judged models."""
    return [j.board for j in (*judged, *([champion] if champion else []))]


def judge_again(
    config: Config, services: Services, narrator: Narrator
) -> tuple[tuple[Judged, ...], Judged | None]:
    """Judge the trials of the study that was run for this configuration, running nothing.

    Raises Unavailable without a study.
    """
    prepared = run_prepare(config, narrator)
    folder = services.folder / "studies" / study_id(config, prepared.hash)
    plans = sample_trials(config.models, config.tune.seed)
    study = StudyResult(folder.name, tuple(read_outcomes(folder, plans).values()))
    if not study.outcomes:
        raise Unavailable(
            f"{config.name}: no study of this configuration in {folder}; `flts train` runs one"
        )
    return judge_study(config, services, prepared.arrays(), study, narrator)


def log_judged(runs: StudyRuns, judged: Sequence[Judged], champion: Judged | None) -> None:
    """Backtest tables into the run of each trial."""
    for one in judged:
        if one.finalist.run_id is not None:
            runs.log_json(one.finalist.run_id, one.board.to_json()["overall"], "test/overall")
            runs.log_table(one.finalist.run_id, one.board.per_step, "test/per_step")
            runs.log_table(one.finalist.run_id, one.board.per_series, "test/per_series")


def register(
    services: Services, prepared: PreparedSet, candidate: Judged, study: StudyResult
) -> ModelVersion:
    """Add the candidate to the registry; it is no champion yet."""
    run_id = candidate.finalist.run_id
    if run_id is None:
        raise Unavailable(
            f"{candidate.finalist.name} was never logged to MLflow, so it cannot be registered; "
            "`flts train --resume` logs what is missing"
        )
    return services.registry().add_version(
        candidate.finalist.folder,
        run_id,
        prepared.hash,
        {"study": study.study_id, "trial": candidate.finalist.name},
    )
