"""Training of the recurrent network, one epoch at a time.

Design choices: an epoch takes every k-th window, another phase each time, because neighbours are
almost equal; the number is bounded, so that early stopping and trial schedulers look equally often
whatever the size of the data; the first epochs take half as many, while the weights still move far
with each; the running mean of the weights is judged, not their last jitter; a GPU computes in half
precision, a CPU, where that is slower, does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flts_ray.models.recurrent_judge import MAX_LOSS
from flts_ray.models.recurrent_net import SegmentNet, forecast_loss
from flts_ray.models.recurrent_windows import Batch, Origins, WindowSet

EARLY = 4
"""One epoch in so many, at the beginning, takes half of the windows."""
MAX_WEIGHT = 10.0
MIN_BATCHES = 16


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


def train(
    net: SegmentNet, windows: WindowSet, origins: Origins, schedule: Schedule
) -> Iterator[tuple[float, SegmentNet]]:
    """Train `net` in place; after each epoch give the pinball loss and the averaged network.

    origins: (series, origins) of the training windows.
    Deterministic for a seed on one device. The global random state is left as it was.
    """
    device = windows.y.device
    judged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    weights = [w for w in net.parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    series, starts = windows.starts(origins)
    orders = list(epoch_orders(len(origins[0]), schedule))
    total = sum(-(-len(order) // schedule.batch) for order in orders)
    warm = max(1, total // 50)
    rate = LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total)),
    )
    for epoch, order in enumerate(orders):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(schedule.seed + epoch)
            net.train()
            losses = []
            for chosen in order.to(device).split(schedule.batch):
                batch = windows.batch(series[chosen], starts[chosen])
                losses.append(_step(net, batch, schedule, optimiser, weights))
                rate.step()
                judged.update_parameters(net)
        mean = float(torch.stack(losses).nanmean())
        yield (mean if math.isfinite(mean) else MAX_LOSS), judged.module


def epoch_orders(windows: int, schedule: Schedule) -> Iterator[torch.Tensor]:
    """The window numbers of each epoch, in random order.

    Small sets are gone through several times, so that an epoch is never a handful of steps.
    """
    draw = torch.Generator().manual_seed(schedule.seed)
    most = min(schedule.windows_per_epoch, max(windows, MIN_BATCHES * schedule.batch))
    for epoch in range(schedule.epochs):
        early = epoch < schedule.epochs // EARLY
        count = max(min(most, MIN_BATCHES * schedule.batch), most // 2) if early else most
        rounds, stride = -(-count // windows), max(1, windows // count)
        phase = torch.arange(epoch % stride, windows, stride)
        order = [phase[torch.randperm(len(phase), generator=draw)] for _ in range(rounds)]
        yield torch.cat(order)[:count]


def _step(
    net: SegmentNet,
    batch: Batch,
    schedule: Schedule,
    optimiser: torch.optim.Optimizer,
    weights: list[torch.Tensor],
) -> torch.Tensor:
    levels = torch.tensor(net.shape.levels, dtype=torch.float32, device=batch.target.device)
    weight = batch.scale.clamp_max(MAX_WEIGHT)
    device = batch.target.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        mean, quantiles = net(batch.inputs)
    forecast = mean.float(), quantiles.float()
    loss, sharp = forecast_loss(
        forecast, batch.target, batch.counted, weight, levels, schedule.mean_weight
    )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, schedule.clip_norm)
    if torch.isfinite(norm):  # one window beyond float32 must not spoil every weight
        optimiser.step()
    return sharp
