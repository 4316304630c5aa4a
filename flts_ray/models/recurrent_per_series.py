"""A network of its own for every series, all trained as one job.

Design choices: networks train in blocks that fit a processor's cache, all blocks one epoch at a
time, so that a fit can be stopped after any epoch; every series keeps the weights of its own best
epoch, and leaves its block when its patience is at an end, so that the last epochs cost little;
the linear map is common to all, because a short series cannot tell what it should be: where a
series has no window to learn from, and for a series never seen before, that map is the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from flts_ray.models.recurrent_judge import MAX_LOSS, MAX_WINDOWS, pinball_sums
from flts_ray.models.recurrent_stack import Stack, StackOptimiser
from flts_ray.models.recurrent_train import Schedule
from flts_ray.models.recurrent_windows import Batch, Origins, WindowSet
from flts_ray.prepare.arrays import SeriesArrays, origins_in

BLOCK_STEPS = 2**18
"""Steps of all windows that the networks of one block read at a time."""
MIN_BLOCK, MAX_BLOCK = 64, 512
JUDGED = 16
"""Windows on which the epochs of one series are judged."""


@dataclass(frozen=True)
class Held:
    """The windows that judge each series: starts int64 [series, JUDGED], repeated where there
    are fewer; counted: bool, whether each counts; calibrates: bool [series]."""

    starts: torch.Tensor
    counted: torch.Tensor
    calibrates: torch.Tensor


@dataclass(frozen=True)
class Epoch:
    """After one epoch: mean pinball loss of training, and of the best weights on judged windows;
    those weights [series + 1, P], the last row the start of all; quantiles [n, H, Q] and the
    windows they belong to, for calibration."""

    train_loss: float
    valid_loss: float
    weights: torch.Tensor
    quantiles: torch.Tensor
    windows: Batch | None


def held_windows(data: SeriesArrays, windows: WindowSet) -> Held:
    """Validation windows of every series; training windows where a series has none."""
    lookback, horizon = windows.shape.lookback, windows.shape.horizon
    starts = torch.zeros(data.n_series, JUDGED, dtype=torch.long, device=windows.y.device)
    counted = torch.zeros_like(starts, dtype=torch.bool)
    calibrates = torch.zeros(data.n_series, dtype=torch.bool, device=windows.y.device)
    for span in ("train", "validation"):  # where both have windows, validation stays
        origins = origins_in(data, span, lookback, horizon, max_origins=JUDGED)
        count = np.bincount(origins[0], minlength=data.n_series)
        rows = np.flatnonzero(count)
        first = np.concatenate([[0], np.cumsum(count)])[rows]
        slot = np.arange(JUDGED)
        chosen = first[:, None] + slot % count[rows, None]
        at = torch.from_numpy(rows).to(windows.y.device)
        starts[at] = windows.starts(origins)[1][torch.from_numpy(chosen).to(at.device)]
        counted[at] = torch.from_numpy(slot < count[rows, None]).to(at.device)
        calibrates[at] = span == "validation"
    return Held(starts, counted, calibrates)


def train_stack(
    stack: Stack,
    initial: torch.Tensor,
    windows: WindowSet,
    origins: Origins,
    held: Held | None,
    schedule: Schedule,
    patience: int,
    threads: int = 1,
) -> Iterator[Epoch]:
    """Train one network a series; initial: weights [series + 1, P] that they start from.

    With `held`, each series keeps its best epoch and stops by itself; without, each keeps the
    last. Blocks train side by side in `threads`, unless dropout draws from the random state they
    would share. Deterministic for a seed, whatever the threads; the global random state is left
    as it was.
    """
    best = _Best(initial.clone(), windows, held)
    blocks = [
        _Block(stack, rows, initial, windows, origins, schedule)
        for rows in _block_rows(origins[0], schedule.batch * windows.shape.lookback)
    ]
    drawing = windows.shape.dropout > 0

    def one(epoch: int, number: int) -> torch.Tensor:
        block = blocks[number]
        seed = schedule.seed + epoch * len(blocks) + number
        with _seeded(seed, windows.y.device) if drawing else nullcontext():
            losses = block.epoch(epoch)
        found = best.look(block.stack, block.rows, block.optimiser.averaged, epoch, patience)
        block.keep(found)
        return losses

    with _side_by_side(1 if drawing else min(threads, len(blocks))) as run:
        for epoch in range(schedule.epochs):
            losses = list(run(partial(one, epoch), range(len(blocks))))
            yield best.epoch(float(torch.cat(losses).nanmean()))
            blocks = [block for block in blocks if len(block.rows)]
            if not blocks:
                return


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _side_by_side(threads: int) -> Iterator[Any]:
    """What maps a function over numbers: in this thread, or in some of one processor each."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


