"""What every form of a bulk answer is made of, and what writes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from flts_ray.errors import FltsError
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.degraded import Degraded
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.predictor import Made, model_of
from flts_ray.serve.problems import code_of, field_of


@dataclass(frozen=True)
class Done:
    """A part of a bulk answer: `made` holds the series at the positions `rows` of it.

    `told` is what the model was asked and said, for whoever observes; `degraded` marks positions
    whose forecast the model did not make.
    """

    ids: Sequence[str]
    rows: np.ndarray
    made: Made | None
    refused: dict[int, FltsError]
    told: tuple[Windows, Forecast] | None = None
    degraded: Mapping[int, Degraded] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """What the whole answer says once. `may_degrade`: the caller allowed plain forecasts."""

    forecast_id: str
    model: ServedModel
    horizon: int
    levels: tuple[float, ...]
    may_degrade: bool = False

    def fields(self) -> dict[str, Any]:
        return {
            "forecast_id": self.forecast_id,
            "model": model_of(self.model),
            "units": self.model.fitted.spec.contract.units,
        }

    def texts(self) -> dict[str, str]:
        """The same for a form that holds nothing but texts."""
        about = {name: str(value) for name, value in self.fields().items() if name != "model"}
        return about | {f"model_{name}": value for name, value in model_of(self.model).items()}


class BulkWriter(Protocol):
    """Writes one answer: its head, then its parts in order with `between` each two, its tail.

    Any thread may call `part`.
    """

    @property
    def media(self) -> bytes: ...
    @property
    def between(self) -> bytes: ...
    def head(self) -> bytes: ...
    def part(self, done: Done) -> bytes: ...
    def tail(self, failed: int) -> bytes: ...


def problem_of(error: FltsError) -> dict[str, str | None]:
    """What an answer says of a series without a forecast."""
    return {"code": code_of(error), "message": str(error), "field": field_of(error)}


def rows_of(forecast: Forecast, rows: np.ndarray) -> Forecast:
    """The forecasts of some of its series."""
    return Forecast(
        tuple(forecast.ids[i] for i in rows.tolist()),
        forecast.origin_us[rows],
        forecast.levels,
        forecast.mean[rows],
        forecast.quantiles[rows],
    )


def joined(parts: Sequence[Forecast]) -> Forecast | None:
    """Forecasts one after the other, None for none."""
    if not parts:
        return None
    return Forecast(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([part.origin_us for part in parts]),
        parts[0].levels,
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.quantiles for part in parts]),
    )
