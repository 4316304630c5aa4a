"""Training of the recurrent network, one epoch at a time.

Design choices: the training span is one tensor and a batch is index arithmetic on it, so no
Python runs per window; series are kept in units of their own seasonal-naive error, so windows of
all series count alike and the loss is the scaled pinball loss forecasts are judged on; an epoch
is a bounded number of windows, so early stopping and trial schedulers look equally often whatever
the size of the data; the running mean of the weights is judged, not their last jitter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flts_ray.models.recurrent_inputs import ColumnScaling, training_rows
from flts_ray.models.recurrent_net import (
    Inputs,
    SegmentNet,
    forecast_loss,
    window_scale,
)
from flts_ray.prepare.arrays import SeriesArrays

MAX_WEIGHT = 10.0
MIN_BATCHES = 16
MAX_LOSS = 1e9


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train; the learning rate falls to zero along a half cosine."""

    epochs: int
    windows_per_epoch: int
    batch: int
    lr: float
    weight_decay: float
    mean_weight: float
    average: float
    seed: int
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Batch:
    """n windows: inputs, normalised targets [n, H], which of them count, window scale [n, 1]."""

    inputs: Inputs
    target: torch.Tensor
    counted: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class TrainingSet:
    """All training steps on one device, and the windows drawn from them.

    y: float32 [rows], each series minus its mean in units of its own scale; observed: float32
    [rows]; past, future: [rows, columns]; static: [series, S]; floor: [series], the series'
    scale in the units of y; starts: int64 [windows], row of each origin; series: int64 [windows].
    """

    y: torch.Tensor
    observed: torch.Tensor
    past: torch.Tensor
    future: torch.Tensor
    static: torch.Tensor
    floor: torch.Tensor
    starts: torch.Tensor
    series: torch.Tensor
    lookback: int
    horizon: int
    centre: str

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """The windows with these numbers."""
        back = torch.arange(-self.lookback, self.horizon, device=self.y.device)
        rows = self.starts[chosen, None] + back
        series = self.series[chosen]
        y, observed = self.y[rows], self.observed[rows]
        known, ahead = y[:, : self.lookback], y[:, self.lookback :]
        scale = window_scale(known, self.floor[series, None], self.centre)
        inputs = Inputs(
            z=scale.forward(known),
            observed=observed[:, : self.lookback],
            past=self.past[rows[:, : self.lookback]],
            future=self.future[rows],
            static=self.static[series],
        )
        return Batch(inputs, scale.forward(ahead), observed[:, self.lookback :], scale.scale)


def training_set(
    data: SeriesArrays,
    origins: tuple[np.ndarray, np.ndarray],
    scaling: ColumnScaling,
    size: tuple[int, int],
    centre: str,
    device: str,
) -> TrainingSet:
    """Put the training span of `data` on a device; nothing after it is read.

    origins: (series, origins) of the training windows; size: lookback and horizon.
    """
    stats, rows = data.stats, training_rows(data)
    owner = np.repeat(np.arange(data.n_series), data.train_end)
    unit = np.maximum(stats.scale, np.maximum(0.01 * stats.std, np.finfo(np.float32).tiny))
    y = np.clip(data.y[rows], stats.clip_lo[owner], stats.clip_hi[owner])
    starts = np.concatenate([[0], np.cumsum(data.train_end)])[origins[0]] + origins[1]

    def put(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    return TrainingSet(
        y=put(((y - stats.mean[owner]) / unit[owner]).astype(np.float32)),
        observed=put(data.observed[rows].astype(np.float32)),
        past=put(scaling.apply("past", data.past[rows])),
        future=put(scaling.apply("future", data.future[rows])),
        static=put(scaling.apply("static", data.static)),
        floor=put((stats.scale / unit).astype(np.float32)),
        starts=put(starts.astype(np.int64)),
        series=put(origins[0].astype(np.int64)),
        lookback=size[0],
        horizon=size[1],
        centre=centre,
    )


def train(
    net: SegmentNet, windows: TrainingSet, schedule: Schedule
) -> Iterator[tuple[float, SegmentNet]]:
    """Train `net` in place; after each epoch give the pinball loss and the averaged network.

    Deterministic for a seed on one device. The global random state is left as it was.
    """
    device = windows.y.device
    judged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    weights = [w for w in net.parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    count = min(schedule.windows_per_epoch, max(len(windows), MIN_BATCHES * schedule.batch))
    total = schedule.epochs * -(-count // schedule.batch)
    warm = max(1, total // 50)
    rate = LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total)),
    )
    draw = torch.Generator().manual_seed(schedule.seed)
    for epoch in range(schedule.epochs):
        order = _draw(len(windows), count, draw).to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(schedule.seed + epoch)
            net.train()
            losses = []
            for chosen in order.split(schedule.batch):
                losses.append(_step(net, windows.batch(chosen), schedule, optimiser, weights))
                rate.step()
                judged.update_parameters(net)
        mean = float(torch.stack(losses).nanmean())
        yield (mean if math.isfinite(mean) else MAX_LOSS), judged.module


def _draw(windows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` window numbers: as many whole permutations as it takes, the last one cut."""
    rounds = -(-count // windows)
    return torch.cat([torch.randperm(windows, generator=generator) for _ in range(rounds)])[:count]


def _step(
    net: SegmentNet,
    batch: Batch,
    schedule: Schedule,
    optimiser: torch.optim.Optimizer,
    weights: list[torch.Tensor],
) -> torch.Tensor:
    levels = torch.tensor(net.shape.levels, dtype=torch.float32, device=batch.target.device)
    weight = batch.scale.clamp_max(MAX_WEIGHT)
    loss, sharp = forecast_loss(
        net(batch.inputs), batch.target, batch.counted, weight, levels, schedule.mean_weight
    )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, schedule.clip_norm)
    if torch.isfinite(norm):  # one window beyond float32 must not spoil every weight
        optimiser.step()
    return sharp
