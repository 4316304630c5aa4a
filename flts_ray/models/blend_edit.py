"""Blends made from other blends: one series of a champion goes back to an older version.

Design choices: nothing is trained and no number of another series changes; a model that is no
blend is one with a single member, so any two versions can be joined; what both versions hold is
stored once, what no series uses any more is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted
from flts_ray.models.blend import Blend, WeightTable, blend_of, same_bits, same_stats


def as_blend(fitted: Fitted, name: str) -> Blend:
    """Any model in the shape of a blend: itself, or a table whose only member it is."""
    if isinstance(fitted, Blend):
        return fitted
    task, series = fitted.spec.task, len(fitted.stats.ids)
    none = np.zeros((task.horizon, len(task.levels)))
    table = WeightTable.of(np.ones((1, 1)), np.zeros(series), none)
    return blend_of([(name, fitted)], table)


def with_series_from(current: Blend, older: Blend, series: str, mark: str) -> Blend:
    """`current`, but `series` is forecast as `older` does (sums may differ in the last bit).

    mark: added to the names of members that come from `older`, such as `@v1`. Members that both
    hold are kept once. Raises DataError for a series one of them does not know, models of
    different tasks, and where nothing would change.
    """
    _check_same_task(current, older)
    here, there = (known_row(one, series) for one in (current, older))
    source = older.table.row_of_series[there]
    members = list(zip(current.names, current.members, strict=True))
    column: dict[int, int] = {}
    for number in (int(at) for at in np.flatnonzero(older.table.share[source] > 0)):
        found = _index_of(older.members[number], [fitted for _, fitted in members])
        if found is None:
            members.append((f"{older.names[number]}{mark}", older.members[number]))
        column[number] = len(members) - 1 if found is None else found
    table, size = current.table, len(members)
    weights, mean_weights = (
        np.concatenate([_wide(mine, size), _moved(theirs[source], column, size)])
        for mine, theirs in (
            (table.weights, older.table.weights),
            (table.mean_weights, older.table.mean_weights),
        )
    )
    before = int(table.row_of_series[here])
    same = all(np.array_equal(one[before], one[-1]) for one in (weights, mean_weights))
    _check_change(current, older, series, same)
    row_of_series = table.row_of_series.copy()
    row_of_series[here] = len(weights) - 1
    shift = int(older.table.shift_of_row[source])
    owner = int(older.table.shift_owner[shift])
    joined = WeightTable(
        weights,
        mean_weights,
        row_of_series,
        np.concatenate([table.shifts, older.table.shifts[shift : shift + 1]]),
        np.append(table.shift_of_row, len(table.shifts)),
        np.append(table.shift_owner, column.get(owner, next(iter(column.values())))),
    )
    # What the bands of the whole have seen stays seen.
    return replace(blend_of(members, joined, current.stats), own=current.own)


def _wide(weights: np.ndarray, size: int) -> np.ndarray:
    return np.pad(weights, ((0, 0), (0, size - weights.shape[1])))


def _moved(row: np.ndarray, column: dict[int, int], size: int) -> np.ndarray:
    """A row whose members stand in other columns, float64 [1, size]."""
    found = np.zeros((1, size))
    for number, at in column.items():
        found[0, at] = row[number]
    return found


def known_row(blend: Blend, series: str) -> int:
    """Position of a series in the statistics. Raises DataError if the model has not seen it."""
    row = blend.stats.row_of.get(series)
    if row is None:
        raise DataError(
            f"series {series!r} is not among the {len(blend.stats.ids)} that this model was fitted "
            "on; `flts forecast --series` takes the same names",
            field="series",
        )
    return row


def _check_same_task(current: Blend, older: Blend) -> None:
    if current.spec.task != older.spec.task or current.spec.contract != older.spec.contract:
        raise DataError(
            "the two versions forecast different tasks (horizon, levels, frequency or columns "
            "differ), so a series cannot move from one to the other; train again instead",
            field="version",
        )


def _check_change(current: Blend, older: Blend, series: str, same_weights: bool) -> None:
    shifts = (
        blend.table.shifts[
            blend.table.shift_of_row[blend.table.row_of_series[known_row(blend, series)]]
        ]
        for blend in (current, older)
    )
    if same_weights and np.array_equal(*shifts):
        raise DataError(
            f"series {series!r} is served by the same members with the same weights in both "
            "versions; `flts diff` lists the series that differ",
            field="series",
        )


def _index_of(fitted: Fitted, among: Sequence[Fitted]) -> int | None:
    """Where the same model is, bit by bit; None if it is not there."""
    return next((at for at, other in enumerate(among) if _same_model(fitted, other)), None)


def _same_model(one: Fitted, other: Fitted) -> bool:
    if one.spec != other.spec or not same_stats(one.stats, other.stats):
        return False
    (values, arrays), (other_values, others) = one.state(), other.state()
    return (
        values == other_values
        and arrays.keys() == others.keys()
        and all(same_bits(array, others[name]) for name, array in arrays.items())
    )
