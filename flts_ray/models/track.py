"""Bands that follow what they missed: each level is tracked by how often it was passed.

Design choices: after each horizon of time, every level moves against the share of values that
were beyond it (quantile tracking and adaptive conformal inference: Gibbs & Candes 2021;
Angelopoulos, Candes & Tibshirani 2023), so in the long run the shares come right however the data
drift; one step is bounded, because a share is; a level and its mirror move apart or together as
the band is too narrow or too wide, and only where it pays to one side, because how far errors
spread lasts longer than where they lean; steps are in units of the band, by the slope of the
normal distribution (Newton's step on the pinball loss), so no level and no series needs a rate of
its own; several rates run side by side and share the band by their pinball losses so far, with a
rate of learning that needs no setting (DtACI, Gibbs & Candes 2022; AdaHedge, de Rooij et al. 2014);
steps of the horizon borrow from their neighbours and from all; the width of a series follows how
much more often than the others it is missed. Only forecasts whose whole target has been seen
count, so nothing after an instant moves the bands of that instant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RATES = (0.1, 0.2, 0.4)
"""Of the way to the right level that a normal error would need, for each horizon of time."""
LEANS = (0.0, 0.05)
"""The same for both sides together, where errors lean to one side."""
EXPERTS = tuple((rate, lean) for rate in RATES for lean in LEANS)
SERIES_RATE = 0.1
"""The same for the width of one series against those that have news with it."""
ALONE_RATE = 0.2
"""The same for the width of the only series that have news, against those that have none."""
NEAR = 0.5
"""Share of a step's move that comes from its neighbours alone; the rest comes from all steps."""
NEIGHBOURS = 8
"""A step's neighbours on each side are this part of the horizon."""
UNITS = (0.1, 2.5)
"""Smallest and largest unit of a move, in mean absolute errors of the median."""
MEMORY = 0.1
"""Share of a horizon of time in those errors."""
MOST = 1.0
"""Units that a level moves at most in one horizon of time."""


