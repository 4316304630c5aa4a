"""How often a band held, how sure that number is, and whether it keeps its promise.

Design choices: values of one origin instant are one observation, because series share weather and
errors of one forecast go together, and instants are resampled in blocks that span the overlap of
their windows (`bootstrap.py`), so the interval is as wide as the few windows that do not overlap
make it; a promise is kept or broken only where the whole interval says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import pyarrow as pa

from flts_ray.evaluate.backtest import Backtest
from flts_ray.evaluate.bootstrap import block_length, overlap, paired_block_bootstrap

BANDS = ((0.8, 0.1, 0.9), (0.95, 0.025, 0.975))
"""What a band promises, and the levels that bound it."""
TOLERANCE = 0.02
"""How far from its promise a band may be, a share of the values."""
RESAMPLES = 1000
Verdict = Literal["holds", "narrow", "wide", "unclear"]


@dataclass(frozen=True)
class BandCoverage:
    """What one band of one backtest covered.

    kept: the bands were kept up to date; nominal, share: what it promises and holds; lower, upper:
    95 % interval of the share, NaN where there are too few windows; apart: windows that do not
    overlap; width: mean width in the input's units.
    """

    kept: bool
    nominal: float
    share: float
    lower: float
    upper: float
    apart: int
    width: float

    @property
    def verdict(self) -> Verdict:
        """Whether the share lies within TOLERANCE of what was promised."""
        if not math.isfinite(self.lower + self.upper):
            return "unclear"
        low, high = self.nominal - TOLERANCE, self.nominal + TOLERANCE
        if self.upper < low or self.lower > high:
            return "narrow" if self.upper < low else "wide"
        return "holds" if low <= self.lower and self.upper <= high else "unclear"


def band_coverage(
    bt: Backtest, nominal: float, low: float, high: float, step_us: int, *, kept: bool = False
) -> BandCoverage:
    """The band between two levels of a backtest; step_us: one step of its horizon."""
    lower, upper = bt.quantile(low), bt.quantile(high)
    seen = np.isfinite(bt.actual)
    inside = (bt.actual >= lower) & (bt.actual <= upper)
    instants, at = np.unique(bt.origin_us, return_inverse=True)
    count = np.bincount(at, seen.sum(axis=1), len(instants))
    total = np.bincount(at, inside.sum(axis=1), len(instants))
    told = count > 0
    instants, count, total = instants[told], count[told], total[told]
    horizon = bt.actual.shape[1]
    ends = _interval(total / count, count, instants, horizon, step_us)
    apart = -(-len(instants) // overlap(instants, horizon, step_us))
    share = float(total.sum() / count.sum()) if len(count) else math.nan
    width = float((upper - lower)[seen].mean()) if seen.any() else math.nan
    return BandCoverage(kept, nominal, share, *ends, apart, width)


def _interval(
    share: np.ndarray, weight: np.ndarray, instants: np.ndarray, horizon: int, step_us: int
) -> tuple[float, float]:
    block = block_length(instants, horizon, step_us)
    if len(instants) < 2 * block:
        return math.nan, math.nan
    found = paired_block_bootstrap(share, block, RESAMPLES, 0, weight, level=0.025)
    return max(found.lower, 0.0), min(found.upper, 1.0)


def bands_table(bt: Backtest, kept: Backtest | None, step_us: int) -> pa.Table:
    """A row for each band as it was fitted, and as it was kept up to date."""
    found = [band_coverage(bt, *band, step_us) for band in BANDS]
    if kept is not None:
        found += [band_coverage(kept, *band, step_us, kept=True) for band in BANDS]
    rows = [{**asdict(one), "verdict": one.verdict} for one in found]
    return pa.Table.from_pylist(rows)


def bands_of(table: pa.Table) -> Mapping[tuple[bool, float], BandCoverage]:
    """The rows of `bands_table`, by whether they were kept and what they promise."""
    names = [field.name for field in fields(BandCoverage)]
    rows = table.to_pylist()
    found = [BandCoverage(**{name: row[name] for name in names}) for row in rows]
    return {(one.kept, one.nominal): one for one in found}
