"""Which of many in a row to take, evenly: one of each stratum, at a place that turns.

Design choices: stratified sampling whose jitter is a Kronecker sequence (Niederreiter 1992, Random
Number Generation and Quasi-Monte Carlo Methods): as many as asked for, evenly over the row and
over cycles in it, whether or not they share factors with the distance of two strata; the turns are
noble numbers, the golden ratio first, which are the hardest to approximate by fractions, but each
meets cycles with which it moves in step, so the one of a few is kept under which what is taken is
the most even; integers only, so that every machine takes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TURNS = (
    0.6180339887498949,
    0.7236067977499789,
    0.7834576353408995,
    0.8220017888815734,
    0.5801787282954640,
    0.5607085810080679,
    0.7043140005921108,
    0.5488468815466119,
)
"""Noble numbers above one half: neighbours of two strata lie more than half a stratum apart."""
BITS = 24
"""Places that are told apart within a stratum, as a power of two."""

Labels = Callable[[np.ndarray], Sequence[np.ndarray]]
"""What shall be even of positions [k], each as small integers >= 0, [k]: phases, for example."""


def evenly(total: int, most: int, labels: Labels) -> np.ndarray:
    """`min(total, most)` of the positions below `total`, rising: int64 [k].

    total: below 2**38; most: one or more. Of each label the positions hold every value as often
    as it can be had, about.
    """
    if total <= most:
        return np.arange(total)
    tried = [stratified(total, most, turn) for turn in TURNS]
    return min(tried, key=lambda found: _unevenness(labels(found)))


def stratified(total: int, count: int, turn: float = TURNS[0]) -> np.ndarray:
    """`count` <= `total` positions, one in each of as many equal parts, rising: int64 [count].

    Any position is as likely as any other. Where more than half are taken, those that are left
    out lie so: parts of fewer than two positions would give some of them twice.
    """
    if 2 * count > total:
        left = np.ones(total, dtype=bool)
        if count < total:
            left[stratified(total, total - count, turn)] = False
        return np.flatnonzero(left)
    part = np.arange(count)
    whole, rest = divmod(total, count)
    begin, beyond = divmod(part * rest, count)
    # Position (part + place) * total / count, rounded down, without a product that overflows.
    return (
        part * whole + begin + ((beyond << BITS) + _places(part, turn) * total) // (count << BITS)
    )


def in_turn_of(steps: np.ndarray, stride: int, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Whether each step from the first on is taken where one in `stride` is: bool, same shape.

    What `stratified` does to a row whose end is not known yet. steps: int64 >= 0. shift: a share
    in [0, 1) by which the places of a row lie elsewhere (Cranley & Patterson 1976), so that rows
    side by side are not all taken at the same step.
    """
    part, place = divmod(steps, stride)
    return np.asarray(place == (_places(part, TURNS[0], shift) * stride) >> BITS)


def _places(part: np.ndarray, turn: float, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Where in its part each position lies, as a share of 2**BITS: int64."""
    turned = (part.astype(np.uint64) + np.uint64(1)) * np.uint64(int(turn * 2**64))
    shifted = turned + (np.asarray(shift * 2**32).astype(np.uint64) << np.uint64(32))
    return np.asarray(shifted >> np.uint64(64 - BITS)).astype(np.int64)


def _unevenness(labels: Sequence[np.ndarray]) -> int:
    """Pairs of positions of one label, summed over labels: fewer are more even."""
    return sum(int(np.square(np.bincount(label)).sum()) for label in labels)