def _block_rows(series: np.ndarray, steps: int) -> list[torch.Tensor]:
    """The series that have windows, in blocks of a bounded and almost the same size.

    Their number is even where they are many, so that two processors end together.
    """
    rows = np.unique(series)
    size = min(max(BLOCK_STEPS // steps, 1), MAX_BLOCK)
    count = -(-len(rows) // size)
    if len(rows) >= 2 * MIN_BLOCK:
        count += count % 2
    return [torch.from_numpy(part) for part in np.array_split(rows, max(count, 1)) if len(part)]


class _Block:
    """Networks that train together; rows: int64, their series."""

    def __init__(
        self,
        stack: Stack,
        rows: torch.Tensor,
        initial: torch.Tensor,
        windows: WindowSet,
        origins: Origins,
        schedule: Schedule,
    ) -> None:
        self.stack, self.windows, self.schedule = stack, windows, schedule
        device = windows.y.device
        self.rows = rows.to(device)
        first = np.searchsorted(origins[0], rows.numpy())
        last = np.searchsorted(origins[0], rows.numpy(), side="right")
        self._starts = windows.starts(
            (origins[0][first[0] : last[-1]], origins[1][first[0] : last[-1]])
        )[1]
        self._first = torch.from_numpy(first - first[0]).to(device)
        self._count = torch.from_numpy(last - first).to(device)
        longest = int((last - first).max())
        self._drawn = min(
            schedule.windows_per_epoch, -(-longest // schedule.batch) * schedule.batch
        )
        self._draw = torch.Generator().manual_seed(schedule.seed + int(rows[0]))
        steps = schedule.epochs * -(-self._drawn // schedule.batch)
        self.optimiser = StackOptimiser(initial[self.rows], schedule, steps)

    def keep(self, on: torch.Tensor) -> None:
        """Drop the networks that are not `on`."""
        if on.all():
            return
        self.rows, self._first, self._count = self.rows[on], self._first[on], self._count[on]
        self.optimiser.keep(on)

    def epoch(self, number: int) -> torch.Tensor:
        """Pinball loss of each network in this epoch: [networks]."""
        losses = []
        for share in self._shares(number).split(self.schedule.batch):
            chosen = self._first[:, None] + (share * self._count[:, None]).long()
            series = self.rows[:, None].expand_as(chosen)
            batch = self.windows.batch(series, self._starts[chosen])
            optimiser = self.optimiser
            loss, sharp = self.stack.losses(optimiser.weights, batch, self.schedule.mean_weight)
            optimiser.step(loss)
            losses.append(sharp)
        return torch.stack(losses).mean(0)

    def _shares(self, number: int) -> torch.Tensor:
        """Where in a series' windows each draw falls, within [0, 1): one in every equal part."""
        part = torch.randperm(self._drawn, generator=self._draw)
        within = torch.rand(self._drawn, generator=self._draw)
        return ((part + within) / self._drawn).clamp_max(1.0 - 1e-6).to(self.rows.device)


class _Best:
    """The best weights of every series so far, and what they say about judged windows."""

    def __init__(self, weights: torch.Tensor, windows: WindowSet, held: Held | None) -> None:
        self.weights, self.windows, self.held = weights, windows, held
        count, device = len(weights) - 1, weights.device
        self.loss = torch.full((count,), math.nan, dtype=torch.float64, device=device)
        self._epoch = torch.zeros(count, dtype=torch.long, device=device)
        shape = windows.shape
        self._levels = torch.tensor(shape.levels, dtype=torch.float64, device=device)
        self._series, self._slots = self._calibrating()
        size = (len(self._series), shape.horizon, len(shape.levels))
        self._quantiles = torch.zeros(size, device=device)

    def look(
        self, stack: Stack, rows: torch.Tensor, weights: torch.Tensor, epoch: int, patience: int
    ) -> torch.Tensor:
        """Judge the networks of `rows`; whether each goes on: bool [rows].

        Touches what belongs to `rows` alone, so that threads may look at others meanwhile.
        """
        if self.held is None:
            self.weights[rows] = weights
            return torch.ones_like(rows, dtype=torch.bool)
        loss, quantiles = self._judged(stack, rows, weights)
        better = ~(loss >= self.loss[rows])  # true in the first epoch, where nothing is known
        self.loss[rows[better]] = loss[better]
        self._epoch[rows[better]] = epoch
        self.weights[rows[better]] = weights[better]
        place = torch.full((len(self.loss),), -1, device=rows.device)
        place[rows[better]] = torch.nonzero(better)[:, 0]
        changed = place[self._series] >= 0
        at = place[self._series[changed]], self._slots[changed]
        self._quantiles[changed] = quantiles[at]
        return epoch - self._epoch[rows] < patience

    def epoch(self, train_loss: float) -> Epoch:
        known = self.loss[torch.isfinite(self.loss)]
        batch = None
        if self.held is not None and len(self._series):
            starts = self.held.starts[self._series, self._slots]
            batch = self.windows.batch(self._series, starts, clipped=False)
        return Epoch(
            train_loss if math.isfinite(train_loss) else MAX_LOSS,
            float(known.mean()) if len(known) else 0.0,
            self.weights.clone(),
            self._quantiles,
            batch,
        )

    def _judged(
        self, stack: Stack, rows: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.held is not None
        starts, counted = self.held.starts[rows], self.held.counted[rows]
        batch = self.windows.batch(rows[:, None].expand_as(starts), starts, clipped=False)
        quantiles = stack.forecast(weights, batch.inputs)[1]
        loss, steps = pinball_sums(quantiles, batch, self._levels)
        mean = (loss * counted).sum(1) / (steps * counted).sum(1).clamp_min(1)
        return torch.nan_to_num(mean, MAX_LOSS, MAX_LOSS).clamp_max(MAX_LOSS), quantiles

    def _calibrating(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Series and slots of at most MAX_WINDOWS validation windows, evenly spread."""
        if self.held is None:
            return self._epoch[:0], self._epoch[:0]
        usable = self.held.counted & self.held.calibrates[:, None]
        series, slots = torch.nonzero(usable, as_tuple=True)
        kept = torch.linspace(0, max(len(series) - 1, 0), min(len(series), MAX_WINDOWS)).long()
        kept = kept.to(series.device)
        return series[kept], slots[kept]
