"""The few models that meet on the test span: the same origins, the same audit, one look.

Design choices: a finalist brings nothing but its artifact, so what is judged is what would be
served; origins come from the longest lookback among all of them, the champion included, so every
number is of the same windows; models are judged one after the other, because the leakage audit
changes the data in place and puts them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path

from flts_ray.config import JudgeConfig
from flts_ray.errors import ConfigError, DataError
from flts_ray.evaluate.backtest import Origins, backtest, choose_origins
from flts_ray.evaluate.gate import ScoredWindows
from flts_ray.evaluate.leakage import AuditResult, leakage_audit
from flts_ray.evaluate.rolling import rolling_backtest
from flts_ray.evaluate.scoreboard import Scoreboard, score_board
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Task
from flts_ray.models.memory import seen_positions
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays


@dataclass(frozen=True)
class Finalist:
    """A model to be judged; `folder` holds its artifact.

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

    @property
    def digest(self) -> str:
        """Equal for two models exactly if they are the same bytes."""
        return artifact.digest(self.folder)


@dataclass(frozen=True)
class Judged:
    """What the test span said about one finalist; its forecasts, which of many series are larger
    than the set itself, are not kept."""

    finalist: Finalist
    board: Scoreboard
    scored: ScoredWindows
    audit: AuditResult

    @property
    def name(self) -> str:
        return self.finalist.name


def best_on_validation(finalists: Sequence[Finalist]) -> Finalist:
    """The candidate: the lowest validation score; of equal ones the first name.

    Chosen before anything is judged, so the test span cannot have a say.
    """

    def rank(finalist: Finalist) -> tuple[bool, float, str]:
        score = finalist.valid_score
        return (score is None, 0.0 if score is None else score, finalist.name)

    return min(finalists, key=rank)


def common_origins(
    data: SeriesArrays, finalists: Sequence[Finalist], judge: JudgeConfig
) -> Origins:
    """Origins of the test span that every finalist can forecast and none has learned from.

    Without a configured stride it is the horizon, or the next number that shares no factor with
    the season, so that origins visit every time of day. Raises DataError if no window fits, or
    none is left that nobody has seen.
    """
    longest = max(finalist.fitted.spec.lookback for finalist in finalists)
    horizon = finalists[0].fitted.spec.task.horizon
    stride = judge.stride or horizon
    while judge.stride is None and gcd(stride, data.contract.season) > 1:
        stride += 1
    origins = choose_origins(data, "test", longest, horizon, stride, judge.max_origins)
    return _unseen(data, finalists, origins)


def _unseen(data: SeriesArrays, finalists: Sequence[Finalist], origins: Origins) -> Origins:
    """Origins whose targets lie after all that any finalist has seen of their series."""
    for finalist in finalists:
        seen = seen_positions(finalist.fitted, data)
        if seen is None:  # who judges an older artifact asks its prepared set
            continue
        kept = origins.positions >= seen[origins.series]
        if not kept.any():
            raise DataError(
                f"{finalist.name} has seen every window of the test span, so none of them can "
                "judge it; wait for newer rows, or shorten split.test if its own was shorter",
                field="split.test",
            )
        origins = origins.part(kept)
    return origins


def judge_all(
    finalists: Sequence[Finalist],
    data: SeriesArrays,
    origins: Origins,
    judge: JudgeConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Judged, ...]:
    """Judge every finalist on the given origins, in their order.

    Nothing else may read `data` meanwhile; it is unchanged afterwards. progress: told how many
    are done, of how many. Raises DataError for forecasts that are not finite.
    """
    judged = []
    for done, finalist in enumerate(finalists, start=1):
        judged.append(judge_one(finalist, data, origins, judge, seed))
        progress(done, len(finalists))
    return tuple(judged)


def judge_one(
    finalist: Finalist, data: SeriesArrays, origins: Origins, judge: JudgeConfig, seed: int
) -> Judged:
    """Backtest, score and audit one finalist on the given origins.

    Scores and audit are of the model as it is; a second backtest shows its bands kept up to date.
    """
    board, scored = _scores(finalist, data, origins, judge)
    return Judged(finalist, board, scored, leakage_audit(finalist.fitted, data, origins, seed))


def _scores(
    finalist: Finalist, data: SeriesArrays, origins: Origins, judge: JudgeConfig
) -> tuple[Scoreboard, ScoredWindows]:
    name, kind, every = finalist.name, finalist.kind, judge.update_every
    result = backtest(finalist.fitted, data, origins)
    scored = ScoredWindows.of(name, kind, result, data.stats.scale, judge.score)
    kept = None if every == 0 else rolling_backtest(finalist.fitted, data, origins, every)
    step_us = data.contract.frequency.step_us
    return score_board(name, kind, result, data.stats, kept, step_us), scored


def check_comparable(registered: Finalist, task: Task, data: SeriesArrays) -> None:
    """Raises ConfigError unless a registered model forecasts what the candidates forecast, for
    every series of `data`, and some of its test span is new to it."""
    spec = registered.fitted.spec
    differing = _differences(task, spec.task, data.contract, spec.contract)
    if differing:
        raise ConfigError(
            f"{registered.name} cannot be judged on the windows of this configuration: "
            f"{'; '.join(differing)}. Give the new task a `name` of its own, so that it has a "
            "champion of its own"
        )
    unknown = sorted(set(data.ids) - set(registered.fitted.stats.ids))
    if spec.needs_known_series and unknown:
        named = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ConfigError(
            f"{registered.name} forecasts only series it was fitted on, and {len(unknown)} of "
            f"{data.n_series} are new to it: {named}. Leave them out of data.path, go back to a "
            "champion that takes any series (`flts history`, `flts rollback`), or give the "
            "configuration a `name` of its own"
        )
    seen = seen_positions(registered.fitted, data)
    if seen is not None and (seen + task.horizon > data.lengths).all():
        raise ConfigError(
            f"{registered.name} has seen every window of the test span, so nobody can be compared "
            "with it; give rows that are newer than its own, or give the configuration a `name` "
            "of its own"
        )


def _differences(mine: Task, theirs: Task, here: Contract, there: Contract) -> list[str]:
    """What keeps forecasts of one task from being compared with those of another."""
    pairs = [
        ("horizon", mine.horizon, theirs.horizon),
        ("quantiles", mine.levels, theirs.levels),
        ("frequency", here.freq, there.freq),
        ("targets", here.targets, there.targets),
        ("time_zone", here.time_zone, there.time_zone),
        ("holidays", here.holidays, there.holidays),
        ("calendar and known_future", here.future, there.future),
        ("past", here.past, there.past),
        ("static", here.static, there.static),
    ]
    if here.units and there.units:  # a label that was added later changes no number
        pairs.append(("units", here.units, there.units))
    return [f"{name} {ours!r} against {its!r}" for name, ours, its in pairs if ours != its]
