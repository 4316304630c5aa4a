"""Which of several linear maps forecasts each step best on the validation span.

Design choices: errors are averaged over neighbouring steps, so that chance does not choose each
step alone; a less expected family of maps has to be better by more than chance on blocks of the
span that did not choose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flts_ray.models.ar_features import Layout
from flts_ray.models.ar_map import LinearMap, Sample, scaled_errors

MIN_VALID_WINDOWS = 30
"""With fewer, the middle penalty and the calendar are taken unseen."""
MAX_BLOCKS = 8
T_QUANTILES = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415)
"""90 % quantiles of Student's t for 2 to MAX_BLOCKS blocks."""


def best_map(
    families: Sequence[Sequence[LinearMap]],
    valid: Sample,
    layout: Layout,
    settings: int,
    pooled: LinearMap | None = None,
) -> tuple[LinearMap, np.ndarray]:
    """The map put together from the best one of each step, and which those are.

    Maps come from the last family alone unless others, or all together, are better by more than
    chance (a one-sided t test at 10 %) on blocks of the validation span that did not choose them;
    for a series, `pooled` is what has to be beaten, and -1 its pick.
    """
    maps = [one for family in families for one in family]
    if len(valid.series) < MIN_VALID_WINDOWS:
        picks = np.full(layout.horizon, min(settings, len(maps)) // 2, dtype=np.int64)
        return assembled(maps, picks), picks
    sets = _sets_of([len(family) for family in families])
    judged = [*maps, pooled] if pooled is not None else maps
    blocks = _blocks(valid, layout.horizon)
    errors = np.stack([scaled_errors(judged, block, layout) for block in blocks])
    weights = np.asarray([len(block.series) for block in blocks], dtype=np.float64)
    crossed = np.stack([_crossed(errors, weights, allowed) for allowed in sets])
    gain = (errors[:, -1].mean(axis=1) if pooled is not None else crossed[0]) - crossed
    sure = _is_sure(gain)
    if pooled is not None and not sure.any():
        return pooled, np.full(layout.horizon, -1)
    allowed = sets[int(np.argmax(np.where(sure, gain.mean(axis=1), -np.inf)))]
    picks = _picks(np.average(errors, axis=0, weights=weights), allowed)
    return assembled(maps, picks), picks


def _is_sure(gain: np.ndarray) -> np.ndarray:
    """Which gains [sets, blocks] are more than chance: bool [sets]; none of a single block."""
    blocks = gain.shape[1]
    if blocks < 2:
        return np.zeros(len(gain), dtype=bool)
    doubt = T_QUANTILES[blocks - 2] * gain.std(axis=1, ddof=1) / np.sqrt(blocks)
    return np.asarray(gain.mean(axis=1) > doubt)


def _crossed(errors: np.ndarray, weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Error on each block of the picks that the other blocks make: float64 [blocks].

    errors: [blocks, maps, H]; weights: [blocks].
    """
    steps = np.arange(errors.shape[2])
    total = (errors * weights[:, None, None]).sum(axis=0)
    found = []
    for one, weight in zip(errors, weights, strict=True):
        others = (total - one * weight) / max(weights.sum() - weight, 1.0)
        found.append(one[_picks(others, allowed), steps].mean())
    return np.asarray(found)


def _sets_of(sizes: Sequence[int]) -> list[np.ndarray]:
    """Indices of the maps of each family, the last first, then of all together."""
    borders = np.concatenate([[0], np.cumsum(sizes)])
    found = [np.arange(low, high) for low, high in pairwise(borders) if high > low][::-1]
    return [*found, np.arange(borders[-1])] if len(found) > 1 else found


def _blocks(sample: Sample, horizon: int) -> list[Sample]:
    """The windows of consecutive parts of each series, a horizon long.

    Two at least where series have two windows.
    """
    _, first, count = np.unique(sample.series, return_index=True, return_counts=True)
    last = sample.origins[first + count - 1]
    length = float(np.median(last - sample.origins[first] + 1))
    blocks = int(np.clip(length // horizon, 2, MAX_BLOCKS))
    rank = np.arange(len(sample.series)) - np.repeat(first, count)
    block = rank * blocks // np.repeat(count, count)
    return [sample.where(block == i) for i in np.unique(block)]


def _picks(errors: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """For each step, the allowed map with the smallest error over neighbouring steps: [H]."""
    horizon = errors.shape[1]
    reach = max(1, horizon // 8)
    before = np.cumsum(np.pad(errors[allowed], ((0, 0), (1, 0))), axis=1)
    steps = np.arange(horizon)
    low, high = np.maximum(steps - reach, 0), np.minimum(steps + reach + 1, horizon)
    # The next step is what most users look at first: its own errors decide.
    high[0] = 1
    return np.asarray(allowed[((before[:, high] - before[:, low]) / (high - low)).argmin(axis=0)])


def assembled(maps: Sequence[LinearMap], picks: np.ndarray) -> LinearMap:
    farthest = max(maps[pick].lookback for pick in picks)
    maps = [one.reaching(farthest) if one.lookback < farthest else one for one in maps]
    return LinearMap(
        values=np.stack([maps[p].values[:, h] for h, p in enumerate(picks)], axis=1),
        future=np.stack([maps[p].future[h] for h, p in enumerate(picks)]),
        bias=np.array([maps[p].bias[h] for h, p in enumerate(picks)]),
    )
