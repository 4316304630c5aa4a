"""The gate: a candidate is accepted if it is honest and better than what we have.

Design choices: it must beat the baseline and the champion, each at the full level, on the same
windows; requiring both needs no correction for two tests (Berger 1982); every way out is a
decision with a sentence, so that refusals are kept like acceptances; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np

from flts_ray.config import GateConfig, Score
from flts_ray.errors import ArtifactError, DataError
from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.bootstrap import (
    block_length,
    cluster_by_instant,
    overlap,
    paired_block_bootstrap,
)
from flts_ray.evaluate.leakage import AuditResult
from flts_ray.evaluate.metrics import window_scores

Role = Literal["baseline", "champion", "member"]
MIN_BLOCKS = 8
"""Fewest horizons beside each other that are evidence; fewer say little about another week."""


@dataclass(frozen=True)
class ScoredWindows:
    """One model's score on every window; `values` float64 [n], their mean is the score."""

    name: str
    kind: str
    score: Score
    origins: Origins
    origin_us: np.ndarray
    values: np.ndarray

    @classmethod
    def of(
        cls, name: str, kind: str, bt: Backtest, scale: np.ndarray, score: Score
    ) -> ScoredWindows:
        """Score a backtest; scale: float64 [n_series]. Raises as `window_scores` does."""
        return cls(name, kind, score, bt.origins, bt.origin_us, window_scores(bt, scale, score))

    @property
    def value(self) -> float:
        return float(self.values.mean())


@dataclass(frozen=True)
class Comparison:
    """The candidate against one rival on the same windows.

    difference: mean score of the candidate minus the rival's (negative: better); lower, upper:
    its interval; effect_percent: the difference in per cent of the rival's score, None if that
    is zero; beaten: p_value below the level and difference below zero.
    """

    role: Role
    rival: str
    rival_kind: str
    rival_score: float
    difference: float
    effect_percent: float | None
    p_value: float
    lower: float
    upper: float
    beaten: bool


@dataclass(frozen=True)
class Decision:
    """Who was judged, against whom, on what evidence, and what was decided.

    instants: different origins in time; block: instants in a bootstrap block; blocks: horizons
    beside each other that the windows amount to; created_at: ISO 8601.
    """

    candidate: str
    candidate_kind: str
    champion: str | None
    baseline: str
    accepted: bool
    reason: str
    score: str
    candidate_score: float
    comparisons: tuple[Comparison, ...]
    level: float
    resamples: int
    seed: int
    windows: int
    instants: int
    block: int
    blocks: int
    leakage: AuditResult
    created_at: str

    def to_json(self) -> dict[str, Any]:
        raw = asdict(self)
        return {**raw, "comparisons": list(raw["comparisons"])}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Decision:
        """The inverse of `to_json`. Raises ArtifactError for anything else."""
        try:
            fields = {
                **raw,
                "comparisons": tuple(Comparison(**one) for one in raw["comparisons"]),
                "leakage": AuditResult(**raw["leakage"]),
            }
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"decision record: not written by this version ({error}); restore the record"
            ) from None


def judge(
    candidate: ScoredWindows,
    champion: ScoredWindows | None,
    baseline: ScoredWindows,
    gate: GateConfig,
    *,
    horizon: int,
    step_us: int,
    leakage: AuditResult,
    seed: int,
    created_at: datetime,
) -> Decision:
    """Decide whether the candidate may become champion.

    All three were scored on the same windows; horizon in steps of `step_us` microseconds;
    leakage: the candidate's audit. Raises DataError if windows or scores differ.
    """
    rivals: dict[Role, ScoredWindows] = {"baseline": baseline}
    if champion is not None:
        rivals["champion"] = champion
    for rival in rivals.values():
        _same_windows(candidate, rival)
    instants = np.unique(candidate.origin_us)
    blocks = len(instants) // overlap(instants, horizon, step_us)
    block = block_length(instants, horizon, step_us)
    comparisons: tuple[Comparison, ...] = ()
    if blocks >= MIN_BLOCKS:
        comparisons = tuple(
            _compare(candidate, rival, role, gate, block, seed) for role, rival in rivals.items()
        )
    refusal = (
        _unfit(candidate, baseline, leakage)
        or _too_few(blocks, len(instants))
        or _no_difference(candidate, list(rivals.values()))
        or _not_better(candidate, comparisons, gate.level)
    )
    return Decision(
        candidate=candidate.name,
        candidate_kind=candidate.kind,
        champion=None if champion is None else champion.name,
        baseline=baseline.name,
        accepted=refusal is None,
        reason=_sentence(candidate, comparisons, refusal, len(instants)),
        score=candidate.score,
        candidate_score=candidate.value,
        comparisons=comparisons,
        level=gate.level,
        resamples=gate.resamples,
        seed=seed,
        windows=len(candidate.values),
        instants=len(instants),
        block=block,
        blocks=blocks,
        leakage=leakage,
        created_at=created_at.isoformat(),
    )


