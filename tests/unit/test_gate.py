from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from flts_ray.config import GateConfig
from flts_ray.errors import ArtifactError, DataError
from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.gate import Decision, ScoredWindows, compare_alone, judge
from flts_ray.evaluate.leakage import AuditResult

HOUR_US = 3_600_000_000
HORIZON = 24
CLEAN = AuditResult(True, 32)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def scored(
    name: str, level: float, kind: str = "gru", days: int = 40, seed: int = 0
) -> ScoredWindows:
    """Two series with daily origins; the score varies about `level`."""
    values = level + 0.1 * np.random.default_rng(seed).standard_normal(2 * days)
    origins = Origins(np.repeat([0, 1], days), np.tile(np.arange(days) * 24, 2))
    return ScoredWindows(name, kind, "mase", origins, origins.positions * HOUR_US, values)


BASELINE = scored("naive", 1.0, "seasonal_naive", seed=1)


def decide(
    candidate: ScoredWindows,
    champion: ScoredWindows | None = None,
    baseline: ScoredWindows = BASELINE,
    leakage: AuditResult = CLEAN,
) -> Decision:
    return judge(
        candidate,
        champion,
        baseline,
        GateConfig(),
        horizon=HORIZON,
        step_us=HOUR_US,
        leakage=leakage,
        seed=0,
        created_at=NOON,
    )


def test_a_better_candidate_is_accepted_with_its_evidence() -> None:
    decision = decide(scored("new", 0.7), scored("old", 0.8, seed=2))
    assert decision.accepted
    assert [c.role for c in decision.comparisons] == ["baseline", "champion"]
    assert all(c.beaten and c.p_value < 0.05 and c.upper < 0 for c in decision.comparisons)
    assert decision.comparisons[0].effect_percent == pytest.approx(-30, abs=3)
    assert (decision.windows, decision.instants, decision.blocks) == (80, 40, 40)
    assert "accepted" in decision.reason and "old" in decision.reason and "80" in decision.reason


def test_the_first_candidate_has_only_the_baseline_to_beat() -> None:
    decision = decide(scored("new", 0.7))
    assert decision.accepted and decision.champion is None and len(decision.comparisons) == 1


def test_a_candidate_worse_than_the_baseline_is_refused() -> None:
    decision = decide(scored("new", 1.2))
    assert not decision.accepted
    assert "does not beat the baseline naive" in decision.reason
    assert decision.comparisons[0].p_value > 0.99 and decision.comparisons[0].lower > 0


def test_beating_the_baseline_is_not_enough_against_the_champion() -> None:
    decision = decide(scored("new", 0.7), scored("old", 0.7, seed=2))
    assert not decision.accepted
    assert [c.beaten for c in decision.comparisons] == [True, False]
    assert "does not beat the champion old" in decision.reason


def test_beating_the_champion_is_not_enough_against_the_baseline() -> None:
    decision = decide(scored("new", 1.2), scored("old", 1.5, seed=2))
    assert not decision.accepted and [c.beaten for c in decision.comparisons] == [False, True]


def test_a_leaking_candidate_is_refused_however_good() -> None:
    leakage = AuditResult(False, 5, "series s0 changes")
    decision = decide(scored("new", 0.1), leakage=leakage)
    assert not decision.accepted and "series s0 changes" in decision.reason
    assert decision.leakage == leakage


def test_the_baseline_is_no_candidate() -> None:
    decision = decide(scored("other", 0.1, "seasonal_naive"))
    assert not decision.accepted and "baseline itself" in decision.reason


def test_the_champion_again_is_no_difference() -> None:
    champion = scored("old", 0.7)
    decision = decide(replace(champion, name="new"), champion)
    assert not decision.accepted
    assert "no difference: every window scores as with old" in decision.reason


def test_too_few_windows_say_what_to_change() -> None:
    few = [scored("new", 0.5, days=7), scored("naive", 1.0, "seasonal_naive", days=7, seed=1)]
    decision = decide(few[0], baseline=few[1])
    assert not decision.accepted and decision.comparisons == () and decision.blocks == 7
    assert "7 origins" in decision.reason and "enlarge split.test" in decision.reason


