"""The blend in the tracking server: a run beside those of the trials.

Design choices: the run is remembered in the study's folder as that of a trial is, so a resumed
study goes on in it; what each series scored on validation is kept with every model, so that two
versions can be compared series by series later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flts_ray.evaluate.finalists import Finalist
from flts_ray.models.blend import KIND, Blend
from flts_ray.runs import StudyRuns
from flts_ray.tune.blend import Blended
from flts_ray.tune.outcome import trial_folder, write_json

VALIDATION_TABLE, TEST_TABLE = "validation/per_series", "test/per_series"
"""Where a run keeps the scores of each series, as `<name>.csv`."""


def logged_blend(
    runs: StudyRuns, parent: str, folder: Path, made: Blended, finalists: Sequence[Finalist]
) -> list[Finalist]:
    """The finalists and the blend, whose run is opened if it has none; folder: the study's own.

    Raises Unavailable when the tracking server is away.
    """
    everyone = list(finalists)
    if made.finalist is not None:
        everyone.append(_with_run(runs, parent, folder, made.finalist))
    boards = {board.model: board for board in made.boards}
    for one in everyone:
        if one.run_id is not None and one.name in boards:
            runs.log_table(one.run_id, boards[one.name].per_series, VALIDATION_TABLE)
    return everyone


def _with_run(runs: StudyRuns, parent: str, folder: Path, blend: Finalist) -> Finalist:
    if blend.run_id is not None:
        return blend
    fitted = blend.fitted
    assert isinstance(fitted, Blend)
    run_id = runs.start_trial(parent, blend.name, KIND, params_of(fitted))
    scores = {} if blend.valid_score is None else {"best_valid_score": blend.valid_score}
    runs.end_trial(run_id, "FINISHED", scores)
    write_json(trial_folder(folder, KIND) / "run.json", {"run_id": run_id})
    return replace(blend, run_id=run_id)


def params_of(blend: Blend) -> dict[str, str]:
    """Weights of all series together, by member, and how many series have others."""
    table = blend.table
    own = int((table.row_of_series > 0).sum())
    rows = {"weight": table.weights[0], "mean_weight": table.mean_weights[0]}
    found = {
        f"{kind}.{name}": f"{weight:.4f}"
        for kind, row in rows.items()
        for name, weight in zip(blend.names, row, strict=True)
    }
    return {**found, "own_rows": str(own)}
