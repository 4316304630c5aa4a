"""Weights of models whose forecasts are put together, learned on stored errors.

Design choices: greedy selection with replacement (Caruana, Niculescu-Mizil, Crew & Ksikes 2004)
keeps weights non-negative, few and never worse than the best single model where they are learned;
all series search side by side, so many cost about as much as one; what the score does not read is
not left to chance: means are then chosen by squared errors, quantiles by pinball loss, for all
series alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flts_ray.config import Score
from flts_ray.evaluate.bench import Bench, Errors

ROUNDS = 25
"""Most models drawn into a bag; weights are multiples of one over their number."""
PATIENCE = 6
"""Draws without a better bag after which the search ends."""
MIN_OWN_WINDOWS = 20
"""Windows of a series below which its own weights would be chance."""


@dataclass(frozen=True)
class Learned:
    """weights: float64 [M], of all series, for what the score reads; own: float64 [S, M], of
    each series, unshrunk; other: float64 [M], for what the score does not read."""

    weights: np.ndarray
    own: np.ndarray
    other: np.ndarray


@dataclass(frozen=True)
class Reads:
    """Which part of a forecast the score reads, and the errors from which weights are learned."""

    score: Score
    errors: Errors
    others: Errors | None

    @classmethod
    def of(cls, bench: Bench, score: Score) -> Reads:
        errors = Errors.of(bench, score)
        if score == "composite":  # reads the mean and the median
            return cls(score, errors, None)
        rest: Score = "scaled_pinball" if score == "rmse" else "rmse"
        return cls(score, errors, Errors.of(bench, rest, scaled=True))

    def parted(self, read: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of quantiles and of means; `other` for the part that is not read."""
        if self.others is None:
            return read, read
        other = np.broadcast_to(other, read.shape)
        return (other, read) if self.score == "rmse" else (read, other)


def learn(
    reads: Reads, rows: np.ndarray, series: np.ndarray, n_series: int, max_members: int, own: bool
) -> Learned:
    """Weights of all series together, and (if `own`) of each for itself, on some windows.

    rows: bool [n], the windows; series: int64 [n], of each window. Series with few windows keep
    the weights of all. Single series, and what the score does not read, draw from the members
    of all, and from further ones as long as there is room.
    """
    errors, series = reads.errors.part(rows), series[rows]
    everyone = np.zeros(len(series), dtype=np.int64)
    weights = greedy(errors, everyone, 1, np.arange(len(errors.values)), max_members)[0]
    alone = [errors.loss(one, everyone, 1)[0] for one in errors.values]
    order = sorted(range(len(alone)), key=lambda m: (weights[m] == 0, alone[m]))
    pool = np.sort(order[:max_members])
    other = weights
    if reads.others is not None:
        other = greedy(reads.others.part(rows), everyone, 1, pool, max_members)[0]
    table = weights[None].repeat(n_series, axis=0)
    enough = np.bincount(series, minlength=n_series) >= MIN_OWN_WINDOWS
    if own and enough.any():
        table[enough] = greedy(errors, series, n_series, pool, max_members)[enough]
    return Learned(weights, table, other)


def greedy(
    errors: Errors, group: np.ndarray, groups: int, pool: np.ndarray, max_members: int
) -> np.ndarray:
    """Weights of each group of windows, float64 [groups, M]; rows sum to one.

    Each round adds the model that helps a group's bag most; the best bag of all rounds stays.
    The first bag is the best single model, so no group's loss is above that model's. pool: the
    models to draw from. Caruana et al. 2004.
    """
    every, size = np.arange(groups), len(errors.values)
    drawn = np.zeros((groups, size), dtype=np.int64)
    kept, best, last = drawn.copy(), np.full(groups, np.inf), 0
    bag = np.zeros_like(errors.values[0])
    for count in range(1, ROUNDS + 1):
        tried = np.full((size, groups), np.inf)
        for model in pool:
            mixture = (bag + errors.values[model]) / np.float32(count)
            tried[model] = errors.loss(mixture, group, groups)
        full = (drawn > 0).sum(axis=1) >= max_members
        tried[(full[:, None] & (drawn == 0)).T] = np.inf
        chosen = tried.argmin(axis=0)
        drawn[every, chosen] += 1
        bag += errors.values[chosen[group], errors.window_numbers]
        better = tried[chosen, every] < best
        best = np.where(better, tried[chosen, every], best)
        kept[better] = drawn[better]
        last = count if better.any() else last
        if count - last >= PATIENCE:
            break
    return kept / kept.sum(axis=1, keepdims=True)
