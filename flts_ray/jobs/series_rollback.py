"""One series of the champion goes back to an older version; all others stay as they are.

Design choices: nothing is trained and nothing is judged, as in a rollback of the whole champion:
somebody has seen bad forecasts; it is a version of its own all the same, promoted against the
champion it was made from, so history shows it, a plain rollback takes it back, and a promotion
meanwhile wins; before that its forecasts over HTTP must be those in memory; scores that the two
versions' runs keep of the same data are carried over, because the forecasts are the same.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.errors import GateRefused
from flts_ray.jobs.diff import champion_of
from flts_ray.models import artifact
from flts_ray.models.blend import Blend
from flts_ray.models.blend_edit import as_blend, with_series_from
from flts_ray.pipeline import REFIT_PATH
from flts_ray.prepare.arrays import SeriesArrays, windows_at
from flts_ray.prepare.loading import find_prepared
from flts_ray.promote import load_version, tell_selected, title
from flts_ray.promotions import Entry
from flts_ray.registry import ModelVersion
from flts_ray.run_tables import run_table
from flts_ray.runs import PREPARED_HASH, StudyRuns
from flts_ray.serve.parity import ParityResult, check_parity
from flts_ray.services import Services
from flts_ray.tune.blend_log import TEST_TABLE, VALIDATION_TABLE, params_of

CHECKED_SERIES = 8
"""Most series whose forecasts over HTTP are compared."""


@dataclass(frozen=True)
class SeriesRollback:
    """version: the new champion; before: the one it was made from; entry: of the log."""

    version: ModelVersion
    before: ModelVersion
    entry: Entry


def rollback_series(
    services: Services, series: str, to: int, now: datetime, reason: str
) -> SeriesRollback:
    """Make a version that forecasts `series` as version `to` does, and promote it.

    Raises DataError for a series or version that is not there or where nothing would change,
    Unavailable without a champion, Conflict if the champion changed meanwhile, GateRefused if
    forecasts over HTTP are not those in memory.
    """
    registry = services.registry()
    champion = champion_of(registry)
    older = registry.version(to)
    current, source = (
        as_blend(load_version(services, one).fitted, one.kind) for one in (champion, older)
    )
    made = with_series_from(current, source, series, f"@v{to}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        artifact.save(made, folder)
        parity = _parity(services, champion, made, folder, series)
        if parity is not None and not parity.passed:
            raise GateRefused(f"series {series} does not go back: {parity.reason}")
        run_id = _logged(services, made, folder, champion, older, series)
        about = {"trial": "blend", "series": series, "series_from": str(to)}
        version = registry.add_version(
            folder, run_id, champion.prepared_hash, about, artifact_path=REFIT_PATH
        )
    record = _record(version, champion, older, series, now, reason)
    entry = registry.promote(version.version, record, champion.version, now)
    tell_selected(services, version, entry)
    return SeriesRollback(version, champion, entry)


def _record(
    version: ModelVersion,
    champion: ModelVersion,
    older: ModelVersion,
    series: str,
    now: datetime,
    reason: str,
) -> dict[str, Any]:
    """What is kept for ever; there was no test, so there is none in it."""
    return {
        "accepted": True,
        "by_hand": True,
        "reason": f"series {series} back to {title(older)}, without a test: {reason}",
        "series": series,
        "series_from": older.version,
        "version": version.version,
        "digest": version.digest,
        "prepared_hash": version.prepared_hash,
        "champion_version": champion.version,
        "created_at": now.isoformat(),
    }


def _parity(
    services: Services, champion: ModelVersion, made: Blend, folder: Path, series: str
) -> ParityResult | None:
    """Forecasts over HTTP against those in memory; None where the prepared set is gone."""
    prepared = find_prepared(services.store.root, champion.prepared_hash)
    if prepared is None:
        return None
    others = [name for name in made.stats.ids if name != series]
    data = prepared.arrays([series, *others[: CHECKED_SERIES - 1]])
    at = _last_origins(data, made.spec.lookback, made.spec.task.horizon)
    if not len(at[0]):
        return None
    windows = windows_at(data, *at, made.spec.lookback, made.spec.task.horizon)
    return check_parity(made, folder, windows, services.config.name)


def _last_origins(data: SeriesArrays, lookback: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The last origin of each series whose history is whole."""
    found = []
    for i in range(data.n_series):
        y = data.y[data.rows(i)]
        last = len(y) - horizon
        if last >= lookback and np.isfinite(y[last - lookback : last]).all():
            found.append((i, last))
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _logged(
    services: Services,
    made: Blend,
    folder: Path,
    champion: ModelVersion,
    older: ModelVersion,
    series: str,
) -> str:
    """The run of the new version, with its model and the scores that still hold."""
    config = services.config
    runs = StudyRuns.connect(services.mlflow_uri, config.mlflow.experiment or config.name, "series")
    about = {"series": series, "series_from": str(older.version), **params_of(made)}
    run_id = runs.start_study(about, {PREPARED_HASH: champion.prepared_hash})
    for name in (VALIDATION_TABLE, TEST_TABLE):
        tables = [run_table(services.mlflow_uri, one.run_id, name) for one in (champion, older)]
        same_data = champion.prepared_hash == older.prepared_hash
        merged = scores_with_series(tables[0], tables[1] if same_data else None, series)
        if merged is not None:
            runs.log_table(run_id, merged, name)
    runs.log_folder(run_id, folder, REFIT_PATH)
    runs.end_study(run_id, "FINISHED")
    return run_id


def scores_with_series(
    current: pa.Table | None, older: pa.Table | None, series: str
) -> pa.Table | None:
    """Scores by series of the champion, that of one series from the older version's, if known."""
    if current is None:
        return None
    kept = current.filter(pc.not_equal(current["unique_id"], series))
    if older is None or older.column_names != current.column_names:
        return kept
    taken = older.filter(pc.equal(older["unique_id"], series))
    return pa.concat_tables([kept, taken.cast(kept.schema)])
