"""An answer as it waits for the forecast log."""

from __future__ import annotations

from msgspec import Struct

from flts_ray.models.base import Forecast
from flts_ray.serve.observe import Role


class Entry(Struct, frozen=True):
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
