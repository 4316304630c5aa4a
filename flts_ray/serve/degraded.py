"""Answers without the model, for callers who would rather have a plain forecast than none.

Design choices: they are made of the request's own history on the spot, so that they cost no
queue; the last forecast of the model for the same series and origin is better still, and of a few
hundred series it is kept; the caller must have allowed it and is told so in the answer. The
spread of the seasonal naive grows with the seasons ahead (Hyndman & Athanasopoulos, Forecasting:
Principles and Practice, 3rd ed., 5.5).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from flts_ray.errors import Expired, FltsError, Overloaded
from flts_ray.models.base import Forecast, Task
from flts_ray.prepare.arrays import Windows

Reason = Literal["overloaded", "expired", "unavailable"]
KEPT = 512
MOST_AT_ONCE = 16
"""Series of one answer that are remembered: dashboards ask for few, batch jobs for all."""
_NORMAL_MAE = 0.7979  # mean absolute value of a standard normal


@dataclass(frozen=True)
class Degraded:
    """Why and how an answer was made without the model."""

    reason: Reason
    method: Literal["seasonal_naive", "last_forecast"]

    def marks(self) -> dict[str, str | bool]:
        """What is added to an answer."""
        return {
            "degraded": True,
            "degraded_reason": self.reason,
            "degraded_method": self.method,
        }


def reason_of(error: FltsError) -> Reason:
    if isinstance(error, Overloaded):
        return "overloaded"
    return "expired" if isinstance(error, Expired) else "unavailable"


def seasonal_naive(windows: Windows, task: Task) -> Forecast:
    """Repeat the last season of each window, or its last value where it is shorter."""
    horizon, lookback = task.horizon, windows.lookback
    season = windows.contract.season if windows.contract.season <= lookback else 1
    steps = np.arange(horizon)
    y = windows.y
    mean = y[:, lookback - season + steps % season]
    if lookback > season:
        own = np.abs(y[:, season:] - y[:, :-season]).mean(axis=1)
    else:
        own = np.abs(np.diff(y, axis=1)).mean(axis=1) if lookback > 1 else np.zeros(len(y))
    spread = np.where(np.isnan(windows.scale), own, windows.scale) / _NORMAL_MAE
    width = spread[:, None] * np.sqrt(1 + steps // season)
    normal = NormalDist()
    at = np.array([normal.inv_cdf(level) for level in task.levels])
    quantiles = mean[..., None] + width[..., None] * at
    return Forecast(windows.ids, windows.origin_us, task.levels, mean, quantiles)


class _Kept(NamedTuple):
    """A forecast of one series: mean [H] and quantiles [H, Q]."""

    origin_us: int
    levels: tuple[float, ...]
    mean: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def of(cls, forecast: Forecast, i: int) -> _Kept:
        """One of them, without holding the arrays of all in memory."""
        mean, quantiles = forecast.mean[i].copy(), forecast.quantiles[i].copy()
        return cls(int(forecast.origin_us[i]), forecast.levels, mean, quantiles)


class LastForecasts:
    """The latest forecast of some series. For one thread."""

    def __init__(self, keep: int = KEPT) -> None:
        self._keep = keep
        self._by_id: OrderedDict[str, _Kept] = OrderedDict()

    def remember(self, forecast: Forecast, named: Sequence[bool]) -> None:
        """Keep the forecasts of series that have a name."""
        if len(forecast.ids) > MOST_AT_ONCE:
            return
        for i, name in enumerate(forecast.ids):
            if named[i]:
                self._by_id[name] = _Kept.of(forecast, i)
                self._by_id.move_to_end(name)
        while len(self._by_id) > self._keep:
            self._by_id.popitem(last=False)

    def recall(self, ids: Sequence[str], origin_us: np.ndarray | None) -> Forecast | None:
        """Forecasts of all these series, or None; from these origins, or from any for None."""
        found = [self._by_id.get(name) for name in ids]
        kept = [one for one in found if one is not None]
        if not kept or len(kept) < len(found):
            return None
        origins = np.array([one.origin_us for one in kept], dtype=np.int64)
        if origin_us is not None and (origins != origin_us).any():
            return None
        if len({(one.levels, one.mean.shape) for one in kept}) > 1:
            return None
        return Forecast(
            tuple(ids),
            origins,
            kept[0].levels,
            np.stack([one.mean for one in kept]),
            np.stack([one.quantiles for one in kept]),
        )
