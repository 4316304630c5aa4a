"""Training of the recurrent network, one epoch at a time.

Design choices: an epoch takes every k-th window, another phase each time, because neighbours are
almost equal; the number is bounded, so that early stopping and trial schedulers look equally often
whatever the size of the data; the first epochs take half as many, while the weights still move far
with each; the running mean of the weights is judged, not their last jitter; nothing is asked of
the device but once an epoch, and a GPU computes in half precision and replays recorded steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flts_ray.models.recurrent_judge import MAX_LOSS
from flts_ray.models.recurrent_net import SegmentNet, forecast_loss
from flts_ray.models.recurrent_optimiser import Optimiser, rate_at
from flts_ray.models.recurrent_replay import Replayed, half_precision, recorder
from flts_ray.models.recurrent_windows import Origins, WindowSet

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
    Deterministic for a seed on a processor; a GPU may add in another order. The global random
    state is left as it was.
    """
    device = windows.y.device
    judged = copy.deepcopy(net)
    judged.cell.flatten_parameters()  # a copy does not lie together, as cuDNN wants it
    orders = list(epoch_orders(len(origins[0]), schedule))
    total = sum(-(-len(order) // schedule.batch) for order in orders)
    step, steps = 0, _Steps(net, judged, windows, origins, schedule)
    for epoch, order in enumerate(orders):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(schedule.seed + epoch)
            net.train()
            for chosen in order.to(device).split(schedule.batch):
                steps.take(chosen, schedule.lr * rate_at(step, total))
                step += 1
        yield steps.mean_loss(), judged


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


class _Steps:
    """Gradient steps of one network; all they change stays in the same tensors."""

    def __init__(
        self,
        net: SegmentNet,
        judged: SegmentNet,
        windows: WindowSet,
        origins: Origins,
        schedule: Schedule,
    ) -> None:
        self.net, self.windows, self.schedule = net, windows, schedule
        self._series, self._starts = windows.starts(origins)
        device = windows.y.device
        trained = [name for name, w in net.named_parameters() if w.requires_grad]
        self._weights = [net.get_parameter(name) for name in trained]
        self._optimiser = Optimiser(
            self._weights,
            [judged.get_parameter(name) for name in trained],
            schedule.weight_decay,
            schedule.average,
            schedule.clip_norm,
        )
        self._levels = torch.tensor(net.shape.levels, dtype=torch.float32, device=device)
        self._sums = torch.zeros(2, device=device)
        self._chosen = torch.zeros(schedule.batch, dtype=torch.long, device=device)
        # Between layers cuDNN draws from a state of its own, which moves with every new seed.
        record = None if net.cell.dropout else recorder(device)
        self._full = Replayed(lambda: self._learn(self._chosen), record)

    def take(self, chosen: torch.Tensor, rate: float) -> None:
        """Learn from the windows of these numbers."""
        self._optimiser.rate.fill_(rate)
        if len(chosen) < len(self._chosen):
            self._learn(chosen)
            return
        self._chosen.copy_(chosen)
        self._full()

    def mean_loss(self) -> float:
        """Mean pinball loss of the steps since the last call; a bound where none was finite."""
        total, count = self._sums.tolist()
        self._sums.zero_()
        return total / count if count else MAX_LOSS

    def _learn(self, chosen: torch.Tensor) -> None:
        batch = self.windows.batch(self._series[chosen], self._starts[chosen])
        with half_precision(self._levels.device):
            mean, quantiles = self.net(batch.inputs)
        loss, sharp = forecast_loss(
            (mean.float(), quantiles.float()),
            batch.target,
            batch.counted,
            batch.scale.clamp_max(MAX_WEIGHT),
            self._levels,
            self.schedule.mean_weight,
        )
        # One window beyond float32 must not spoil every weight, nor the mean loss.
        self._optimiser.step(torch.autograd.grad(loss, self._weights))
        finite = torch.isfinite(sharp)
        self._sums += torch.stack([torch.where(finite, sharp, 0.0), finite.float()])
