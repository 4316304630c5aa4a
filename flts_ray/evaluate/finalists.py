"""The few models that meet on the test span: the same origins, the same audit, one look.

Design choices: a finalist brings nothing but its artifact, so what is judged is what would be
served; origins come from the longest lookback among all of them, rivals included, so every
number is of the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path

from flts_ray.config import JudgeConfig
from flts_ray.errors import ConfigError
from flts_ray.evaluate.backtest import Backtest, Origins, backtest, choose_origins
from flts_ray.evaluate.gate import ScoredWindows
from flts_ray.evaluate.leakage import AuditResult, leakage_audit
from flts_ray.evaluate.scoreboard import Scoreboard, score_board
from flts_ray.models.base import Fitted, Task
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays


@dataclass(frozen=True)
class Finalist:
    """A model to be judged.

    run_id: its tracking run; valid_score: of its trial; version: if it is registered already.
    """

    name: str
    fitted: Fitted
    folder: Path
    run_id: str | None = None
    valid_score: float | None = None
    version: int | None = None

    @property
    def kind(self) -> str:
        return self.fitted.spec.kind


@dataclass(frozen=True)
class Judged:
    """What the test span said about one finalist."""

    finalist: Finalist
    backtest: Backtest
    board: Scoreboard
    scored: ScoredWindows
    audit: AuditResult


def common_origins(
    data: SeriesArrays, finalists: Sequence[Finalist], judge: JudgeConfig
) -> Origins:
    """Origins of the test span that every finalist can forecast.

    Without a configured stride it is the horizon, or the next number that shares no factor with
    the season, so that origins visit every time of day. Raises DataError if no window fits.
    """
    longest = max(finalist.fitted.spec.lookback for finalist in finalists)
    horizon = finalists[0].fitted.spec.task.horizon
    stride = judge.stride or horizon
    while judge.stride is None and gcd(stride, data.contract.season) > 1:
        stride += 1
    return choose_origins(data, "test", longest, horizon, stride, judge.max_origins)


def judge_one(
    finalist: Finalist, data: SeriesArrays, origins: Origins, judge: JudgeConfig, seed: int
) -> Judged:
    """Backtest, score and audit one finalist on the given origins."""
    result = backtest(finalist.fitted, data, origins)
    return Judged(
        finalist=finalist,
        backtest=result,
        board=score_board(finalist.name, finalist.kind, result, data.stats),
        scored=ScoredWindows.of(
            finalist.name, finalist.kind, result, data.stats.scale, judge.score
        ),
        audit=leakage_audit(finalist.fitted, data, origins, seed),
    )


def check_comparable(champion: Finalist, task: Task, contract: Contract) -> None:
    """Raises ConfigError unless the champion forecasts what the candidates forecast."""
    spec = champion.fitted.spec
    differing = [
        f"{name} {mine!r} against {theirs!r}"
        for name, mine, theirs in [
            ("horizon", task.horizon, spec.task.horizon),
            ("quantiles", task.levels, spec.task.levels),
            ("frequency", contract.freq, spec.contract.freq),
            ("targets", contract.targets, spec.contract.targets),
            ("known_future", contract.future, spec.contract.future),
            ("past", contract.past, spec.contract.past),
            ("static", contract.static, spec.contract.static),
        ]
        if mine != theirs
    ]
    if differing:
        raise ConfigError(
            f"{champion.name} cannot be judged on the windows of this configuration: "
            f"{'; '.join(differing)}. Give the new task a `name` of its own, so that it has a "
            "champion of its own"
        )
