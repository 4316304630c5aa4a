"""From judged models to a champion: the gate, the last checks, the record, the promotion.

Design choices: a promotion names the champion it was judged against, so that of two at once one
loses cleanly; a refusal is recorded like a promotion; the model that is promoted is the artifact
that was judged, fetched from where replicas fetch it; a version that was fitted on other data is
judged on the present ones, and refused if it has seen a part of their test span.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from flts_ray.champion import ChampionReader, ChampionRef
from flts_ray.config import Config
from flts_ray.errors import ArtifactError, GateRefused
from flts_ray.evaluate.backtest import instant_text
from flts_ray.evaluate.finalists import (
    Finalist,
    Judged,
    check_comparable,
    common_origins,
    judge_all,
)
from flts_ray.evaluate.gate import Decision, judge
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Task, fit_fully, forecaster
from flts_ray.models.introduce import EACH_ALONE
from flts_ray.models.memory import memory_of, until_of
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, windows_at
from flts_ray.prepare.loading import PreparedSet, open_prepared
from flts_ray.promotions import Entry
from flts_ray.registry import ModelVersion, Registry
from flts_ray.serve.parity import ParityResult, check_parity
from flts_ray.services import Narrator, Services
from flts_ray.tune.space import sample_trials

PARITY_WINDOWS = 8


@dataclass(frozen=True)
class Verdict:
    """A decision after the last checks.

    expected: the champion's version it was judged against. parity: None where it was not asked
    for. may_challenge: refused, but honest and better than the baseline.
    """

    decision: Decision
    expected: int | None
    parity: ParityResult | None = None
    may_challenge: bool = False

    def record(self, version: ModelVersion) -> dict[str, Any]:
        """What is kept for ever about this decision, JSON-ready."""
        found = self.parity
        return self.decision.to_json() | {
            "version": version.version,
            "digest": version.digest,
            "prepared_hash": version.prepared_hash,
            "champion_version": self.expected,
            "parity": None
            if found is None
            else {
                "passed": found.passed,
                "reason": found.reason,
                "windows": found.windows,
                "max_relative_difference": found.max_relative_difference
                if math.isfinite(found.max_relative_difference)
                else None,
            },
        }


@dataclass(frozen=True)
class Promotion:
    """A version that is champion, and why."""

    version: int
    reason: str


def load_champion(services: Services) -> Finalist | None:
    """The champion of the registry as a finalist; None before the first promotion."""
    version = services.registry().champion()
    return None if version is None else load_version(services, version)


def load_version(services: Services, version: ModelVersion) -> Finalist:
    """A registered version, fetched from the store and checked.

    Raises ArtifactError if the stored files are not those that were registered.
    """
    reader = ChampionReader(
        services.mlflow_uri, services.store.root, services.config.name, services.folder / "fetched"
    )
    names = ("version", "digest", "kind", "prepared_hash", "artifact_key", "run_id")
    try:
        folder = reader.fetch(ChampionRef(**{name: getattr(version, name) for name in names}))
    finally:
        reader.close()
    fitted = artifact.load(folder)
    return Finalist(title(version), fitted, folder, version.run_id, version=version.version)


def title(version: ModelVersion) -> str:
    """A registered version as people call it."""
    return f"version {version.version} ({version.kind})"


def judge_together(
    config: Config,
    services: Services,
    data: SeriesArrays,
    finalists: Sequence[Finalist],
    narrator: Narrator,
) -> tuple[tuple[Judged, ...], Judged | None]:
    """Judge finalists, and the champion if there is one, on one set of origins.

    Raises ConfigError for a champion of another task or one that cannot forecast every series.
    """
    champion = load_champion(services)
    if champion is not None:
        check_comparable(champion, task_of(config), data)
    everyone = [*finalists, *([champion] if champion else [])]
    origins = common_origins(data, everyone, config.judge)
    narrator.step("Judge", f"{len(everyone)} models on {len(origins)} windows of the test span")
    judged = judge_all(
        everyone,
        data,
        origins,
        config.judge,
        config.tune.seed,
        lambda done, total: narrator.stage("judge", done, total),
    )
    return judged[: len(finalists)], judged[-1] if champion else None


def task_of(config: Config) -> Task:
    return Task(config.task.horizon, config.task.quantiles)


def decide(
    config: Config,
    data: SeriesArrays,
    candidate: Judged,
    champion: Judged | None,
    judged: Sequence[Judged],
    now: datetime,
) -> Decision:
    """Ask the gate about the candidate; the baseline must be among `judged`."""
    baseline = next(one for one in judged if one.finalist.kind == config.gate.baseline)
    return judge(
        candidate.scored,
        champion.scored if champion else None,
        baseline.scored,
        config.gate,
        horizon=config.task.horizon,
        step_us=data.contract.frequency.step_us,
        leakage=candidate.audit,
        seed=config.tune.seed,
        created_at=now,
    )


def verdict_on(
    config: Config,
    data: SeriesArrays,
    candidate: Judged,
    champion: Judged | None,
    decision: Decision,
    objection: str | None = None,
) -> Verdict:
    """Add what the gate cannot know: an objection of the caller, and whether HTTP forecasts are
    those that were judged."""
    parity = None
    if decision.accepted and objection is None:
        parity = parity_of(config, data, candidate)
        objection = parity.reason
    honest = decision.leakage.passed and objection is None
    better = any(one.role == "baseline" and one.beaten for one in decision.comparisons)
    return Verdict(
        decision if objection is None else refused(decision, objection),
        None if champion is None else champion.finalist.version,
        parity,
        may_challenge=champion is not None and not decision.accepted and honest and better,
    )


def refused(decision: Decision, why: str) -> Decision:
    """The decision overruled: refused for another reason than the gate's."""
    return replace(decision, accepted=False, reason=f"{decision.candidate} is refused: {why}")