@dataclass(frozen=True)
class Served:
    """How far off bands were, as they were served.

    scores: float64 [n, H, Q], what happened less each level in units of the window's band, NaN
    where nothing was observed; slot: int64 [n], the stretch of time in which the targets ended,
    from 0 on; series: int64 [n]; step: length of a slot in horizons, at most 1; share: of all
    series, those that have news.
    """

    scores: np.ndarray
    slot: np.ndarray
    series: np.ndarray
    step: float
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.slot)

    def slots(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores and series of each slot that holds any, oldest first."""
        for slot in np.unique(self.slot):
            rows = self.slot == slot
            if np.isfinite(self.scores[rows]).any():
                yield self.scores[rows], self.series[rows]


@dataclass(frozen=True)
class Track:
    """Where every expert would have the bands.

    theta: float64 [experts, H, Q], against the bands of the fit, in units of the window's band;
    loss: float64 [experts], their pinball losses so far; gap: what mixing them has cost so far;
    size: mean absolute error of the median of late, in the same units, zero before the first;
    profile: float64 [H], width of the band at each step against the mean of all, when it began.
    """

    theta: np.ndarray
    loss: np.ndarray
    gap: float
    size: float
    profile: np.ndarray

    @classmethod
    def none(cls, horizon: int, levels: int) -> Track:
        """Nothing scored yet."""
        shape = (len(EXPERTS), horizon, levels)
        return cls(np.zeros(shape), np.zeros(len(EXPERTS)), 0.0, 0.0, np.zeros(horizon))

    @property
    def weights(self) -> np.ndarray:
        """How much each expert is trusted, float64 [experts]; they sum to one."""
        return _weights(self.loss, self.gap)

    @property
    def shift(self) -> np.ndarray:
        """The correction that is part of the bands now, float64 [H, Q]."""
        return np.asarray(np.einsum("j,jhq->hq", self.weights, self.theta))

    def arrays(self) -> dict[str, np.ndarray]:
        sizes = np.array([self.gap, self.size])
        return {"theta": self.theta, "loss": self.loss, "sizes": sizes, "profile": self.profile}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Track:
        """The inverse of `arrays`; of an artifact that kept scores instead, a new beginning.

        Raises KeyError and ValueError for anything else.
        """
        if "theta" not in arrays:
            return cls.none(*arrays["shift"].shape)
        theta, loss, profile = (arrays[name] for name in ("theta", "loss", "profile"))
        gap, size = (float(value) for value in arrays["sizes"])
        expected = (len(EXPERTS), len(profile))
        if theta.ndim != 3 or theta.shape[:2] != expected or loss.shape != expected[:1]:
            raise ValueError(f"tracks {theta.shape} and losses {loss.shape} do not fit")
        finite = all(np.isfinite(array).all() for array in (theta, loss, profile))
        if not (finite and min(gap, size) >= 0):
            raise ValueError("tracks hold numbers that are not finite or negative")
        return cls(theta, loss, gap, size, profile)


class Step(NamedTuple):
    """What was learned from some windows.

    by: float64 [H, Q], how the bands move from where they are; louder: float64 [series], what is
    added to the logarithm of the width of each series.
    """

    track: Track
    by: np.ndarray
    louder: np.ndarray

    @classmethod
    def none(cls, track: Track, n_series: int) -> Step:
        """Nothing moves."""
        return cls(track, np.zeros(track.theta.shape[1:]), np.zeros(n_series))


def follow(
    track: Track, served: Served, levels: Sequence[float], n_series: int, *, own: bool
) -> Step:
    """Learn from windows whose targets are known, slot by slot in order of time.

    own: series have widths of their own; then, what only some series say is put down to them as
    far as the others are silent. Without a score nothing moves.
    """
    before, louder = track.shift, np.zeros(n_series)
    share = served.share if own else 1.0
    shape = _Shape.of(levels, track.theta.shape[1])
    for scores, series in served.slots():
        now = _widened(scores, louder[series], shape.middle)
        track, unit = _measured(track, now, shape, served.step)
        missed = now[None] - (track.theta - before)[:, None]
        track = _hedged(track, _losses(missed, unit, shape) * served.step)
        if own:
            mixed = now - (track.shift - before)
            louder[series] += served.step * _louder(mixed, series, share, shape)
        moves = share * served.step * _moves(missed, unit, shape)
        track = replace(track, theta=track.theta + moves)
    return Step(track, track.shift - before, louder)


class _Shape(NamedTuple):
    """levels: [Q]; mirror: [Q], where 1 - level stands, or the level itself; paired: bool [Q];
    normal: [Q], normal quantiles; newton: [Q], one over their density against the median's;
    middle: where the median stands; near: [H, H], what a step takes from each step."""

    levels: np.ndarray
    mirror: np.ndarray
    paired: np.ndarray
    normal: np.ndarray
    newton: np.ndarray
    middle: int
    near: np.ndarray

    @classmethod
    def of(cls, levels: Sequence[float], horizon: int) -> _Shape:
        known, standard = np.asarray(levels, np.float64), NormalDist()
        distance = np.abs(known[:, None] + known[None] - 1)
        paired = distance.min(axis=1) < 1e-9
        normal = np.array([standard.inv_cdf(q) for q in known])
        newton = 2 * standard.pdf(0.0) / np.array([standard.pdf(z) for z in normal])
        steps, reach = np.arange(horizon), 1 + max(1, horizon // NEIGHBOURS)
        # A triangle, not a box: its transform has no negative part, so no pattern of steps can
        # push itself further away from where it should be.
        near = np.maximum(1 - np.abs(steps[:, None] - steps[None]) / reach, 0.0)
        return cls(
            known,
            np.where(paired, distance.argmin(axis=1), np.arange(len(known))),
            paired,
            normal,
            newton,
            int(np.abs(known - 0.5).argmin()),
            NEAR * near / near.sum(axis=1, keepdims=True) + (1 - NEAR) / horizon,
        )


def _widened(scores: np.ndarray, louder: np.ndarray, middle: int) -> np.ndarray:
    """Scores against bands that are wider around their median by exp(louder): [n, H, Q]."""
    centre = scores[..., middle : middle + 1]
    return np.asarray(centre + (scores - centre) * np.exp(louder)[:, None, None])


def _measured(
    track: Track, scores: np.ndarray, shape: _Shape, step: float
) -> tuple[Track, np.ndarray]:
    """The track with the size of these errors, and the unit of a move at each step, [H].

    The unit is the standard deviation that a normal band of this width would have, within UNITS
    of the errors before, so that a band that has grown too wide does not grow by its width; not of
    these errors, because then steps after large ones would be the larger ones. Steps of the
    horizon keep the proportions they began with, so that none is left behind without a width.
    """
    spread = shape.normal - shape.normal.mean()
    slope = (-_mean(scores, axis=0) * spread).sum(axis=-1) / max(float((spread**2).sum()), 1e-12)
    width, error = float(slope.mean()), float(np.nanmean(np.abs(scores[..., shape.middle])))
    if not track.profile.any():
        even = np.ones_like(slope)
        profile = np.maximum(slope / width, UNITS[0]) if width > 0 else even
        track = replace(track, profile=profile, size=error)
    unit = np.clip(width, UNITS[0] * track.size, UNITS[1] * track.size) * track.profile
    size = track.size + MEMORY * step * (error - track.size)
    return replace(track, size=size), unit


def _losses(missed: np.ndarray, unit: np.ndarray, shape: _Shape) -> np.ndarray:
    """Mean pinball loss of each expert in units of the band: [experts]."""
    each = np.maximum(shape.levels * missed, (shape.levels - 1) * missed)
    over = np.maximum(unit, 1e-12)[:, None]
    return np.asarray(np.nanmean(each / over, axis=(1, 2, 3)))


def _moves(missed: np.ndarray, unit: np.ndarray, shape: _Shape) -> np.ndarray:
    """How far every expert moves in one horizon of time: [experts, H, Q].

    missed: [experts, n, H, Q], what happened less the levels of each.
    """
    share = _passed(missed, axis=1, shape=shape)
    share = np.einsum("hk,jkq->jhq", shape.near, share)
    rate, lean = np.array(EXPERTS).T[..., None, None]
    mirrored = share[..., shape.mirror]
    apart = np.where(shape.paired, (share - mirrored) / 2, share)
    along = np.where(shape.paired, (share + mirrored) / 2, 0.0)
    moves = (rate * apart + lean * along) * shape.newton
    return np.asarray(np.clip(moves, -MOST, MOST) * unit[:, None])


def _passed(missed: np.ndarray, axis: int | tuple[int, ...], shape: _Shape) -> np.ndarray:
    """By how much more often than it should each level was passed, 0 where nothing was seen.

    A value that ties with a level counts half on either side.
    """
    above = 0.5 * ((missed > 0).astype(float) + (missed >= 0))
    return _mean(np.where(np.isfinite(missed), above - (1 - shape.levels), np.nan), axis)


def _louder(scores: np.ndarray, series: np.ndarray, share: float, shape: _Shape) -> np.ndarray:
    """How much wider the series of each window should be in one horizon of time: [n]."""
    owners, at = np.unique(series, return_inverse=True)
    scale = max(float((shape.normal**2).sum()), 1e-12)
    each = np.stack([_passed(scores[series == one], (0, 1), shape) for one in owners])
    wide = (each * shape.newton * shape.normal).sum(axis=1) / scale
    against = SERIES_RATE * (wide - wide.mean()) + ALONE_RATE * (1 - share) * wide.mean()
    return np.asarray(np.clip(against, -MOST, MOST)[at])


def _hedged(track: Track, loss: np.ndarray) -> Track:
    """With the losses of one slot, [experts]: AdaHedge (de Rooij et al. 2014)."""
    weights, floor = track.weights, float(loss.min())
    mean = float(weights @ loss)
    if track.gap > 0:
        rate = np.log(len(loss)) / track.gap
        mixing = max(float(weights @ np.exp(-rate * (loss - floor))), 1e-300)
        mixed = floor - float(np.log(mixing)) / rate
    else:
        mixed = float(loss[weights > 0].min())
    return replace(track, loss=track.loss + loss, gap=track.gap + max(0.0, mean - mixed))


def _weights(loss: np.ndarray, gap: float) -> np.ndarray:
    behind = loss - loss.min()
    raw = np.exp(-np.log(len(loss)) / gap * behind) if gap > 0 else (behind == 0).astype(float)
    return np.asarray(raw / raw.sum())


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of what was observed along an axis, zero where nothing was."""
    seen = np.isfinite(values)
    total = np.where(seen, values, 0.0).sum(axis=axis)
    return np.asarray(total / np.maximum(seen.sum(axis=axis), 1))