def test_overlapping_origins_are_no_more_evidence() -> None:
    hourly = [
        replace(s, origin_us=s.origins.positions * HOUR_US // 24)
        for s in (scored("new", 0.5), BASELINE)
    ]
    decision = decide(hourly[0], baseline=hourly[1])
    assert not decision.accepted and (decision.instants, decision.blocks) == (40, 1)


def test_eight_separate_horizons_are_enough() -> None:
    eight = [scored("new", 0.5, days=8), scored("naive", 1.0, "seasonal_naive", days=8, seed=1)]
    assert decide(eight[0], baseline=eight[1]).accepted


@pytest.mark.parametrize("field", ["series", "positions", "origin_us", "length"])
def test_other_windows_cannot_be_compared(field: str) -> None:
    other = scored("old", 0.8, days=39 if field == "length" else 40)
    if field == "origin_us":
        other = replace(other, origin_us=other.origin_us + 1)
    elif field != "length":
        other = replace(other, origins=replace(other.origins, **{field: other.origins.series + 1}))
    with pytest.raises(DataError, match="same windows"):
        decide(scored("new", 0.7), other)


def test_other_scores_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="scored by"):
        decide(replace(scored("new", 0.7), score="mae"))


def test_a_decision_survives_json() -> None:
    for decision in (decide(scored("new", 0.7), scored("old", 0.8)), decide(scored("new", 1.2))):
        text = json.dumps(decision.to_json(), allow_nan=False)
        assert Decision.from_json(json.loads(text)) == decision
    assert json.loads(text)["created_at"] == "2024-05-01T12:00:00+00:00"


def test_a_rival_without_error_has_no_effect_in_per_cent() -> None:
    perfect = replace(BASELINE, values=np.zeros(80))
    decision = decide(scored("new", 0.7), baseline=perfect)
    assert not decision.accepted and decision.comparisons[0].effect_percent is None
    assert json.dumps(decision.to_json(), allow_nan=False)


@pytest.mark.parametrize("change", [{"leakage": None}, {"extra": 1}, {"comparisons": [{}]}])
def test_a_foreign_record_is_refused(change: dict[str, object]) -> None:
    raw = {**decide(scored("new", 0.7)).to_json(), **change}
    with pytest.raises(ArtifactError, match="decision record"):
        Decision.from_json(raw)


def test_windows_are_scored_from_a_backtest() -> None:
    bt = Backtest(
        origins=Origins(np.array([0, 1]), np.array([5, 5])),
        origin_us=np.array([9, 9]),
        levels=(0.5,),
        mean=np.zeros((2, 1)),
        quantiles=np.zeros((2, 1, 1)),
        actual=np.array([[3.0], [8.0]]),
    )
    windows = ScoredWindows.of("new", "gru", bt, np.array([1.0, 2.0]), "mase")
    assert windows.values.tolist() == [3.0, 4.0] and windows.value == 3.5


def test_a_blend_meets_its_best_member_with_the_same_test() -> None:
    blend, member = scored("blend", 0.7, "blend"), scored("old", 0.8, seed=2)
    about = {"horizon": HORIZON, "step_us": HOUR_US, "seed": 0}
    alone = compare_alone(blend, member, GateConfig(), **about)
    assert alone is not None
    (_, champion) = decide(blend, member).comparisons
    assert replace(alone, role="champion") == champion
    assert alone.role == "member"
    same = compare_alone(member, member, GateConfig(), **about)
    assert same is not None
    assert not same.beaten
    few, other = (scored(name, 0.7, days=7) for name in ("blend", "old"))
    assert compare_alone(few, other, GateConfig(), **about) is None
    with pytest.raises(DataError, match="same windows"):
        compare_alone(blend, scored("old", 0.8, days=30), GateConfig(), **about)
