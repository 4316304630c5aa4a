"""What travels between the benchmark and the runner of another library: tasks and forecasts.

Design choices: NumPy alone, because this file is imported in two environments that share nothing
else; a task holds whole series and the origins of its windows, so that every library slices its
own histories from the same numbers; a forecast names the windows it is for, so that one of a few
windows is never scored as if it were of all; what happened is worked out from the task by the
judge, never by a runner. Positions count steps from the start of their series.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
"""Quantile levels that everybody is asked for and judged at."""


@dataclass(frozen=True)
class TaskData:
    """Series end to end, and the windows of the test span.

    horizon, season: steps. ids: [S]. offsets: int64 [S + 1]; series i is rows
    `offsets[i]:offsets[i + 1]`. train_end, valid_end: int64 [S], positions. y: float64 [rows],
    without NaN (gaps hold the last value seen). observed: bool [rows]. wall_us: int64 [rows],
    local time. series, positions: int64 [n], series and first forecast step of each window.
    few: bool [n], the windows of the subsample. known, past: float32 [rows, F] and [rows, P],
    covariates known in advance, and those that are only measured.
    """

    name: str
    horizon: int
    season: int
    ids: np.ndarray
    offsets: np.ndarray
    train_end: np.ndarray
    valid_end: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    wall_us: np.ndarray
    series: np.ndarray
    positions: np.ndarray
    few: np.ndarray
    known: np.ndarray
    past: np.ndarray

    @property
    def n_series(self) -> int:
        return len(self.ids)

    def rows(self, series: int) -> slice:
        return slice(int(self.offsets[series]), int(self.offsets[series + 1]))

    def actual(self, windows: np.ndarray) -> np.ndarray:
        """What happened in these windows, float64 [len(windows), H], NaN where not observed."""
        first = self.offsets[self.series[windows]] + self.positions[windows]
        at = first[:, None] + np.arange(self.horizon)
        return np.where(self.observed[at], self.y[at], np.nan)

    def spread(self, series: int) -> tuple[float, float]:
        """Mean and standard deviation of a series within its training span."""
        known = self.y[self.rows(series)][: int(self.train_end[series])]
        return float(known.mean()), float(known.std())

    def digest(self) -> str:
        """SHA-256 of every number."""
        found = hashlib.sha256()
        for one in fields(self):
            value = np.asarray(getattr(self, one.name))
            found.update(f"{one.name} {value.dtype} {value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> None:
        _save(path, {one.name: np.asarray(getattr(self, one.name)) for one in fields(self)})

    @classmethod
    def load(cls, path: Path) -> TaskData:
        with np.load(path, allow_pickle=False) as found:
            values: dict[str, Any] = {one.name: found[one.name] for one in fields(cls)}
        values["name"] = str(values["name"])
        return cls(**{**values, **{n: int(values[n]) for n in ("horizon", "season")}})


@dataclass(frozen=True)
class ForecastData:
    """Forecasts of some windows of a task, in the units of its series.

    windows: int64 [m], rising, which windows of the task. mean: float32 [m, H]. quantiles:
    float32 [m, H, len(LEVELS)], None where the model has none. about: what it took (JSON values).
    """

    windows: np.ndarray
    mean: np.ndarray
    quantiles: np.ndarray | None
    about: dict[str, Any]

    def save(self, path: Path) -> None:
        """The file appears as a whole or not at all."""
        arrays = {"windows": self.windows, "mean": self.mean.astype(np.float32)}
        if self.quantiles is not None:
            arrays["quantiles"] = self.quantiles.astype(np.float32)
        _save(path, {**arrays, "about": np.asarray(json.dumps(self.about))})

    @classmethod
    def load(cls, path: Path) -> ForecastData:
        with np.load(path, allow_pickle=False) as found:
            quantiles = found.get("quantiles")
            about = json.loads(str(found["about"]))
            return cls(found["windows"], found["mean"], quantiles, about)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    part.replace(path)
