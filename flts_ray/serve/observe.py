"""What a replica tells those who watch it: each answer, and each forecast in it.

Design choices: watchers are told after the answer is on its way and must only note it down, so
that whatever they do with it (files, metrics, a second model) costs the caller nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import Struct

from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows

Role = Literal["champion", "canary", "shadow"]


class Made(Struct, frozen=True):
    """A forecast that was given, as the model made it.

    `horizon` is the number of steps that were asked for; `seconds` from the request's arrival to
    its answer; `degraded` says that the model did not make it; `role` is whose it was.
    """

    forecast_id: str
    name: str
    version: str
    digest: str
    windows: Windows
    forecast: Forecast
    horizon: int
    seconds: float
    degraded: bool = False
    role: Role = "champion"


class Observer(Protocol):
    """Is told of everything. Both methods return at once and never raise."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """One HTTP answer. `route` is a route's template, "other" for paths that have none."""
        ...

    def forecast(self, made: Made) -> None:
        """One call of a model that was answered."""
        ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one."""

    each: Sequence[Observer]

    def request(self, route: str, status: int, seconds: float) -> None:
        for one in self.each:
            one.request(route, status, seconds)

    def forecast(self, made: Made) -> None:
        for one in self.each:
            one.forecast(made)