def parity_of(config: Config, data: SeriesArrays, candidate: Judged) -> ParityResult:
    """Compare forecasts in memory and over HTTP on a few windows of the test span."""
    origins = candidate.scored.origins
    chosen = np.unique(np.linspace(0, len(origins) - 1, PARITY_WINDOWS).round().astype(int))
    fitted, sample = candidate.finalist.fitted, origins.part(chosen)
    windows = windows_at(
        data, sample.series, sample.positions, fitted.spec.lookback, fitted.spec.task.horizon
    )
    return check_parity(fitted, candidate.finalist.folder, windows, config.name)


def conclude(
    registry: Registry, verdict: Verdict, version: ModelVersion, now: datetime, narrator: Narrator
) -> Entry | None:
    """Promote what was accepted; keep every other decision. None if it was not promoted.

    Raises Conflict if the champion is not the one of the verdict any more.
    """
    record = verdict.record(version)
    if verdict.parity is not None:
        found = verdict.parity
        narrator.step(
            "Parity",
            f"{found.windows} windows over HTTP: "
            + (found.reason or f"at most {found.max_relative_difference:.1g} relative difference"),
        )
    if verdict.decision.accepted:
        entry = registry.promote(version.version, record, verdict.expected, now)
        narrator.step("Promoted", f"{title(version)} is champion")
        return entry
    key = registry.record_decision(record)
    narrator.step("Refused", f"{title(version)}; the decision is kept as {key}")
    if verdict.may_challenge and registry.challenger() != version:
        registry.set_challenger(version.version, now)
        narrator.step("Named", f"{title(version)} is challenger")
    return None


def tell_selected(
    services: Services, version: ModelVersion, entry: Entry, score: float | None = None
) -> None:
    """Publish that a version is champion now, by an entry of the log.

    score: of the test span; None where nobody judged it.
    """
    config = services.config
    about = {
        "run_id": version.run_id,
        "model_uri": f"models:/{config.name}/{version.version}",
        "model_type": version.kind,
        "config_hash": config.digest(),
        "score": score,
        "version": version.version,
        "previous": entry.previous,
        "entry": entry.n,
    }
    services.events.publish("model-selected", about)


def roll_back(services: Services, now: datetime, reason: str) -> Entry:
    """Make the previous champion champion again, and tell of it.

    Raises Unavailable if there is no previous champion, Conflict if the champion changed meanwhile.
    """
    registry = services.registry()
    entry = registry.rollback(now, reason)
    champion = registry.champion()
    # Whoever promoted since then has told of that.
    if champion is not None and champion.version == entry.champion:
        tell_selected(services, champion, entry)
    return entry


