"""Which covariates a curve of Prophet gets, and in what shape.

Design choices: marks (holidays, columns of zeros and ones) enter as they are; Prophet is linear in
what it gets, and what answers to heat and cold alike is not, so a continuous covariate enters as a
quadratic in its value and in its mean over the last season: demand follows the weather with the
inertia of walls (the recency effect of Wang, Liu & Hong, "Electric load forecasting with recency
effect", International Journal of Forecasting, 2016); all of it is known beforehand, and its units
are those of the training span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays

SETS = ("none", "events", "all")
"""From the fewest columns to the most."""


@dataclass(frozen=True)
class Regressors:
    """Columns made of those of a `future` array.

    plain: names of columns that enter as they are; curved: names of those that enter as a
    quadratic, after division of what they differ from `center` by `spread`; season: steps of
    which the mean enters too, 1: only the value does.
    """

    plain: tuple[str, ...] = ()
    curved: tuple[str, ...] = ()
    center: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    season: int = 1

    @property
    def reach(self) -> int:
        """Steps before the first wanted one that are read."""
        return self.season - 1 if self.curved else 0

    def columns(self, future: np.ndarray, contract: Contract) -> np.ndarray:
        """What enters: float64 [n, t, R].

        future: [n, reach + t, F] in the order of `contract.future`.
        """
        at = [contract.future.index(name) for name in self.plain]
        plain = future[:, self.reach :, at].astype(np.float64)
        if not self.curved:
            return plain
        at = [contract.future.index(name) for name in self.curved]
        # What is missing of the past counts as usual, or it would spoil every later mean.
        z = np.nan_to_num((future[..., at] - np.asarray(self.center)) / np.asarray(self.spread))
        now = z[:, self.reach :]
        found = [plain, now, now**2]
        if self.season > 1:
            before = np.cumsum(np.pad(z, ((0, 0), (1, 0), (0, 0))), axis=1)
            mean = (before[:, self.season :] - before[:, : -self.season]) / self.season
            found += [mean, mean**2, now * mean]
        return np.concatenate(found, axis=2)

    def history(self, data: SeriesArrays, series: int, first: int, end: int) -> np.ndarray:
        """What enters at the steps from `first` to `end` of one series: float64 [end - first, R].

        Before its start a series has its first values.
        """
        steps = np.maximum(np.arange(first - self.reach, end), 0)
        rows = int(data.offsets[series]) + steps
        return self.columns(data.future[rows][None], data.contract)[0]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Regressors:
        lists = {name: tuple(value) for name, value in raw.items() if name != "season"}
        return cls(**lists, season=int(raw["season"]))

    @classmethod
    def linear(cls, contract: Contract) -> Regressors:
        """Every covariate as it is."""
        return cls(plain=tuple(offered(contract)))


def offered(contract: Contract) -> list[str]:
    """Columns of `future` that Prophet may get: holidays and known-future covariates."""
    return [n for n in contract.future if n not in contract.calendar or n == "holiday"]


def regressors_of(data: SeriesArrays, word: str) -> Regressors:
    """The set of that name; what is a mark and what is usual is read off the training span."""
    if word == "none":
        return Regressors()
    names = offered(data.contract)
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    training = position < np.repeat(data.train_end, data.lengths)
    at = [data.contract.future.index(name) for name in names]
    known = data.future[training][:, at].astype(np.float64)
    marks = ((known == 0) | (known == 1)).all(axis=0)
    plain = _chosen(names, marks)
    if word == "events" or marks.all():
        return Regressors(plain)
    spread = known[:, ~marks].std(axis=0)
    return Regressors(
        plain,
        _chosen(names, ~marks),
        tuple(known[:, ~marks].mean(axis=0).tolist()),
        tuple(np.where(spread > 0, spread, 1.0).tolist()),
        data.contract.season,
    )


def _chosen(names: Sequence[str], kept: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, keep in zip(names, kept, strict=True) if keep)
