"""The best trials of a study put together: one more finalist, of which nothing is trained.

Design choices: weights come from forecasts of the trials' own models, which learned nothing of
the validation span, and are given to their refits, which did; the windows are those that trials
are scored on, thinned where they would fill the memory; the blend goes before the gate only if,
on blocks of validation that its weights have not seen, it beats its best member by the gate's own
test; else it is shown beside the others. A blend that fails costs the study nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from flts_ray.config import Config
from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.bench import Bench, bench_of
from flts_ray.evaluate.finalists import Finalist, best_on_validation
from flts_ray.evaluate.gate import Comparison, ScoredWindows, compare_alone
from flts_ray.evaluate.scoreboard import Scoreboard, score_board
from flts_ray.evaluate.selection import Selection, select
from flts_ray.models import artifact
from flts_ray.models.base import Fitted
from flts_ray.models.blend import KIND, Blend, WeightTable, blend_of
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.tune.outcome import StudyResult, read_run_id, trial_folder
from flts_ray.tune.study import trial_setting
from flts_ray.tune.trial import describe, scoring_origins

MAX_CELLS = 2**24
"""Most forecast numbers (models, windows, steps, levels) of one bench."""


@dataclass(frozen=True)
class Blended:
    """The blend, if one was made, and what was found.

    finalist: its `valid_score` is None where it did not beat its best member. boards: scores of
    the members and, last, the blend on the validation windows. said: one line for a person.
    """

    finalist: Finalist | None
    boards: tuple[Scoreboard, ...]
    said: str


def blend_best(
    config: Config,
    data: SeriesArrays,
    folder: Path,
    study: StudyResult,
    finalists: Sequence[Finalist],
) -> Blended:
    """Blend the best trials of a study.

    folder: the study's own; the blend is left in `folder/artifacts/blend/refit`. finalists: the
    refitted models, named as the trials. Deterministic; whatever goes wrong is logged.
    """
    if not config.blend.enabled:
        return Blended(None, (), "off (blend.enabled)")
    refits = {one.name: one for one in finalists}
    sources = {o.trial_id: o.artifact for o in study.best_per_kind().values()}
    paths = {name: path for name, path in sources.items() if path is not None and name in refits}
    if len(paths) < 2:
        return Blended(None, (), "none: it takes two models")
    try:
        return _blended(config, data, folder, paths, refits)
    except Exception as error:  # noqa: BLE001 - models may raise anything; it is reported
        why = describe(error)
        structlog.get_logger().warning("blend_failed", error=why)
        return Blended(None, (), f"none: {why}")


def blend_folder(folder: Path) -> Path:
    return trial_folder(folder, KIND) / "refit"


def _blended(
    config: Config,
    data: SeriesArrays,
    folder: Path,
    paths: Mapping[str, Path],
    refits: Mapping[str, Finalist],
) -> Blended:
    trained = {name: artifact.load(path) for name, path in paths.items()}
    bench = bench_of(
        trained, data, validation_origins(config, data, folder, list(trained.values()))
    )
    boards = [
        score_board(name, trained[name].spec.kind, bt, data.stats)
        for name, bt in zip(bench.names, bench.backtests, strict=True)
    ]
    step_us, score = data.contract.frequency.step_us, config.judge.score
    chosen = select(
        bench,
        score,
        config.blend.max_members,
        config.task.horizon * step_us,
        per_series=config.blend.per_series,
    )
    if chosen is None:
        return Blended(None, tuple(boards), "none: the validation span is too short for blocks")
    if chosen.single:
        name = bench.names[int(np.argmax(chosen.weights[0]))]
        return Blended(None, tuple(boards), f"none: {name} alone is as good on validation")
    blend = fitted_blend(bench.names, chosen, {name: refits[name].fitted for name in paths})
    place = blend_folder(folder)
    artifact.save(blend, place)
    rival = best_on_validation([refits[name] for name in paths])
    found = against(config, data, bench, chosen.judged, rival)
    beaten = found is not None and found.beaten
    boards.append(score_board(KIND, KIND, chosen.judged, data.stats))
    valid_score = boards[-1].overall[score] if beaten else None
    loaded, run_id = artifact.load(place), read_run_id(folder, KIND)
    finalist = Finalist(KIND, loaded, place, run_id, valid_score)
    return Blended(finalist, tuple(boards), _sentence(blend, found))


def validation_origins(
    config: Config, data: SeriesArrays, folder: Path, models: Sequence[Fitted]
) -> Origins:
    """Origins of the validation span that every model can forecast, as trials are scored on.

    Raises DataError if no window fits.
    """
    setting = trial_setting(config, data, folder)
    longest = max(setting.lookback, *(model.spec.lookback for model in models))
    origins = scoring_origins(data, setting, longest)
    cells = len(models) * config.task.horizon * (1 + len(config.task.quantiles))
    return origins.thinned(max(1, MAX_CELLS // cells))


def fitted_blend(names: Sequence[str], chosen: Selection, members: Mapping[str, Fitted]) -> Blend:
    """The chosen weights over these models. Row 0 serves all series without a row of their own,
    and those that the models know beyond the ones that weights were chosen on."""
    table = WeightTable.of(chosen.weights, chosen.row_of_series, chosen.shift, chosen.mean_weights)
    others = len(members[names[0]].stats.ids) - len(chosen.row_of_series)
    if others:
        table = table.with_new(others, np.zeros(len(names), bool))
    return blend_of([(name, members[name]) for name in names], table)


def against(
    config: Config, data: SeriesArrays, bench: Bench, judged: Backtest, rival: Finalist
) -> Comparison | None:
    """The blend against its best member on validation; None where windows are too few."""
    score, scale = config.judge.score, data.stats.scale
    alone = bench.backtests[bench.names.index(rival.name)]
    return compare_alone(
        ScoredWindows.of(KIND, KIND, judged, scale, score),
        ScoredWindows.of(rival.name, rival.kind, alone, scale, score),
        config.gate,
        horizon=config.task.horizon,
        step_us=data.contract.frequency.step_us,
        seed=config.tune.seed,
    )


def _sentence(blend: Blend, found: Comparison | None) -> str:
    table = blend.table
    shares = zip(blend.names, table.weights[0], table.mean_weights[0], strict=True)
    parts = [
        f"{name} {level:.2f}" + (f" (mean {mean:.2f})" if abs(mean - level) >= 0.005 else "")
        for name, level, mean in shares
        if level > 0 or mean > 0
    ]
    own = int((blend.table.row_of_series > 0).sum())
    said = " + ".join(parts)
    if own:
        said += f"; {own} of {len(blend.stats.ids)} series have weights of their own"
    if found is None:
        return f"{said}; validation is too short to compare it with its best member"
    verdict = "beats" if found.beaten else "does not beat"
    effect = "" if found.effect_percent is None else f"{found.effect_percent:+.1f} %, "
    return f"{said}; on validation it {verdict} {found.rival} ({effect}p = {found.p_value:.4f})"
