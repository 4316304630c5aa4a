"""Weights of a blend, learned on validation forecasts, and how good they are on others.

Design choices: what is reported comes from blocks of time that the weights have not seen, with a
horizon left out on both sides, so a blend cannot win by fitting its weights; a series gets weights
of its own, shrunk towards those of all by a share chosen on the blocks, only if its gain, itself
shrunk towards the mean gain of all series with the blocks as replicates (empirical Bayes, Efron &
Morris 1975), is positive, and only if all those gains together exceed their standard error
(Breiman et al. 1984); quantiles are calibrated again if that helps on the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from flts_ray.config import Score
from flts_ray.evaluate.backtest import Backtest
from flts_ray.evaluate.bench import Bench
from flts_ray.evaluate.greedy import Learned, Reads, learn
from flts_ray.evaluate.metrics import window_scores
from flts_ray.models.calibrate import apply_shift, fit_shift, scaled_pinball, share_apart

BLOCKS = 5
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of a series' own weights that are tried; the rest is that of all."""


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    weights, mean_weights: float64 [1 + k, M], of quantiles and of means; row 0 of all series
    without a row of their own. row_of_series: int64 [S]. shift: float64 [H, Q] as `fit_shift`
    gives it, zero if calibrating again does not help. judged: forecasts of every window by
    weights (and corrections) that were learned without its block.
    """

    weights: np.ndarray
    mean_weights: np.ndarray
    row_of_series: np.ndarray
    shift: np.ndarray
    judged: Backtest

    @property
    def single(self) -> bool:
        """True if one member serves every series."""
        used = (self.weights > 0).any(axis=0) | (self.mean_weights > 0).any(axis=0)
        return int(used.sum()) == 1


@dataclass(frozen=True)
class Block:
    """Windows that are judged, and those from which weights for them are learned: bool [n]."""

    held: np.ndarray
    train: np.ndarray


def select(
    bench: Bench, score: Score, max_members: int, horizon_us: int, *, per_series: bool
) -> Selection | None:
    """Choose weights on all windows and judge the choice block by block.

    horizon_us: length of a forecast in microseconds. None where the windows cover too little
    time for two blocks and a horizon between them.
    """
    blocks = time_blocks(bench.origin_us, horizon_us)
    if not blocks:
        return None
    reads, series, n = Reads.of(bench, score), bench.origins.series, len(bench.series_scale)
    own, everywhere = per_series and n > 1, np.ones(len(bench), dtype=bool)

    def learned_on(rows: np.ndarray) -> Learned:
        return learn(reads, rows, series, n, max_members, own)

    folds = [learned_on(block.train) for block in blocks]
    whole = learned_on(everywhere)
    trials = _Trials(bench, reads, blocks, folds)
    choice = trials.owners() if own else None
    rows, row_of_series = whole.weights[None], np.zeros(n, np.int64)
    if choice is not None:
        owners = np.flatnonzero(choice.owners)
        row_of_series[owners] = np.arange(1, len(owners) + 1)
        mixed = (1.0 - choice.share) * whole.weights + choice.share * whole.own[owners]
        rows = np.concatenate([rows, mixed])
    weights, mean_weights = reads.parted(rows, whole.other)
    shift = np.zeros(bench.backtests[0].quantiles.shape[1:])
    if trials.shifts is not None:
        shift = _shift_of(bench, bench.mixed(weights[row_of_series[series]]), everywhere)
    judged = trials.base if choice is None else choice.judged
    return Selection(weights, mean_weights, row_of_series, shift, judged)


def time_blocks(origin_us: np.ndarray, horizon_us: int) -> list[Block]:
    """Equal stretches of time; training windows share no value with those held out.

    Empty if some stretch would leave nothing to learn from.
    """
    first, last = int(origin_us.min()), int(origin_us.max())
    edges = np.linspace(first, last + 1, BLOCKS + 1).astype(np.int64)
    found = []
    for begin, end in pairwise(edges):
        held = (origin_us >= begin) & (origin_us < end)
        far = (origin_us < begin - horizon_us) | (origin_us >= end + horizon_us)
        if held.any():
            found.append(Block(held, far))
    usable = len(found) > 1 and all(block.train.any() for block in found)
    return found if usable else []


def _shift_of(bench: Bench, mixture: Backtest, rows: np.ndarray) -> np.ndarray:
    actual, origins = mixture.actual[rows], mixture.origins.part(rows)
    apart = share_apart(origins.series, origins.positions, actual.shape[1])
    return fit_shift(actual, mixture.quantiles[rows], bench.scale[rows], mixture.levels, apart)


@dataclass(frozen=True)
class _Choice:
    share: float
    owners: np.ndarray
    judged: Backtest


class _Trials:
    """Every window forecast by what was learned without its block.

    base: by the weights of all series. shifts: corrections of its quantiles, one a block,
    [H, Q]; None where they do not help on the blocks.
    """

    def __init__(
        self, bench: Bench, reads: Reads, blocks: Sequence[Block], folds: Sequence[Learned]
    ) -> None:
        self.bench, self.reads = bench, reads
        self.blocks, self.folds = blocks, folds
        self.shifts: list[np.ndarray] | None = None
        raw = self.forecasts(0.0)
        self.shifts = self._shifts()
        moved = self.forecasts(0.0)
        before, after = (
            scaled_pinball(one.actual, one.quantiles, bench.scale, one.levels)
            for one in (raw, moved)
        )
        self.base = moved
        if after >= before:
            self.shifts, self.base = None, raw

    def _shifts(self) -> list[np.ndarray]:
        found = []
        for block, fold in zip(self.blocks, self.folds, strict=True):
            quantiles, _ = self.reads.parted(fold.weights, fold.other)
            found.append(_shift_of(self.bench, self.bench.mixed(quantiles), block.train))
        return found

    def forecasts(self, share: float | np.ndarray) -> Backtest:
        """With a share of own weights for all windows, or one a window, float64 [n]."""
        series, shares = self.bench.origins.series, np.broadcast_to(share, len(self.bench))
        weights = np.zeros((len(self.bench), len(self.bench.names)))
        others = weights.copy()
        for block, fold in zip(self.blocks, self.folds, strict=True):
            part = shares[block.held, None]
            own = fold.own[series[block.held]]
            weights[block.held] = (1.0 - part) * fold.weights + part * own
            others[block.held] = fold.other
        mixture = self.bench.mixed(*self.reads.parted(weights, others))
        if self.shifts is None:
            return mixture
        quantiles = mixture.quantiles.copy()
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            scale = self.bench.scale[block.held]
            quantiles[block.held] = apply_shift(quantiles[block.held], shift, scale)
        return replace(mixture, quantiles=quantiles)

    def owners(self) -> _Choice | None:
        """Which series pay for weights of their own; None if those do not pay together."""
        base = self._scores(self.base)
        gains = {share: base - self._scores(self.forecasts(share)) for share in SHARES}
        shares, paid = np.zeros(len(self.bench)), []
        series = self.bench.origins.series
        for number, block in enumerate(self.blocks):
            others = [one for at, one in enumerate(self.blocks) if at != number]
            share, owners = self._best(base, gains, others)
            use = block.held & owners[series]
            shares[use] = share
            paid.append(float(gains[share][use].sum() / block.held.sum()))
        error = float(np.std(paid, ddof=1)) / np.sqrt(len(paid))
        share, owners = self._best(base, gains, self.blocks)
        if not owners.any() or not np.mean(paid) > error:
            return None
        return _Choice(share, owners, self.forecasts(shares))

    def _scores(self, forecasts: Backtest) -> np.ndarray:
        return window_scores(forecasts, self.bench.series_scale, self.reads.score)

    def _best(
        self, base: np.ndarray, gains: dict[float, np.ndarray], blocks: Sequence[Block]
    ) -> tuple[float, np.ndarray]:
        """The share, and the series that take it, with the largest gain on these blocks."""
        series, seen = self.bench.origins.series, np.any([b.held for b in blocks], axis=0)
        found: dict[float, tuple[float, np.ndarray]] = {}
        for share, gain in gains.items():
            held = [block.held for block in blocks]
            owners = paying(gain, base, series, held, len(self.bench.series_scale))
            found[share] = (float(gain[seen & owners[series]].sum()), owners)
        best = max(found, key=lambda share: (found[share][0], -share))
        return best, found[best][1]


def paying(
    gain: np.ndarray, base: np.ndarray, series: np.ndarray, held: Sequence[np.ndarray], n: int
) -> np.ndarray:
    """Series whose gain, shrunk towards the mean of all, is positive: bool [n].

    gain, base: float64 [windows], score saved and score without it; held: the windows of each
    block. Gains count relative to the series' own score, so that series of any size compare.
    The spread between blocks tells how much of the spread between series is chance; that part
    is shrunk away (Efron & Morris 1975). Series seen in fewer than two blocks do not pay.
    """
    each = np.full((len(held), n), np.nan)
    level = _means(base, series, n)
    for number, rows in enumerate(held):
        mean = _means(gain[rows], series[rows], n)
        each[number] = np.divide(mean, level, out=np.full(n, np.nan), where=level > 0)
    count = np.isfinite(each).sum(axis=0)
    known = count > 1
    if not known.any():
        return known
    seen = each[:, known]
    mean = np.nanmean(seen, axis=0)
    noise = float(np.mean(np.nanvar(seen, axis=0, ddof=1) / count[known]))
    spread = float(np.var(mean, ddof=1)) if len(mean) > 1 else 0.0
    real = max(0.0, spread - noise)
    centre = float(np.mean(mean))
    trust = real / (real + noise) if real > 0 else 0.0
    paid = np.zeros(n, dtype=bool)
    paid[known] = centre + trust * (mean - centre) > 0
    return paid


def _means(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Mean of each group, NaN where it is empty: float64 [groups]."""
    count = np.bincount(group, minlength=groups)
    total = np.bincount(group, values, groups)
    return np.divide(total, count, out=np.full(groups, np.nan), where=count > 0)
