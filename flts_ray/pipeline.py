"""The order of the steps: prepare, tune, refit, blend, judge, gate, promote.

Design choices: the candidate is the best trial on the validation span, or a blend that beats it
there, and is named before the test span is looked at; that happens once, for it, the best of
every kind and the champion, and decides only whether the candidate is promoted; parity between
the artifact served over HTTP and the model in memory is the last check before the promotion,
which is the last thing that is done: the tracking run holds everything by then. Other programs
are told of each step, and nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from flts_ray.config import Config
from flts_ray.errors import DataError, Unavailable
from flts_ray.evaluate.finalists import Finalist, Judged, best_on_validation, check_comparable
from flts_ray.evaluate.gate import Decision
from flts_ray.evaluate.scoreboard import Scoreboard, comparison_table
from flts_ray.models import artifact
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import PreparedSet
from flts_ray.prepare.manifest import MANIFEST_NAME
from flts_ray.prepare.run import prepare
from flts_ray.promote import (
    conclude,
    decide,
    judge_together,
    load_champion,
    task_of,
    tell_selected,
    title,
    verdict_on,
)
from flts_ray.registry import ModelVersion
from flts_ray.runs import StudyRuns
from flts_ray.sampled import studied
from flts_ray.services import Narrator, Services
from flts_ray.sources.snapshot import snapshot_name
from flts_ray.tune.blend import Blended, blend_best
from flts_ray.tune.blend_log import TEST_TABLE, logged_blend
from flts_ray.tune.held import Held
from flts_ray.tune.outcome import StudyResult, read_outcomes, study_id
from flts_ray.tune.progress import StudyView
from flts_ray.tune.refit import refit_best
from flts_ray.tune.space import sample_trials
from flts_ray.tune.study import run_study
from flts_ray.tune.tracked import tracked_run
from flts_ray.tune.trial_events import TrialEvents, study_events

REFIT_PATH = "refit"
"""Where the run of a trial keeps the model that was judged."""


@dataclass(frozen=True)
class TrainReport:
    """What a training came to.

    champion: the one before, judged on the same windows. version: the registered candidate,
    promoted or not. promoted: it is champion, made so by this training or before it.
    """

    prepared: PreparedSet
    study: StudyResult
    judged: tuple[Judged, ...]
    champion: Judged | None
    decision: Decision
    version: ModelVersion
    promoted: bool

    @property
    def candidate(self) -> str:
        """The trial that was put before the gate."""
        return self.decision.candidate

    @property
    def boards(self) -> list[Scoreboard]:
        """What to show: the trials, and the champion of before unless the candidate is it."""
        return boards(self.judged, None if self._found_again else self.champion)

    @property
    def champion_name(self) -> str:
        """The name in `boards` of the champion of before; empty if there was none."""
        if self.champion is None:
            return ""
        return self.candidate if self._found_again else self.champion.name

    @property
    def _found_again(self) -> bool:
        known = self.champion
        return known is not None and known.finalist.version == self.version.version


def train(
    config: Config,
    services: Services,
    narrator: Narrator,
    clock: Callable[[], datetime],
    *,
    resume: bool = False,
    force: bool = False,
) -> TrainReport:
    """Run everything up to the promotion or its refusal (which is no error here).

    clock: says when it was decided, which may be long after the start. Raises FltsError
    subclasses for what stops the run, StudyInterrupted on Ctrl-C.
    """
    prepared = run_prepare(config, narrator, force=force)
    tell_prepared(config, services, prepared)
    looked, data = studied(config, prepared, narrator)
    held = Held(data)
    incumbent = load_champion(services)
    if incumbent is not None:  # told now, not after the study
        check_comparable(incumbent, task_of(config), data)
    experiment = config.mlflow.experiment or config.name
    runs = StudyRuns.connect(services.mlflow_uri, experiment, config.name)
    folder = study_folder(looked, services, prepared)
    with (
        tracked_run(config, prepared.hash, folder, runs, resume=resume) as parent,
        study_events(services.events, config, parent, folder) as told,
    ):
        study = run_tuning(looked, data, folder, runs, parent, narrator, told, held)
        singles = refitted(looked, prepared, data, folder, study, narrator, held)
        made = blended(looked, data, folder, study, singles, narrator)
        finalists = logged_blend(runs, parent, folder, made, singles)
        log_refits(runs, finalists)
        chosen = finalists.index(best_on_validation(finalists))
        judged, champion = judge_together(config, services, data, finalists, narrator)
        candidate = judged[chosen]
        log_judged(runs, judged)
        now = clock()
        verdict = verdict_on(
            config, data, candidate, champion,
            decide(config, data, candidate, champion, judged, now),
        )  # fmt: skip
        version = register(services, prepared, candidate, champion, study)
        already = version.version == verdict.expected
        if already:
            reason = f"{candidate.name} is {title(version)}, which is champion already"
            verdict = replace(verdict, decision=replace(verdict.decision, reason=reason))
            narrator.step("Kept", f"{title(version)} is champion already")
        runs.log_json(parent, verdict.record(version), "decision")
        table = comparison_table(boards(judged, champion), config.judge.score)
        runs.log_table(parent, table, "candidates")
        entry = None
        if not already:
            entry = conclude(services.registry(), verdict, version, now, narrator)
    if entry is not None:
        tell_selected(services, version, entry, candidate.board.overall[config.judge.score])
    promoted = already or entry is not None
    return TrainReport(prepared, study, judged, champion, verdict.decision, version, promoted)


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


def tell_prepared(config: Config, services: Services, prepared: PreparedSet) -> None:
    """Publish where the manifest of the set lies; a folder is no bucket, so its name is empty."""
    place = f"{prepared.location}/{MANIFEST_NAME}"
    bucket, _, key = place.removeprefix("s3://").partition("/")
    in_bucket = place.startswith("s3://")
    about = {
        "bucket": bucket if in_bucket else "",
        "object": key if in_bucket else place,
        "config_hash": config.digest(),
        "v": 1,
    }
    services.events.publish("training-data", about)


def study_folder(config: Config, services: Services, prepared: PreparedSet) -> Path:
    return services.folder / "studies" / study_id(config, prepared.hash)


def run_tuning(
    config: Config,
    data: SeriesArrays,
    folder: Path,
    runs: StudyRuns,
    parent: str,
    narrator: Narrator,
    told: TrialEvents,
    held: Held | None = None,
) -> StudyResult:
    """Run what is not over yet of the study in `folder`."""
    plans = sample_trials(config.models, config.tune.seed)
    over = len(read_outcomes(folder, plans))
    narrator.step(
        "Tune",
        f"study {folder.name}: {len(plans)} trials, at most {config.tune.budget_s:g} s"
        + (f"; {over} of them are over already" if over else ""),
    )
    with narrator.study() as show:

        def on_progress(view: StudyView) -> None:
            told(view)
            show(view)

        study = run_study(
            config, data, folder, runs, parent, resume=True, on_progress=on_progress, held=held
        )
    told.ended(study.outcomes)
    failed = [outcome.trial_id for outcome in study.outcomes if outcome.status == "failed"]
    pending = [outcome.trial_id for outcome in study.outcomes if outcome.status == "pending"]
    narrator.step(
        "Tuned",
        f"{len(plans) - len(failed) - len(pending)} trials in {study.seconds:.0f} s"
        + (f"; failed: {', '.join(failed)} (`flts status` says why)" if failed else "")
        + (f"; {len(pending)} had no time left" if pending else ""),
    )
    return study


def refitted(
    config: Config,
    prepared: PreparedSet,
    data: SeriesArrays,
    folder: Path,
    study: StudyResult,
    narrator: Narrator,
    held: Held | None = None,
) -> list[Finalist]:
    """The best trial of each kind, refitted up to the test span."""
    narrator.step("Refit", "the best of each kind on training and validation span")
    return finalists_of(config, study, refit_best(study, data, folder, config, prepared, held))


def blended(
    config: Config,
    data: SeriesArrays,
    folder: Path,
    study: StudyResult,
    finalists: Sequence[Finalist],
    narrator: Narrator,
) -> Blended:
    """The finalists put together, with weights from the validation forecasts of their trials."""
    made = blend_best(config, data, folder, study, finalists)
    narrator.step("Blend", made.said)
    return made


def finalists_of(
    config: Config, study: StudyResult, refits: Mapping[str, Path] | None = None
) -> list[Finalist]:
    """The best trial of each kind on validation, with its refitted model where there is one.

    Raises DataError, with what went wrong, if no trial of the gate's baseline is usable.
    """
    best = study.best_per_kind()
    if config.gate.baseline not in best:
        errors = sorted({f"{o.trial_id}: {o.error}" for o in study.outcomes if o.error})
        raise DataError(
            f"no usable trial of {config.gate.baseline!r}, the baseline of every decision; correct "
            "what its trials complain about, then train again",
            field="gate.baseline",
            problems=errors[:5] or ["none has ended yet; `flts train --resume` goes on"],
        )
    own = {o.trial_id: o.artifact for o in best.values() if o.artifact is not None}
    folders = own | dict(refits or {})
    return [
        Finalist(
            name, artifact.load(folders[name]), folders[name], outcome.run_id, outcome.valid_score
        )
        for name, outcome in ((o.trial_id, o) for o in best.values())
        if name in own
    ]


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
    config, data = studied(config, prepared, narrator)
    folder = study_folder(config, services, prepared)
    plans = sample_trials(config.models, config.tune.seed)
    study = StudyResult(folder.name, tuple(read_outcomes(folder, plans).values()))
    if not study.outcomes:
        raise Unavailable(
            f"{config.name}: no study of this configuration in {folder}; `flts train` runs one"
        )
    finalists = refitted(config, prepared, data, folder, study, narrator)
    made = blended(config, data, folder, study, finalists, narrator)
    if made.finalist is not None:
        finalists.append(made.finalist)
    return judge_together(config, services, data, finalists, narrator)


def log_refits(runs: StudyRuns, finalists: Sequence[Finalist]) -> None:
    """The models that are judged, beside those of the trials."""
    for finalist in finalists:
        if finalist.run_id is not None:
            runs.log_folder(finalist.run_id, finalist.folder, REFIT_PATH)


def log_judged(runs: StudyRuns, judged: Sequence[Judged]) -> None:
    """Scores and backtest tables into the run of each trial."""
    for one in judged:
        run_id = one.finalist.run_id
        if run_id is not None:
            overall = {f"test/{name}": value for name, value in one.board.overall.items()}
            runs.log_epoch(run_id, 0, overall)
            runs.log_table(run_id, one.board.per_step, "test/per_step")
            runs.log_table(run_id, one.board.pit, "test/pit")
            runs.log_table(run_id, one.board.coverage, "test/coverage")
            runs.log_table(run_id, one.board.bands, "test/bands")
            runs.log_table(run_id, one.board.per_series, TEST_TABLE)


def register(
    services: Services,
    prepared: PreparedSet,
    candidate: Judged,
    champion: Judged | None,
    study: StudyResult,
) -> ModelVersion:
    """Add the candidate to the registry; the champion's own version if it is the same model."""
    finalist, registry = candidate.finalist, services.registry()
    if champion is not None and champion.finalist.digest == finalist.digest:
        return registry.version(champion.finalist.version or 0)
    if finalist.run_id is None:
        raise Unavailable(
            f"{finalist.name} was never logged to MLflow, so it cannot be registered; `flts train "
            "--resume` logs what is missing"
        )
    tags = {"study": study.study_id, "trial": finalist.name}
    if prepared.manifest.snapshot is not None:
        tags["snapshot"] = snapshot_name(prepared.manifest.snapshot)
    return registry.add_version(
        finalist.folder, finalist.run_id, prepared.hash, tags, artifact_path=REFIT_PATH
    )
