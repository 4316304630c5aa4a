"""An answer as it waits for the forecast log."""

from __future__ import annotations

from dataclasses import dataclass

from flts_ray.models.base import Forecast
from flts_ray.serve.observe import Role


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer as it waits: without the history that the model saw, which may be long."""

    made_us: int
    forecast_id: str
    version: str
    digest: str
    role: Role
    degraded: bool
    horizon: int
    seconds: float
    forecast: Forecast

    @property
    def size(self) -> int:
        return int(self.forecast.quantiles.nbytes + self.forecast.mean.nbytes)

    @property
    def rows(self) -> int:
        return len(self.forecast.ids)
