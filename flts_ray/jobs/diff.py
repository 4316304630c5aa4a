"""What differs between two versions, and who serves a series.

Design choices: a model that is no blend counts as one with a single member, so any two versions
compare; members are named by their kind where that is unique, because trials of two studies have
the same names by chance; scores are those that the versions' own runs keep, and whether they are
of the same data is said beside them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flts_ray.errors import DataError, Unavailable
from flts_ray.models.blend import Blend
from flts_ray.models.blend_edit import as_blend
from flts_ray.promote import load_version
from flts_ray.registry import ModelVersion, Registry
from flts_ray.run_tables import run_table, series_scores
from flts_ray.services import Services
from flts_ray.tune.blend_log import TEST_TABLE, VALIDATION_TABLE

Params = dict[str, Any]
Row = dict[str, tuple[float, float]]
"""Members of one row of the table, each with its weight in the quantiles and in the mean."""


@dataclass(frozen=True)
class Side:
    """One version as far as it can be compared.

    validation, test: the configured score of each series, where the version's run kept it.
    """

    version: ModelVersion
    blend: Blend
    validation: Mapping[str, float]
    test: Mapping[str, float]

    @property
    def labels(self) -> tuple[str, ...]:
        """Members by kind, or by name where a kind is there twice."""
        kinds = [member.spec.kind for member in self.blend.members]
        seen = Counter(kinds)
        pairs = zip(self.blend.names, kinds, strict=True)
        return tuple(kind if seen[kind] == 1 else name for name, kind in pairs)

    @property
    def params(self) -> dict[str, Params]:
        """Parameters of each member, by label."""
        specs = (member.spec for member in self.blend.members)
        return {
            label: {"lookback": spec.lookback, **spec.params}
            for label, spec in zip(self.labels, specs, strict=True)
        }

    def row(self, number: int) -> Row:
        """One row of the table, by label; members without weight are left out."""
        table = self.blend.table
        pairs = zip(table.weights[number], table.mean_weights[number], strict=True)
        found = zip(self.labels, pairs, strict=True)
        return {label: (float(q), float(m)) for label, (q, m) in found if q > 0 or m > 0}


@dataclass(frozen=True)
class SeriesChange:
    """One series, and what each version does with it; scores are None where nobody kept them."""

    series: str
    members: tuple[Row, Row]
    validation: tuple[float | None, float | None]
    test: tuple[float | None, float | None]


@dataclass(frozen=True)
class VersionDiff:
    """versions: (number, kind). params: (member, parameter, one, other), those that differ.
    weights: of row 0. changed: series served by other members or weights, worst change first.
    only: series that one version alone knows."""

    versions: tuple[tuple[int, str], tuple[int, str]]
    same_data: bool
    params: tuple[tuple[str, str, Any, Any], ...]
    weights: tuple[Row, Row]
    changed: tuple[SeriesChange, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    series: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Served:
    """Who serves a series in one version. own: by weights that are not those of all series."""

    version: int
    kind: str
    members: Row
    own: bool
    validation: float | None
    test: float | None


def open_side(services: Services, version: ModelVersion) -> Side:
    """Fetch a version and the scores of its run. Raises ArtifactError and Unavailable."""
    fitted = load_version(services, version).fitted
    score = services.config.judge.score
    tables = (
        run_table(services.mlflow_uri, version.run_id, name)
        for name in (VALIDATION_TABLE, TEST_TABLE)
    )
    validation, test = (series_scores(table, score) for table in tables)
    return Side(version, as_blend(fitted, version.kind), validation, test)


def diff(services: Services, one: int, other: int) -> VersionDiff:
    """Compare two registered versions. Raises DataError for an unknown one."""
    registry = services.registry()
    return compare(*(open_side(services, registry.version(n)) for n in (one, other)))


def compare(one: Side, other: Side) -> VersionDiff:
    """What differs between two versions."""
    mine, theirs = one.blend.stats.row_of, other.blend.stats.row_of
    common = [name for name in one.blend.stats.ids if name in theirs]
    rows = (
        one.blend.table.row_of_series[[mine[name] for name in common]],
        other.blend.table.row_of_series[[theirs[name] for name in common]],
    )
    held = ({int(r): one.row(r) for r in np.unique(rows[0])},
            {int(r): other.row(r) for r in np.unique(rows[1])})  # fmt: skip
    changed = [
        SeriesChange(
            name,
            (held[0][int(a)], held[1][int(b)]),
            (one.validation.get(name), other.validation.get(name)),
            (one.test.get(name), other.test.get(name)),
        )
        for name, a, b in zip(common, *rows, strict=True)
        if not _same_row(held[0][int(a)], held[1][int(b)])
    ]
    return VersionDiff(
        versions=(
            (one.version.version, one.version.kind),
            (other.version.version, other.version.kind),
        ),
        same_data=one.version.prepared_hash == other.version.prepared_hash,
        params=tuple(_params(one.params, other.params)),
        weights=(one.row(0), other.row(0)),
        changed=tuple(sorted(changed, key=_worsening)),
        only=(tuple(sorted(set(mine) - set(theirs))), tuple(sorted(set(theirs) - set(mine)))),
        series=len(common),
    )


def who_serves(services: Services, series: str, versions: Sequence[int] = ()) -> list[Served]:
    """Who serves a series in the champion, or in the named versions.

    Raises DataError for a series that none of them knows, Unavailable without a champion.
    """
    registry = services.registry()
    wanted = [registry.version(n) for n in versions] or [champion_of(registry)]
    found = [served(open_side(services, version), series) for version in wanted]
    return [one for one in found if one is not None] or _unknown(series, wanted)


def champion_of(registry: Registry) -> ModelVersion:
    """The champion. Raises Unavailable before the first promotion."""
    champion = registry.champion()
    if champion is None:
        raise Unavailable(f"{registry.name} has no champion yet; `flts train` makes the first one")
    return champion


def served(side: Side, series: str) -> Served | None:
    """Who serves a series in a version; None if that was fitted without it."""
    row = side.blend.stats.row_of.get(series)
    if row is None:
        return None
    number = int(side.blend.table.row_of_series[row])
    return Served(
        side.version.version,
        side.version.kind,
        side.row(number),
        number > 0,
        side.validation.get(series),
        side.test.get(series),
    )


def _unknown(series: str, versions: Sequence[ModelVersion]) -> list[Served]:
    named = ", ".join(str(version.version) for version in versions)
    raise DataError(
        f"series {series!r} is in none of the versions asked for ({named}); a new series is "
        "forecast with the weights of all",
        field="series",
    )


def _same_row(one: Row, other: Row) -> bool:
    none = (0.0, 0.0)
    pairs = ((one.get(name, none), other.get(name, none)) for name in {*one, *other})
    return all(np.allclose(mine, theirs, rtol=0, atol=1e-9) for mine, theirs in pairs)


def _params(
    one: Mapping[str, Params], other: Mapping[str, Params]
) -> list[tuple[str, str, Any, Any]]:
    """Parameters that differ, of members that both versions have."""
    found = []
    for label in [name for name in one if name in other]:
        for key in sorted({*one[label], *other[label]}):
            values = one[label].get(key), other[label].get(key)
            if values[0] != values[1]:
                found.append((label, key, *values))
    return found


def _worsening(change: SeriesChange) -> tuple[float, str]:
    before, after = change.test
    if before is None or after is None:
        before, after = change.validation
    if before is None or after is None or not before > 0:
        return 0.0, change.series
    return -after / before, change.series
