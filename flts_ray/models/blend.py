"""Several fitted models as one: each series has a row of weights over the members.

Design choices: means and quantiles are averaged level by level (Vincentization, Ratcliff 1979;
Lichtendahl, Grushka-Cockayne & Winkler 2013), so quantiles never cross and the blend is a
model like any other; means have weights of their own, because what is best for squared errors
need not be best for quantiles; row 0 of the table serves every series without a row of its own, and
series never seen before; there, members that know only their own series stand back and the
others share their weight; a member is asked only about windows in which it has weight; members
are stored whole, each with its own specification, in the same two files as a single model; a
member is never a blend, so nothing nests. The blend forecasts, it does not learn: who chooses
weights does so on forecasts of models that have not seen what they are judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.models import calibrate
from flts_ray.models.artifact import (
    Restores,
    pop_stats,
    spec_from_json,
    spec_to_json,
    stats_arrays,
)
from flts_ray.models.base import Compute, Fitted, Forecast, ModelSpec, forecaster
from flts_ray.models.blend_update import (
    row_of_new,
    shared_memory,
    updated_members,
)
from flts_ray.models.follow import followed
from flts_ray.models.memory import Memory, split_memory, stored
from flts_ray.models.news import Learned, learned, news_of
from flts_ray.models.support import floored
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows

KIND = "blend"
TABLE = ("weights", "mean_weights", "row_of_series", "shifts", "shift_of_row", "shift_owner")


@dataclass(frozen=True)
class WeightTable:
    """Which members serve which series, and how their quantiles are corrected.

    weights, mean_weights: float64 [R, M], of quantiles and of means; not negative, every row
    sums to one. row_of_series: int64 [S], the row of each series in `Blend.stats`. shifts:
    float64 [K, H, Q], corrections as `fit_shift` gives them; shift_of_row: int64 [R];
    shift_owner: int64 [K], the member by whose statistics a correction is scaled.
    """

    weights: np.ndarray
    mean_weights: np.ndarray
    row_of_series: np.ndarray
    shifts: np.ndarray
    shift_of_row: np.ndarray
    shift_owner: np.ndarray

    @classmethod
    def of(
        cls,
        weights: np.ndarray,
        row_of_series: np.ndarray,
        shift: np.ndarray,
        mean_weights: np.ndarray | None = None,
    ) -> WeightTable:
        """A table whose rows share one correction, float64 [H, Q]; means as quantiles if None."""
        return cls(
            np.asarray(weights, np.float64),
            np.asarray(weights if mean_weights is None else mean_weights, np.float64),
            np.asarray(row_of_series, np.int64),
            np.asarray(shift, np.float64)[None],
            np.zeros(len(weights), np.int64),
            np.array([np.argmax(weights[0])], np.int64),
        )

    @property
    def share(self) -> np.ndarray:
        """The larger of a member's two weights, zero where it is not asked: float64 [R, M]."""
        return np.maximum(self.weights, self.mean_weights)

    def with_new(self, count: int, bound: np.ndarray) -> WeightTable:
        """With `count` more series, served as new ones are: by row 0 without `bound` members."""
        if not (count and (self.share[0] * bound).any()):
            row = np.zeros(count, np.int64)
            return replace(self, row_of_series=np.append(self.row_of_series, row))
        level, centre = (row_of_new(table[0], bound) for table in (self.weights, self.mean_weights))
        return replace(
            self,
            weights=np.vstack([self.weights, level]),
            mean_weights=np.vstack([self.mean_weights, centre]),
            row_of_series=np.append(self.row_of_series, np.full(count, len(self.weights))),
            shift_of_row=np.append(self.shift_of_row, self.shift_of_row[0]),
        )

    def rows_for(self, known: np.ndarray) -> np.ndarray:
        """Rows of series by their position in the statistics, -1 for one never seen: int64 [n]."""
        return np.where(known >= 0, self.row_of_series[known], 0)


