"""The gate of an update: the same model with newer rows must not be worse than it was.

Design choices: an update is not picked from many candidates, so nothing has to be shown to be
better by more than chance; but it must be shown, at the gate's level, not to be worse by more
than a small margin (a one-sided test of non-inferiority; Schuirmann 1987), so that noise and too
little evidence keep the champion; windows, score, bootstrap and leakage audit are those of every
other decision, and so is its record.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np

from flts_ray.config import GateConfig
from flts_ray.evaluate.bootstrap import block_length, overlap
from flts_ray.evaluate.gate import MIN_BLOCKS, Comparison, Decision, ScoredWindows, compare_alone
from flts_ray.evaluate.leakage import AuditResult


def judge_update(
    updated: ScoredWindows,
    champion: ScoredWindows,
    gate: GateConfig,
    *,
    horizon: int,
    step_us: int,
    leakage: AuditResult,
    seed: int,
    created_at: datetime,
) -> Decision:
    """Decide whether the updated champion may replace itself.

    Both were scored on the same windows, which neither has seen; horizon in steps of `step_us`
    microseconds. Raises DataError if windows or scores differ.
    """
    found = compare_alone(updated, champion, gate, horizon=horizon, step_us=step_us, seed=seed)
    comparison = None if found is None else replace(found, role="champion")
    instants = np.unique(updated.origin_us)
    blocks = len(instants) // overlap(instants, horizon, step_us)
    refusal = _refusal(updated, champion, comparison, leakage, gate.update_margin, blocks)
    verb = "is accepted" if refusal is None else "is refused"
    why = refusal or f"it is not worse than {_evidence(comparison, gate)}"
    return Decision(
        candidate=updated.name,
        candidate_kind=updated.kind,
        champion=champion.name,
        baseline=gate.baseline,
        accepted=refusal is None,
        reason=f"{updated.name} ({updated.score} {updated.value:.4g}) {verb}: {why}",
        score=updated.score,
        candidate_score=updated.value,
        comparisons=() if comparison is None else (comparison,),
        level=gate.level,
        resamples=gate.resamples,
        seed=seed,
        windows=len(updated.values),
        instants=len(instants),
        block=block_length(instants, horizon, step_us),
        blocks=blocks,
        leakage=leakage,
        created_at=created_at.isoformat(),
    )


def _refusal(
    updated: ScoredWindows,
    champion: ScoredWindows,
    found: Comparison | None,
    leakage: AuditResult,
    margin: float,
    blocks: int,
) -> str | None:
    if not leakage.passed:
        return f"it fails the leakage audit: {leakage.first_violation}"
    if np.array_equal(updated.values, champion.values):
        return f"no difference: every window scores as with {champion.name}"
    if found is None:
        return (
            f"too few windows that nobody has seen: {len(updated.values)} amount to {blocks} "
            f"separate horizons and {MIN_BLOCKS} are needed; enlarge split.test"
        )
    if found.upper > margin * found.rival_score:
        return (
            f"it may be worse than {found.rival} ({found.rival_score:.4g}) by "
            f"{_percent(found.upper, found)}, and {margin:.1%} is allowed"
        )
    return None


def _evidence(found: Comparison | None, gate: GateConfig) -> str:
    assert found is not None  # without a comparison it is refused
    return (
        f"{found.rival} ({found.rival_score:.4g}; {_percent(found.difference, found)}, at most "
        f"{_percent(found.upper, found)} at a level of {gate.level:g}, "
        f"{gate.update_margin:.1%} is allowed)"
    )


def _percent(difference: float, found: Comparison) -> str:
    if not found.rival_score:
        return f"{difference:+.4g}"
    return f"{100 * difference / found.rival_score:+.2f} %"
