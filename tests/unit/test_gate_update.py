"""The gate of an update: not worse by more than a margin, shown and not assumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.config import GateConfig
from flts_ray.errors import DataError
from flts_ray.evaluate.gate import Decision, ScoredWindows
from flts_ray.evaluate.gate_update import judge_update
from flts_ray.evaluate.leakage import AuditResult
from tests.unit.test_gate import CLEAN, HORIZON, HOUR_US, NOON, scored

CHAMPION = scored("version 3 (gru)", 0.8)


def moved(by: float, noise: float = 0.001) -> ScoredWindows:
    drawn = np.random.default_rng(7).standard_normal(len(CHAMPION.values))
    values = CHAMPION.values + by + noise * (drawn - drawn.mean())
    return replace(CHAMPION, name="update of version 3 (gru)", values=values)


def decide(updated: ScoredWindows, margin: float = 0.01, leakage: AuditResult = CLEAN) -> Decision:
    gate = GateConfig(update_margin=margin)
    return judge_update(
        updated, CHAMPION, gate,
        horizon=HORIZON, step_us=HOUR_US, leakage=leakage, seed=0, created_at=NOON,
    )  # fmt: skip


def test_an_update_that_is_as_good_is_accepted_with_its_evidence() -> None:
    decision = decide(moved(0.0))
    assert decision.accepted
    assert decision.champion == CHAMPION.name
    assert [c.role for c in decision.comparisons] == ["champion"]
    assert decision.reason.startswith("update of version 3 (gru) (mase 0.8")
    assert "is accepted: it is not worse than version 3 (gru)" in decision.reason
    assert "1.0% is allowed" in decision.reason
    assert Decision.from_json(decision.to_json()) == decision


def test_a_better_one_is_accepted_even_without_a_margin() -> None:
    assert decide(moved(-0.01), margin=0.0).accepted


def test_one_that_is_worse_by_more_than_the_margin_is_refused() -> None:
    decision = decide(moved(0.02))
    assert not decision.accepted
    assert "is refused: it may be worse than version 3 (gru)" in decision.reason
    assert decide(moved(0.02), margin=0.05).accepted


def test_noise_is_no_evidence_that_it_is_not_worse() -> None:
    assert not decide(moved(0.0, noise=0.2)).accepted


def test_a_leaking_update_is_refused_however_good() -> None:
    decision = decide(moved(-0.1), leakage=AuditResult(False, 3, "the mean changed"))
    assert not decision.accepted
    assert "leakage audit: the mean changed" in decision.reason


def test_the_same_forecasts_are_no_difference() -> None:
    assert "no difference" in decide(replace(CHAMPION, name="update")).reason


def test_too_few_windows_say_what_to_change() -> None:
    few = [replace(s, origins=s.origins.part(slice(0, 5)), origin_us=s.origin_us[:5],
                   values=s.values[:5]) for s in (moved(-0.1), CHAMPION)]  # fmt: skip
    decision = judge_update(
        few[0], few[1], GateConfig(),
        horizon=HORIZON, step_us=HOUR_US, leakage=CLEAN, seed=0, created_at=NOON,
    )  # fmt: skip
    assert not decision.accepted
    assert "too few windows that nobody has seen: 5 amount to 5" in decision.reason
    assert decision.comparisons == ()


def test_other_windows_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="not scored on the same windows"):
        decide(replace(moved(0.0), origin_us=CHAMPION.origin_us + 1))
