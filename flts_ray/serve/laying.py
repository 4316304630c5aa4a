"""Series of a request into windows: the fast way for regular histories, one by one for others.

Design choices: every series is laid or refused by itself, so that the caller decides whether one
refusal is everybody's; what the fast way cannot lay, the slow one repairs or refuses with the
field, so the two never disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError, FltsError, Unavailable
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.serve.engine import ServedModel, join_windows
from flts_ray.serve.lone import lone_window
from flts_ray.serve.regular import Block, blocks_of, chosen, regular_windows
from flts_ray.serve.rows import AskedSeries, Row, needs_prepared, row_of
from flts_ray.serve.stamps import calendars


@dataclass(frozen=True)
class Laid:
    """Windows of the series at the positions `rows` (rising), and why the others have none."""

    windows: Windows | None
    rows: np.ndarray
    refused: dict[int, FltsError]


def lay(asked: Sequence[AskedSeries] | Block, model: ServedModel) -> Laid:
    """Windows of all series that have one."""
    parts: list[tuple[np.ndarray, Windows]] = []
    left = np.ones(len(asked), dtype=bool)
    for at, block in _blocks(asked, model):
        found = regular_windows(block, model)
        if found is not None:
            windows, good = found
            parts.append((at[good], windows))
            left[at[good]] = False
    refused: dict[int, FltsError] = {}
    if left.any():
        slow = {i: _one(asked, i) for i in np.flatnonzero(left).tolist()}
        rows = _rows(slow, model, refused)
        if rows:
            parts.append((np.array(list(rows)), _stack(list(rows.values()), model)))
    if not parts:
        return Laid(None, np.zeros(0, np.int64), refused)
    at = np.concatenate([rows for rows, _ in parts])
    windows = join_windows([windows for _, windows in parts])
    if (np.diff(at) < 0).any():
        order = np.argsort(at)
        at, windows = at[order], chosen(windows, order)
    return Laid(windows, at, refused)


def windows_of(asked: Sequence[AskedSeries], model: ServedModel) -> Windows:
    """Windows of all series, in their order. Raises what the first refused one raises."""
    if len(asked) == 1 and (lone := lone_window(asked[0], model)) is not None:
        return lone
    laid = lay(asked, model)
    if laid.refused:
        raise laid.refused[min(laid.refused)]
    if laid.windows is None:
        raise DataError("series: no series in it; send at least one", field="series")
    return laid.windows


def _blocks(
    asked: Sequence[AskedSeries] | Block, model: ServedModel
) -> Sequence[tuple[np.ndarray, Block]]:
    if isinstance(asked, Block):
        return [(np.arange(len(asked)), asked)]
    return list(blocks_of(asked, model.fitted.spec))


def _one(asked: Sequence[AskedSeries] | Block, i: int) -> AskedSeries:
    return asked.series(i) if isinstance(asked, Block) else asked[i]


def _rows(
    asked: dict[int, AskedSeries], model: ServedModel, refused: dict[int, FltsError]
) -> dict[int, Row]:
    """Rows of the series that can be repaired; the others go to `refused`."""
    known: dict[int, AskedSeries] = {}
    for i, one in asked.items():
        try:
            _check_known(one, model)
        except DataError as error:
            refused[i] = error
        else:
            known[i] = one
    prepared = _prepared(known, model, refused)
    rows: dict[int, Row] = {}
    for i, one in known.items():
        if i in refused:
            continue
        try:
            rows[i] = row_of(one, model, prepared.get(one.id))
        except FltsError as error:
            refused[i] = error
    return rows


def _check_known(one: AskedSeries, model: ServedModel) -> None:
    spec = model.fitted.spec
    if one.id in model.position:
        return
    field = f"{one.field}unique_id"
    if one.y is None:
        give = "give a history (`ds` and `y`), or the name of a series the model was fitted on"
        if not one.named:
            raise DataError(f"{one.field}y: {give}", field=f"{one.field}y")
        raise DataError(f"{field}: {give}; {one.id[:60]!r} is none", field=field)
    if spec.needs_known_series:
        raise DataError(
            f"{field}: this model ({spec.kind}) forecasts only the {len(model.position)} series "
            f"it was fitted on; {one.id[:60]!r} is none of them",
            field=field,
        )


def _prepared(
    asked: dict[int, AskedSeries], model: ServedModel, refused: dict[int, FltsError]
) -> dict[str, SeriesArrays]:
    """Prepared data by series; all who need them are refused where they cannot be read."""
    contract = model.fitted.spec.contract
    wanted = {
        i: one
        for i, one in asked.items()
        if one.id in model.position and needs_prepared(one, contract)
    }
    if not wanted:
        return {}
    try:
        if model.known is None:
            raise Unavailable(
                "unique_id: the prepared data of this champion cannot be read now; send the "
                "history (`ds`, `y` and covariates)"
            )
        return model.known.series(list(dict.fromkeys(one.id for one in wanted.values())))
    except Unavailable as error:
        refused.update(dict.fromkeys(wanted, error))
        return {}


def _stack(rows: list[Row], model: ServedModel) -> Windows:
    spec = model.fitted.spec
    origin_us = np.array([row.origin_us for row in rows], dtype=np.int64)
    calendar = calendars(origin_us, spec.lookback, spec.task.horizon, spec.contract)
    return Windows(
        contract=spec.contract,
        ids=tuple(row.id for row in rows),
        origin_us=origin_us,
        y=np.stack([row.y for row in rows]),
        observed=np.stack([row.observed for row in rows]),
        past=np.stack([row.past for row in rows]),
        future=np.concatenate([calendar, np.stack([row.known for row in rows])], axis=-1),
        static=np.stack([row.static for row in rows]),
        scale=np.array([row.scale for row in rows], dtype=np.float64),
    )
