"""Judge on the test span, ask the gate, check parity, promote or keep the refusal.

Design choices: a promotion names the champion it was judged against, so that of two at once one
loses cleanly; a refusal is recorded like a promotion; the model that is promoted is the artifact
that was judged, fetched from where replicas fetch it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from flts_ray.config import Config
from flts_ray.errors import ConfigError, GateRefused
from flts_ray.evaluate.finalists import (
    Finalist,
    Judged,
    check_comparable,
    common_origins,
    judge_one,
)
from flts_ray.evaluate.gate import Decision, judge
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.prepare.arrays import SeriesArrays, windows_at
from flts_ray.registry import ModelVersion
from flts_ray.serve.parity import ParityResult, check_parity
from flts_ray.services import Narrator, Services

PARITY_WINDOWS = 8


def judge_together(
    config: Config,
    services: Services,
    data: SeriesArrays,
    finalists: Sequence[Finalist],
    narrator: Narrator,
) -> tuple[tuple[Judged, ...], Judged | None]:
    """Judge finalists, and the champion if there is one, on one set of origins."""
    champion = load_champion(services)
    if champion is not None:
        check_comparable(champion, Task(config.task.horizon, config.task.quantiles), data.contract)
    everyone = [*finalists, *([champion] if champion else [])]
    origins = common_origins(data, everyone, config.judge)
    narrator.step("Judge", f"{len(everyone)} models on {len(origins)} windows of the test span")
    judged = []
    for done, finalist in enumerate(everyone, start=1):
        judged.append(judge_one(finalist, data, origins, config.judge, config.tune.seed))
        narrator.stage("judge", done, len(everyone))
    return tuple(judged[: len(finalists)]), judged[-1] if champion else None


def load_champion(services: Services) -> Finalist | None:
    """The champion of the registry as a finalist; None before the first promotion."""
    version = services.registry().champion()
    return None if version is None else load_version(services, version, "champion")


def load_version(services: Services, version: ModelVersion, title: str = "version") -> Finalist:
    """A registered version, fetched from the store and checked."""
    folder = services.folder / "fetched" / version.digest
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as draft:
            services.store.download_dir(version.artifact_key, Path(draft) / "model")
            (Path(draft) / "model").rename(folder)
    name = f"{title} {version.version} ({version.kind})"
    fitted = artifact.load(folder)
    return Finalist(name, fitted, folder, version.run_id, version=version.version)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def decide(
    config: Config,
    data: SeriesArrays,
    candidate: Judged,
    champion: Judged | None,
    judged: Sequence[Judged],
    now: datetime,
) -> Decision:
    """Ask the gate about the candidate. Raises ConfigError if the baseline was not judged."""
    baseline = [j for j in judged if j.finalist.kind == config.gate.baseline]
    if not baseline:
        raise ConfigError(
            f"gate.baseline: no usable trial of {config.gate.baseline!r} in the study; look at "
            "its error in `flts status`"
        )
    return judge(
        candidate.scored,
        champion.scored if champion else None,
        baseline[0].scored,
        config.gate,
        horizon=config.task.horizon,
        step_us=data.contract.frequency.step_us,
        leakage=candidate.audit,
        seed=config.tune.seed,
        created_at=now,
    )


def conclude(
    services: Services,
    data: SeriesArrays,
    candidate: Judged,
    champion: Judged | None,
    decision: Decision,
    version: ModelVersion,
    now: datetime,
    narrator: Narrator,
) -> bool:
    """Promote what was accepted and serves what it forecast; keep every other decision."""
    registry = services.registry()
    parity = parity_of(services.config, data, candidate) if decision.accepted else None
    decision = with_parity(decision, parity)
    record: Mapping[str, Any] = decision.to_json() | {
        "version": version.version,
        "prepared_hash": version.prepared_hash,
        "parity": None if parity is None else parity.max_relative_difference,
    }
    narrator.step("Gate", decision.reason)
    if not decision.accepted:
        registry.record_decision(record)
        if candidate.audit.passed and champion is not None and parity is None:
            registry.set_challenger(version.version, now)
        return False
    expected = None if champion is None else champion.finalist.version
    registry.promote(version.version, record, expected, now)
    narrator.step("Promoted", f"version {version.version} ({version.kind}) is champion")
    return True


def parity_of(config: Config, data: SeriesArrays, candidate: Judged) -> ParityResult:
    """Compare forecasts in memory and over HTTP on a few windows of the test span."""
    origins = candidate.backtest.origins
    chosen = np.unique(np.linspace(0, len(origins) - 1, PARITY_WINDOWS).round().astype(int))
    spec = candidate.finalist.fitted.spec
    windows = windows_at(
        data,
        origins.series[chosen],
        origins.positions[chosen],
        spec.lookback,
        spec.task.horizon,
    )
    return check_parity(candidate.finalist.fitted, candidate.finalist.folder, windows, config.name)


def with_parity(decision: Decision, parity: ParityResult | None) -> Decision:
    """The decision, refused if HTTP forecasts are not the judged ones."""
    if parity is None or parity.passed:
        return decision
    return replace(
        decision,
        accepted=False,
        reason=f"{decision.candidate} is refused: {parity.reason}",
    )


def promote_version(
    config: Config,
    services: Services,
    data: SeriesArrays,
    n: int,
    now: datetime,
    narrator: Narrator,
) -> Decision:
    """Judge a registered version again on `data`, against the champion of now, and promote it.

    Raises GateRefused with the reason, Conflict if somebody promoted meanwhile.
    """
    version = services.registry().version(n)
    finalist = load_version(services, version)
    check_comparable(finalist, Task(config.task.horizon, config.task.quantiles), data.contract)
    baseline = fit_baseline(config, data, services)
    judged, champion = judge_together(config, services, data, [finalist, baseline], narrator)
    decision = decide(config, data, judged[0], champion, judged, now)
    if not conclude(services, data, judged[0], champion, decision, version, now, narrator):
        raise GateRefused(decision.reason)
    return decision


def fit_baseline(config: Config, data: SeriesArrays, services: Services) -> Finalist:
    """The gate's baseline, fitted on the same training span with its default parameters."""
    task = Task(config.task.horizon, config.task.quantiles)
    fitted = fit_fully(config.gate.baseline, data, task)
    return Finalist(config.gate.baseline, fitted, services.folder)