def promote_version(
    config: Config,
    services: Services,
    prepared: PreparedSet,
    n: int,
    now: datetime,
    narrator: Narrator,
) -> Promotion:
    """Judge a registered version on `prepared` against the champion of now, and promote it.

    A version that is champion already is left as it is, but for its export, which is made where
    it has none. Raises GateRefused with the reason,
    Conflict if somebody promoted meanwhile, ConfigError if it forecasts another task.
    """
    registry = services.registry()
    version = registry.version(n)
    finalist = load_version(services, version)
    version = registry.export(version, finalist.folder)
    if version == registry.champion():
        return Promotion(n, f"{title(version)} is champion already")
    # One that knows its series alone must know every series of the set.
    every = finalist.fitted.spec.needs_known_series or config.gate.baseline in EACH_ALONE
    data = prepared.arrays() if every else prepared.sample(config.tune.most_series)
    check_comparable(finalist, task_of(config), data)
    with tempfile.TemporaryDirectory() as folder:
        baseline = fit_baseline(config, data, Path(folder) / "model")
        judged, champion = judge_together(config, services, data, [finalist, baseline], narrator)
    candidate = judged[0]
    decision = decide(config, data, candidate, champion, judged, now)
    objection = seen_test_span(version, prepared, data, finalist.fitted)
    verdict = verdict_on(config, data, candidate, champion, decision, objection)
    entry = conclude(registry, verdict, version, now, narrator)
    if entry is None:
        raise GateRefused(verdict.decision.reason)
    tell_selected(services, version, entry, candidate.board.overall[config.judge.score])
    return Promotion(n, verdict.decision.reason)


def fit_baseline(config: Config, data: SeriesArrays, folder: Path) -> Finalist:
    """The gate's baseline as the first trial of a study would fit it, saved in `folder`."""
    kind = config.gate.baseline
    plan = next(p for p in sample_trials(config.models, config.tune.seed) if p.kind == kind)
    compute = Compute(seed=config.tune.seed)
    fitted = fit_fully(kind, data, task_of(config), plan.params, compute)
    artifact.save(forecaster(kind).refit(fitted, data, compute), folder)
    return Finalist(kind, artifact.load(folder), folder)


def seen_test_span(
    version: ModelVersion, prepared: PreparedSet, data: SeriesArrays, fitted: Fitted | None = None
) -> str | None:
    """Why a version cannot be judged honestly on `data`; None if nothing speaks against it.

    What it has used, by its own word where `fitted` tells, else the training and validation span
    of the set it was fitted on, must end before the test span of every series of `data`.
    """
    memory = None if fitted is None else memory_of(fitted)
    if fitted is not None and memory is not None:
        until = until_of(memory, fitted.stats, data.ids)
        return _late(data, np.arange(data.n_series), until)
    if version.prepared_hash == prepared.hash:
        return None
    try:
        known = open_prepared(prepared.root, version.prepared_hash).arrays()
    except ArtifactError:
        return (
            f"it was fitted on the prepared set {version.prepared_hash[:16]}, which cannot be "
            "read, so nobody can tell whether it has seen the test span; train on the present data"
        )
    position = known.stats.row_of
    common = np.array([i for i, name in enumerate(data.ids) if name in position], dtype=np.int64)
    then = np.array([position[data.ids[i]] for i in common], dtype=np.int64)
    return _late(
        data, common, steps_after(known.start_us[then], known.valid_end[then], known.contract)
    )


def _late(data: SeriesArrays, common: np.ndarray, seen: np.ndarray) -> str | None:
    """Which of these series was seen beyond the begin of its test span, in words."""
    begins = steps_after(data.start_us[common], data.valid_end[common], data.contract)
    late = np.flatnonzero(seen > begins)
    if not len(late):
        return None
    at = int(late[0])
    return (
        f"it was fitted on values up to {instant_text(seen[at])} of series "
        f"{data.ids[int(common[at])]}, whose test span begins at {instant_text(begins[at])}; "
        "train on the present data"
    )
