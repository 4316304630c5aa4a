"""Update the champion with newer rows: `python -m flts_ray.jobs.update --config FILE`.

What `ray job submit` runs and what `flts update` calls: prepare the newest data, update a copy of
the champion, judge the two, promote the copy.

Design choices: the copy learns from every row between what the champion has seen and the newest
test span, and is judged against the champion on that test span, which neither has seen; what was
judged is what is promoted, byte for byte. Rows of the test span are not added afterwards: the
promoted model would be one that nobody has judged, and no window would be left on which a later
training could be compared with it. They are learned by a later update, once newer rows have moved
the test span on; a shorter `split.test` makes updates fresher and their evidence thinner. Where
`gate.update_learns` is `bands`, nothing but the bands learns, by the steps that the backtest with
bands kept up to date takes; what they saw alone is learned by a later update of all. The gate
asks whether the copy is worse, not whether it is better (`evaluate/gate_update.py`); everything
else (audit, parity over HTTP, expected champion, digest, record, log) is as in a training. With
nothing new, or less than one horizon of it, nothing is done and that is no error; a model that
was refused is registered once however often the job runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from flts_ray.config import Config, load_config
from flts_ray.errors import FltsError, GateRefused
from flts_ray.evaluate.backtest import instant_text
from flts_ray.evaluate.finalists import (
    Finalist,
    Judged,
    check_comparable,
    common_origins,
    judge_all,
)
from flts_ray.evaluate.gate_update import judge_update
from flts_ray.jobs.diff import champion_of
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.jobs.session import open_session
from flts_ray.models import artifact
from flts_ray.models.base import Compute, follower, updater
from flts_ray.models.memory import needed_memory, of_series, positions_of
from flts_ray.narrate import LogNarrator, set_up_logging
from flts_ray.pipeline import REFIT_PATH, log_judged, run_prepare
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import PreparedSet
from flts_ray.promote import (
    Verdict,
    conclude,
    load_version,
    seen_test_span,
    task_of,
    tell_selected,
    title,
    verdict_on,
)
from flts_ray.registry import ModelVersion
from flts_ray.runs import CONFIG_HASH, PREPARED_HASH, StudyRuns
from flts_ray.services import Narrator, Services
from flts_ray.sources.snapshot import snapshot_name

Outcome = Literal["nothing_new", "waiting", "would_promote", "would_refuse", "promoted", "refused"]


@dataclass(frozen=True)
class NewRows:
    """What a set holds that a model has not seen: steps of all series together, most of one
    series, and series that are new."""

    steps: int
    most: int
    series: int

    @classmethod
    def of(cls, champion: Finalist, data: SeriesArrays, *, bands: bool) -> NewRows:
        """bands: they alone learn, and what they have seen is not new to them."""
        fitted, memory = champion.fitted, needed_memory(champion.fitted)
        seen = memory.until_us if bands else memory.learned_us
        until = of_series(seen, fitted.stats, data.ids)
        fresh = np.maximum(data.valid_end - positions_of(until, data.start_us, data.contract), 0)
        known = fitted.stats.row_of
        new = sum(name not in known for name in data.ids)
        return cls(int(fresh.sum()), int(fresh.max(initial=0)), new)

    def __str__(self) -> str:
        new = f", {self.series} new series among them" if self.series else ""
        return f"{self.steps:,} new steps{new}"


@dataclass(frozen=True)
class UpdateReport:
    """What an update came to, in one word and one sentence.

    before: the champion that was updated; version: the registered update, None where nothing was
    registered.
    """

    outcome: Outcome
    reason: str
    before: ModelVersion
    news: NewRows
    version: ModelVersion | None = None

    @property
    def told(self) -> str:
        """What to tell a person."""
        would = {"would_promote": "would be promoted: ", "would_refuse": "would be refused: "}
        return would.get(self.outcome, "") + self.reason


def update_champion(
    config: Config,
    services: Services,
    narrator: Narrator,
    now: datetime,
    *,
    dry_run: bool = False,
) -> UpdateReport:
    """Update the champion, and promote the update unless it is worse.

    dry_run: judge, but register, record and promote nothing. Raises Unavailable without a
    champion, DataError for one that does not tell how far it has seen, ConfigError for one of
    another task, Conflict if somebody promoted meanwhile.
    """
    before = champion_of(services.registry())
    prepared = run_prepare(config, narrator)
    data = prepared.arrays()
    champion = load_version(services, before)
    check_comparable(champion, task_of(config), data)
    news = NewRows.of(champion, data, bands=config.gate.update_learns == "bands")
    idle = _idle(champion, news, data, config.task.horizon)
    if idle is not None:
        return UpdateReport(*idle, before, news)
    narrator.step("Update", f"{title(before)} with {news}")
    with tempfile.TemporaryDirectory() as scratch:
        updated = _updated(config, champion, data, Path(scratch) / "model")
        judged, verdict = _judged(config, prepared, data, (updated, champion), now, narrator)
        accepted, reason = verdict.decision.accepted, verdict.decision.reason
        if dry_run:
            told: Outcome = "would_promote" if accepted else "would_refuse"
            return UpdateReport(told, reason, before, news)
        version = _registered(config, services, prepared, judged, before, news)
    entry = conclude(services.registry(), verdict, version, now, narrator)
    if entry is None:
        return UpdateReport("refused", reason, before, news, version)
    tell_selected(services, version, entry, judged.board.overall[config.judge.score])
    return UpdateReport("promoted", reason, before, news, version)


def _idle(
    champion: Finalist, news: NewRows, data: SeriesArrays, horizon: int
) -> tuple[Outcome, str] | None:
    """Why there is nothing to do, if so."""
    if news.steps == 0:
        memory = needed_memory(champion.fitted)
        newest = instant_text(int(memory.until_us.max()))
        return "nothing_new", (
            f"nothing new: {champion.name} has seen everything before {newest}, and the test span "
            "stays unseen; nothing was changed"
        )
    if news.most < horizon:
        return "waiting", (
            f"{news} for {champion.name}, at most {news.most} of one series; an update begins "
            f"with one horizon of them ({horizon}), nothing was changed"
        )
    return None


def _updated(config: Config, champion: Finalist, data: SeriesArrays, folder: Path) -> Finalist:
    """The updated champion, saved in `folder` and loaded from there."""
    compute = Compute(device=config.tune.where, seed=config.tune.seed)
    fitted = champion.fitted
    kind = fitted.spec.kind
    if config.gate.update_learns == "bands":
        newer = follower(kind).follow(fitted, data)
    else:
        newer = updater(kind).update(fitted, data, compute)
    artifact.save(newer, folder)
    return Finalist(f"update of {champion.name}", artifact.load(folder), folder)


def _judged(
    config: Config,
    prepared: PreparedSet,
    data: SeriesArrays,
    pair: tuple[Finalist, Finalist],
    now: datetime,
    narrator: Narrator,
) -> tuple[Judged, Verdict]:
    """The update against the champion on the windows that neither has seen."""
    origins = common_origins(data, pair, config.judge)
    narrator.step("Judge", f"both on {len(origins)} windows that neither has seen")
    updated, champion = judge_all(pair, data, origins, config.judge, config.tune.seed)
    decision = judge_update(
        updated.scored,
        champion.scored,
        config.gate,
        horizon=config.task.horizon,
        step_us=data.contract.frequency.step_us,
        leakage=updated.audit,
        seed=config.tune.seed,
        created_at=now,
    )
    as_if = ModelVersion(
        0, updated.finalist.kind, updated.finalist.digest, "", prepared.hash, "", now
    )
    objection = seen_test_span(as_if, prepared, data, updated.finalist.fitted)
    return updated, verdict_on(config, data, updated, champion, decision, objection)


def _registered(
    config: Config,
    services: Services,
    prepared: PreparedSet,
    judged: Judged,
    before: ModelVersion,
    news: NewRows,
) -> ModelVersion:
    """The version of the update, registered with a run of its own unless it is there already."""
    registry, finalist = services.registry(), judged.finalist
    for known in registry.versions():
        if known.digest == finalist.digest:
            return known
    runs = StudyRuns.connect(services.mlflow_uri, config.mlflow.experiment or config.name, "update")
    until = instant_text(int(needed_memory(finalist.fitted).until_us.max()))
    about = {
        "trial": "update",
        "updated_from": str(before.version),
        "new_steps": str(news.steps),
        "new_series": str(news.series),
        "trained_until": until,
    }
    hashes = {CONFIG_HASH: config.digest(), PREPARED_HASH: prepared.hash}
    run_id = runs.start_study(about, hashes)
    log_judged(runs, [replace(judged, finalist=replace(finalist, run_id=run_id))])
    runs.log_folder(run_id, finalist.folder, REFIT_PATH)
    runs.end_study(run_id, "FINISHED")
    if prepared.manifest.snapshot is not None:
        about["snapshot"] = snapshot_name(prepared.manifest.snapshot)
    return registry.add_version(finalist.folder, run_id, prepared.hash, about, REFIT_PATH)


def run(config: Config, narrator: Narrator, *, dry_run: bool = False) -> UpdateReport:
    """Open services, update, close them again."""
    with open_session(config) as services:
        now = datetime.now(UTC)
        return update_champion(config, services, narrator, now, dry_run=dry_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the job; returns the exit code: 3 when the gate refused the update."""
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.update", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--dry-run", action="store_true", help="judge, but change nothing")
    given = parser.parse_args(arguments)
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        config = load_config(given.config, given.overrides)
        report = run(config, LogNarrator(), dry_run=given.dry_run)
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was promoted, the champion stays", file=sys.stderr)
        return 130
    print(report.told)
    return GateRefused.exit_code if report.outcome == "refused" else 0


if __name__ == "__main__":
    sys.exit(main())
