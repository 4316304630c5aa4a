"""How good forecasts turned out to be, from what later requests say happened.

Design choices: a caller who asks again for a series sends its newest values, among them those that
were forecast before, so a replica can judge its own forecasts without any other source; errors are
divided by the scale of the series, so that all of them share one mean; the newest forecast of each
series is kept, for a bounded number of series.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.observe import Made

KEEP_SERIES = 8192


@dataclass
class Tally:
    """One number of each window of a version, such as its mean absolute error by its scale."""

    windows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.windows += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        """NaN before the first window."""
        return self.total / self.windows if self.windows else float("nan")

    @property
    def doubt(self) -> float:
        """Standard error of the mean; infinite with fewer than two windows."""
        if self.windows < 2:
            return float("inf")
        spread = max(self.squares / self.windows - self.mean**2, 0.0)
        return float(np.sqrt(spread / (self.windows - 1)))


@dataclass(frozen=True, slots=True)
class _Given:
    version: str
    ds_us: np.ndarray
    mean: np.ndarray
    scale: float


class LiveError:
    """Remembers forecasts and judges them. Not safe to share by threads."""

    def __init__(self, keep: int = KEEP_SERIES) -> None:
        self._keep = keep
        self._given: OrderedDict[tuple[str, str], _Given] = OrderedDict()
        self.tallies: dict[str, Tally] = {}

    def observe(self, windows: Windows) -> None:
        """Judge what was forecast for these series before their present origins.

        A forecast is judged once, on the observed steps that have passed by then.
        """
        known = {key: self._given[key] for key in self._keys(windows.ids)}
        if not known:
            return
        back = np.arange(-windows.lookback, 0)
        for i, name in enumerate(windows.ids):
            for version in list(self.tallies):
                given = known.get((version, name))
                if given is None or given.ds_us[0] >= windows.origin_us[i]:
                    continue
                stamps = steps_after(windows.origin_us[i], back, windows.contract)
                self._judge(given, stamps, np.where(windows.observed[i], windows.y[i], np.nan))
                self._given.pop((version, name), None)

    def remember(self, made: Made) -> None:
        """Keep the forecasts of an answer until they can be judged."""
        windows, forecast = made.windows, made.forecast
        self.tallies.setdefault(made.version, Tally())
        steps = np.arange(made.horizon)
        for i, name in enumerate(forecast.ids):
            ds_us = steps_after(forecast.origin_us[i], steps, windows.contract)
            mean = np.array(forecast.mean[i, : made.horizon])  # not a view of a whole batch
            key = (made.version, name)
            earlier = self._given.get(key)
            # Callers ask again before a step has passed; the first forecast is judged then.
            if earlier is not None and earlier.ds_us[0] == ds_us[0]:
                continue
            self._given[key] = _Given(made.version, ds_us, mean, _scale(windows, i))
            self._given.move_to_end(key)
        while len(self._given) > self._keep:
            self._given.popitem(last=False)

    def forget(self, version: str) -> None:
        """Drop everything about a version."""
        self.tallies.pop(version, None)
        for key in [key for key in self._given if key[0] == version]:
            del self._given[key]

    def _keys(self, ids: tuple[str, ...]) -> list[tuple[str, str]]:
        every = ((version, name) for version in self.tallies for name in ids)
        return [key for key in every if key in self._given]

    def _judge(self, given: _Given, stamps: np.ndarray, actual: np.ndarray) -> None:
        """stamps: int64 [L], rising; actual: float64 [L], NaN where not observed."""
        at = np.searchsorted(stamps, given.ds_us)
        inside = at < len(stamps)
        hit = np.zeros(len(at), dtype=bool)
        hit[inside] = stamps[at[inside]] == given.ds_us[inside]
        missed = np.abs(actual[at[hit]] - given.mean[hit])
        missed = missed[np.isfinite(missed)]
        if len(missed):
            self.tallies[given.version].add(float(missed.mean()) / given.scale)


def _scale(windows: Windows, i: int) -> float:
    """The scale of a window's series; of a new one the mean absolute difference of its steps."""
    scale = float(windows.scale[i])
    if np.isfinite(scale) and scale > 0:
        return scale
    moved = float(np.abs(np.diff(windows.y[i])).mean()) if windows.lookback > 1 else 0.0
    return max(moved, 1e-12)