@dataclass(frozen=True)
class Blend:
    """Members that forecast together; `names` are what people call them."""

    spec: ModelSpec
    stats: SeriesStats
    names: tuple[str, ...]
    members: tuple[Fitted, ...]
    table: WeightTable
    own: Memory | None = None

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`. A window's forecast depends on that window alone.

        Raises DataError for a new series where every member with weight knows only its own.
        """
        return floored(self.spec, windows, *self._banded(windows))

    def _banded(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Mean and quantiles, whatever floor the windows show."""
        task = self.spec.task
        if windows.lookback < self.spec.lookback or windows.horizon != task.horizon:
            raise DataError(
                f"{KIND} needs {self.spec.lookback} past steps and forecasts {task.horizon}; "
                f"the windows have {windows.lookback} and ask for {windows.horizon}",
                field="history",
            )
        known = calibrate.known_rows(windows.ids, self.stats)
        rows = self.table.rows_for(known)
        level, centre = (
            self._weights(table[rows], windows, known)
            for table in (self.table.weights, self.table.mean_weights)
        )
        mean = np.zeros((len(windows), task.horizon))
        quantiles = np.zeros((len(windows), task.horizon, len(task.levels)))
        for number, member in enumerate(self.members):
            at = np.flatnonzero(np.maximum(level[:, number], centre[:, number]) > 0)
            if len(at):
                found = member.forecast(_taken(windows, at).last(member.spec.lookback))
                mean[at] += centre[at, number, None] * found.mean
                quantiles[at] += level[at, number, None, None] * found.quantiles
        return mean, self._shifted(quantiles, windows, rows)

    @property
    def memory(self) -> Memory | None:
        """What it and its members have seen together, and how its own bands fared."""
        return shared_memory(self.stats, self.members, self.own)

    def served(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles and the scale of their bands; see `recent_scores.Ask`."""
        rows = self.table.rows_for(calibrate.known_rows(windows.ids, self.stats))
        owners = self.table.shift_owner[self.table.shift_of_row[rows]]
        scale = np.empty(len(windows))
        for number in np.unique(owners):
            at, owner = np.flatnonzero(owners == number), self.members[int(number)]
            seen = _taken(windows, at).last(owner.spec.lookback)
            scale[at] = calibrate.series_scale(seen, owner.stats)
        return self._banded(windows)[1], scale

    def banded(self, found: Learned) -> Blend:
        """With the bands it has learned."""
        shifts = self.table.shifts + found.step.by
        return replace(self, own=found.memory, table=replace(self.table, shifts=shifts))

    def weights_of(self, series: str) -> dict[str, float]:
        """Members with weight in the quantiles of a series, by name; of a new one too."""
        rows = self.table.rows_for(calibrate.known_rows([series], self.stats))
        row = self.table.weights[rows[0]]
        return {name: float(w) for name, w in zip(self.names, row, strict=True) if w > 0}

    def _weights(self, weights: np.ndarray, windows: Windows, known: np.ndarray) -> np.ndarray:
        """Weights of each window, float64 [n, M], with those of new series shared out again."""
        bound = np.array([member.spec.needs_known_series for member in self.members])
        new = np.flatnonzero(known < 0)
        if not len(new) or not bound.any():
            return weights
        weights[np.ix_(new, np.flatnonzero(bound))] = 0.0
        left = weights[new].sum(axis=1)
        if not left.all():
            name = windows.ids[int(new[np.argmin(left)])]
            raise DataError(
                f"{KIND}: series {name!r} was not there when the model was fitted, and its members "
                "forecast only series they know; train again with it",
                field="unique_id",
            )
        weights[new] /= left[:, None]
        return weights

    def _shifted(self, quantiles: np.ndarray, windows: Windows, rows: np.ndarray) -> np.ndarray:
        which = self.table.shift_of_row[rows]
        for number in np.unique(which):
            shift = self.table.shifts[number]
            if not shift.any():
                continue
            at = np.flatnonzero(which == number)
            owner = self.members[int(self.table.shift_owner[number])]
            seen = _taken(windows, at).last(owner.spec.lookback)
            scale = calibrate.series_scale(seen, owner.stats)
            quantiles[at] = calibrate.apply_shift(quantiles[at], shift, scale)
        return quantiles

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Specifications and values of the members; their arrays as `member<i>.<name>`."""
        arrays = {name: getattr(self.table, name) for name in TABLE}
        listed = []
        for number, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            values, state = member.state()
            own = not same_stats(member.stats, self.stats)
            listed.append(
                {"name": name, "spec": spec_to_json(member.spec), "state": values, "stats": own}
            )
            held = {f"state.{key}": array for key, array in state.items()}
            held |= stats_arrays(member.stats) if own else {}
            arrays |= {f"member{number}.{key}": array for key, array in held.items()}
        return {"members": listed}, arrays | stored(self.own)


@dataclass(frozen=True)
class Blends:
    """Rebuilds stored blends and updates them; `member` gives what rebuilds members of a kind."""

    member: Callable[[str], Restores] = forecaster

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Blend:
        """See `Restorer.restore`. Raises ArtifactError where the parts do not fit together."""
        arrays, own = split_memory(arrays, stats, spec.task)
        table = WeightTable(*(arrays[name] for name in TABLE))
        listed = values["members"]
        members = tuple(
            _member(self.member, raw, number, stats, arrays) for number, raw in enumerate(listed)
        )
        names = tuple(str(raw["name"]) for raw in listed)
        return checked(Blend(spec, stats, names, members, table, own))

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Blend:
        """The same weights over updated members; see `Updater.update`."""
        assert isinstance(fitted, Blend)
        news = news_of(fitted, data, only_known=fitted.spec.needs_known_series)
        if news is None:
            return fitted
        told = fitted.banded(learned(fitted, news, fitted.served))
        members = updated_members(fitted.members, data, compute)
        bound = np.array([member.spec.needs_known_series for member in members])
        table = told.table.with_new(len(news.stats.ids) - len(fitted.stats.ids), bound)
        return checked(replace(told, stats=news.stats, members=members, table=table))

    def follow(self, fitted: Fitted, data: SeriesArrays) -> Blend:
        """See `Follower.follow`."""
        assert isinstance(fitted, Blend)
        return followed(fitted, data, fitted.served, Blend.banded)


def blend_of(
    members: Sequence[tuple[str, Fitted]], table: WeightTable, stats: SeriesStats | None = None
) -> Blend:
    """A blend of named members; those without weight in any used row are left out.

    table: columns in the order of `members`. stats: the series it serves, by default those of
    the first member. Raises ArtifactError where the parts do not fit together.
    """
    first = members[0][1]
    stats = stats or first.stats
    used_rows = np.unique(np.concatenate([[0], table.row_of_series]))
    kept = np.flatnonzero(table.share[used_rows].max(axis=0) > 0)
    slot = {int(row): at for at, row in enumerate(used_rows)}
    shifts, shift_of_row = np.unique(table.shift_of_row[used_rows], return_inverse=True)
    smaller = WeightTable(
        table.weights[np.ix_(used_rows, kept)],
        table.mean_weights[np.ix_(used_rows, kept)],
        np.array([slot[int(row)] for row in table.row_of_series], np.int64),
        table.shifts[shifts],
        shift_of_row.astype(np.int64),
        np.searchsorted(kept, table.shift_owner[shifts]).astype(np.int64),
    )
    chosen = [members[int(at)] for at in kept]
    spec = ModelSpec(
        kind=KIND,
        task=first.spec.task,
        lookback=max(fitted.spec.lookback for _, fitted in chosen),
        contract=first.spec.contract,
        params={"members": [name for name, _ in chosen]},
        needs_known_series=_needs_known(smaller, [fitted for _, fitted in chosen]),
    )
    names = tuple(name for name, _ in chosen)
    return checked(Blend(spec, stats, names, tuple(fitted for _, fitted in chosen), smaller))


def _needs_known(table: WeightTable, members: Sequence[Fitted]) -> bool:
    """True if no member that takes any series has weight in the row of new ones."""
    free = np.array([not member.spec.needs_known_series for member in members])
    rows = (table.weights[0], table.mean_weights[0])
    return not all(bool((row[free] > 0).any()) for row in rows)


def checked(blend: Blend) -> Blend:
    """The blend itself. Raises ArtifactError for weights or members that fit no blend."""
    table, spec = blend.table, blend.spec
    size, task = len(blend.members), spec.task
    rows, shifts = len(table.weights), len(table.shifts)
    shapes = {
        "weights": (rows, size),
        "mean_weights": (rows, size),
        "row_of_series": (len(blend.stats.ids),),
        "shifts": (shifts, task.horizon, len(task.levels)),
        "shift_of_row": (rows,),
        "shift_owner": (shifts,),
    }
    for name, shape in shapes.items():
        if getattr(table, name).shape != shape or not size or not rows or not shifts:
            raise _refused(f"{name} is {getattr(table, name).shape}, expected {shape}")
    bounds = {"row_of_series": rows, "shift_of_row": shifts, "shift_owner": size}
    for name, bound in bounds.items():
        found = getattr(table, name)
        if found.dtype != np.int64 or ((found < 0) | (found >= bound)).any():
            raise _refused(f"{name} points outside of its {bound} entries")
    if not (np.isfinite(table.shifts).all() and _proper(table.weights, table.mean_weights)):
        raise _refused("weights must be finite, not negative, and sum to one in every row")
    for member in blend.members:
        if (member.spec.task, member.spec.contract) != (task, spec.contract):
            raise _refused(f"member {member.spec.kind} forecasts another task")
        if member.spec.lookback > spec.lookback or member.spec.kind == KIND:
            raise _refused(f"member {member.spec.kind} does not fit into it")
    return blend


def _proper(*tables: np.ndarray) -> bool:
    found = np.concatenate(tables)
    return bool((found >= 0).all() and (np.abs(found.sum(axis=1) - 1) <= 1e-9).all())


def _member(
    restorer: Callable[[str], Restores],
    raw: dict[str, Any],
    number: int,
    stats: SeriesStats,
    arrays: dict[str, np.ndarray],
) -> Fitted:
    prefix = f"member{number}."
    held = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
    own = pop_stats(held) if raw["stats"] else stats
    spec = spec_from_json(raw["spec"])
    try:
        model = restorer(spec.kind)
    except ConfigError as error:
        raise _refused(str(error)) from None
    state = {key.removeprefix("state."): array for key, array in held.items()}
    return model.restore(spec, own, raw["state"], state)


def same_stats(one: SeriesStats, other: SeriesStats) -> bool:
    """True for the same series with the same numbers."""
    if one is other:
        return True
    mine, theirs = stats_arrays(one), stats_arrays(other)
    return all(same_bits(array, theirs[name]) for name, array in mine.items())


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """True for arrays of one type and shape whose bytes are equal."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and bool(one.tobytes() == other.tobytes())


def _taken(windows: Windows, at: np.ndarray) -> Windows:
    """The windows at these positions; all of them without a copy."""
    if len(at) == len(windows):
        return windows
    names = ("origin_us", "y", "observed", "past", "future", "static", "scale")
    return replace(
        windows,
        ids=tuple(windows.ids[i] for i in at),
        **{name: getattr(windows, name)[at] for name in names},
    )


def _refused(problem: str) -> ArtifactError:
    return ArtifactError(
        f"{KIND} model: {problem}; restore the artifact from the registry, or train again"
    )
