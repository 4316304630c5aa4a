"""What recurrent models are stored as, and the checks before anything is built from it.

Design choices: the network's shape is stored and its weights are checked against it by name,
shape and type before any memory is taken for them, so a foreign or damaged file is refused, not
bent into place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flts_ray.errors import ArtifactError
from flts_ray.models.base import ModelSpec
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_linear import Shrinkage
from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_shape import Shape

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
SCALED = ("past", "future", "static")


class Stored(BaseModel):
    """Everything about a model that is no array."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cell: Literal["gru", "lstm"]
    lookback: Size
    segment: Size
    horizon: Size
    levels: tuple[float, ...]
    marked: Literal[0, 1]
    seen: Count
    ahead: Count
    static: Count
    hidden: Size
    layers: Size
    dropout: float
    lags: Count
    centre: Literal["last", "mean"]
    ridge: tuple[
        Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]
    ]
    cycles: tuple[Count, ...]
    events: tuple[Count, ...]
    series: Count
    """Series with a network of their own; 0: one network for all."""
    categories: tuple[Count, ...] = ()
    with_past: bool = True

    @property
    def shape(self) -> Shape:
        return Shape(**self.model_dump(include=set(Shape.__dataclass_fields__)))

    @property
    def shrinkage(self) -> Shrinkage:
        return Shrinkage(*self.ridge)


def values_of(
    shape: Shape, scaling: ColumnScaling, centre: str, ridge: Shrinkage, series: int
) -> dict[str, Any]:
    """JSON-ready values that `read_values` understands; series: as in `Stored`."""
    tuples = {"levels": shape.levels, "ridge": ridge, "categories": shape.categories}
    tuples |= {"cycles": scaling.cycles, "events": scaling.events}
    one = {"centre": centre, "series": series, "with_past": scaling.with_past}
    return {**asdict(shape), **one, **{n: list(each) for n, each in tuples.items()}}


def columns_of(scaling: ColumnScaling) -> dict[str, np.ndarray]:
    """Arrays of the column scaling under the names they are stored by."""
    return {f"columns.{name}": array for name, array in scaling.arrays().items()}


def read_values(spec: ModelSpec, values: Mapping[str, Any], series: int) -> Stored:
    """Raises ArtifactError unless the values describe networks for this contract.

    series: how many networks of their own there must be.
    """
    try:
        frozen = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        stored = Stored.model_validate(frozen)
    except ValidationError as error:
        raise refused(spec.kind, f"its values describe no network: {error}") from None
    shape, contract = stored.shape, spec.contract
    if shape.lookback % shape.segment or shape.lags > shape.lookback or 0.5 not in shape.levels:
        raise refused(spec.kind, "its lookback, segment, lags and levels do not fit together")
    if stored.series != series:
        raise refused(spec.kind, f"{stored.series} series have networks, {series} have statistics")
    read = stored.cycles + stored.events
    if len(set(read)) < len(read) or any(column >= len(contract.future) for column in read):
        raise refused(spec.kind, f"it reads columns {list(read)} of {len(contract.future)}")
    if stored.categories not in ((), tuple(map(len, contract.categories))):
        raise refused(spec.kind, f"its labels {stored.categories} are not those of its contract")
    said = (spec.kind, spec.lookback, spec.task.horizon, tuple(spec.task.levels))
    seen = len(stored.events) + (len(contract.past) if stored.with_past else 0)
    columns = (seen, len(read), len(contract.static))
    held = (shape.cell, shape.lookback, shape.horizon, shape.levels)
    if said != held or columns != (shape.seen, shape.ahead, shape.static):
        raise refused(spec.kind, f"the network is {shape} while its contract says {said}")
    return stored


def network_on_paper(shape: Shape) -> SegmentNet:
    """A network whose weights have shapes, but no memory."""
    with torch.device("meta"):
        return SegmentNet(shape)


def read_scaling(
    spec: ModelSpec, stored: Stored, arrays: Mapping[str, np.ndarray]
) -> ColumnScaling:
    """The column scaling among checked arrays."""
    named = {name: arrays[f"columns.{name}"] for name in scaling_shapes(spec)}
    return ColumnScaling(
        **named,
        cycles=stored.cycles,
        events=stored.events,
        categories=stored.categories,
        with_past=stored.with_past,
    )


def scaling_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    contract = spec.contract
    return {
        f"{name}_{part}": (len(getattr(contract, name)),)
        for name in SCALED
        for part in ("mean", "std")
    }


def check_arrays(
    spec: ModelSpec, own: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raise ArtifactError unless `arrays` are the float32 arrays `own` and the column scaling."""
    columns = {f"columns.{name}": size for name, size in scaling_shapes(spec).items()}
    expected = {**own, **columns}
    odd = sorted(set(expected) ^ set(arrays))
    if odd:
        raise refused(spec.kind, f"arrays are missing or unexpected: {odd}")
    for name, size in expected.items():
        found = arrays[name]
        if found.shape != size or found.dtype != np.float32:
            problem = f"{name} is {found.dtype} {found.shape}, expected float32 {size}"
            raise refused(spec.kind, problem)


def refused(kind: str, problem: str) -> ArtifactError:
    return ArtifactError(
        f"{kind} model: {problem}; restore the artifact from the registry, or train again"
    )