def compare_alone(
    candidate: ScoredWindows,
    rival: ScoredWindows,
    gate: GateConfig,
    *,
    horizon: int,
    step_us: int,
    seed: int,
) -> Comparison | None:
    """The gate's test of a blend against its best member; None where windows are too few.

    Both were scored on the same windows. Raises DataError if windows or scores differ.
    """
    _same_windows(candidate, rival)
    instants = np.unique(candidate.origin_us)
    if len(instants) // overlap(instants, horizon, step_us) < MIN_BLOCKS:
        return None
    block = block_length(instants, horizon, step_us)
    return _compare(candidate, rival, "member", gate, block, seed)


def _same_windows(one: ScoredWindows, other: ScoredWindows) -> None:
    if one.score != other.score:
        raise DataError(
            f"{one.name} is scored by {one.score} and {other.name} by {other.score}; use one score",
            field="judge.score",
        )
    pairs = (
        (one.origins.series, other.origins.series),
        (one.origins.positions, other.origins.positions),
        (one.origin_us, other.origin_us),
    )
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise DataError(
            f"{one.name} and {other.name} were not scored on the same windows "
            f"({len(one.values)} and {len(other.values)}); choose origins once, with the longest "
            "lookback, and backtest both on them"
        )


def _compare(
    candidate: ScoredWindows,
    rival: ScoredWindows,
    role: Role,
    gate: GateConfig,
    block: int,
    seed: int,
) -> Comparison:
    cluster = cluster_by_instant(candidate.origin_us, candidate.values - rival.values)
    found = paired_block_bootstrap(
        cluster.values, block, gate.resamples, seed, cluster.weights, gate.level
    )
    return Comparison(
        role=role,
        rival=rival.name,
        rival_kind=rival.kind,
        rival_score=rival.value,
        difference=found.mean,
        effect_percent=100 * found.mean / rival.value if rival.value else None,
        p_value=found.p_value,
        lower=found.lower,
        upper=found.upper,
        beaten=found.p_value < gate.level and found.mean < 0,
    )


def _unfit(candidate: ScoredWindows, baseline: ScoredWindows, leakage: AuditResult) -> str | None:
    if candidate.kind == baseline.kind:
        return "it is the baseline itself; no other model did better in tuning"
    if not leakage.passed:
        return f"it fails the leakage audit: {leakage.first_violation}"
    return None


def _too_few(blocks: int, instants: int) -> str | None:
    if blocks >= MIN_BLOCKS:
        return None
    return (
        f"too few test windows: {instants} origins amount to {blocks} separate horizons and "
        f"{MIN_BLOCKS} are needed; enlarge split.test or shorten task.horizon"
    )


def _no_difference(candidate: ScoredWindows, rivals: list[ScoredWindows]) -> str | None:
    for rival in rivals:
        if np.array_equal(candidate.values, rival.values):
            return f"no difference: every window scores as with {rival.name}"
    return None


def _not_better(
    candidate: ScoredWindows, comparisons: tuple[Comparison, ...], level: float
) -> str | None:
    failed = [c for c in comparisons if not c.beaten]
    if not failed:
        return None
    return (
        "it does not beat "
        + " nor ".join(f"the {c.role} {_evidence(c)}" for c in failed)
        + f"; p must be below {level:g}"
    )


def _sentence(
    candidate: ScoredWindows,
    comparisons: tuple[Comparison, ...],
    refusal: str | None,
    instants: int,
) -> str:
    subject = f"{candidate.name} ({candidate.score} {candidate.value:.4g})"
    if refusal is not None:
        return f"{subject} is refused: {refusal}"
    beaten = " and ".join(f"the {c.role} {_evidence(c)}" for c in comparisons)
    return (
        f"{subject} is accepted: it beats {beaten} on {len(candidate.values)} windows at "
        f"{instants} origins"
    )


def _evidence(c: Comparison) -> str:
    effect = "" if c.effect_percent is None else f", {c.effect_percent:+.1f} %"
    return f"{c.rival} ({c.rival_score:.4g}{effect}, p = {c.p_value:.4f})"
