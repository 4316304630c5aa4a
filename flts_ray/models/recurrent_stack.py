"""Many small networks of one shape, run and trained as one.

Design choices: the weights of all networks are one matrix, a row each, so that a step of the
optimiser, the running mean, the best weights and dropping a network that has stopped are each one
operation whatever the number of networks; each network has its own gradient norm, and one whose
gradient is not finite rests while the others go on. The forward pass: `recurrent_stack_net`.
"""

from __future__ import annotations

import torch

from flts_ray.models.recurrent_net import Inputs, SegmentNet
from flts_ray.models.recurrent_optimiser import BETAS, EPSILON, rate_at
from flts_ray.models.recurrent_replay import half_precision
from flts_ray.models.recurrent_stack_net import BandLoss, laid, mean_and_quantiles, run, unlaid
from flts_ray.models.recurrent_train import MAX_WEIGHT, Schedule
from flts_ray.models.recurrent_windows import Batch


class Stack:
    """The forward pass of many networks with the shape of `net`; threads may share it.

    A matrix of weights is float [networks, P]; `net`'s fixed linear map is common to all.
    """

    def __init__(self, net: SegmentNet) -> None:
        self.net = net
        trained = [(name, w) for name, w in net.named_parameters() if w.requires_grad]
        self.shapes = {name: tuple(w.shape) for name, w in trained}
        self.sizes = [w.numel() for _, w in trained]

    def row(self) -> torch.Tensor:
        """The weights of `net` itself: [P]."""
        return torch.cat([self.net.get_parameter(name).detach().ravel() for name in self.shapes])

    def views(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every weight by its name: [networks, *shape]."""
        parts = weights.split(self.sizes, dim=-1)
        shapes = self.shapes.items()
        pairs = zip(shapes, parts, strict=True)
        return {name: part.reshape(*weights.shape[:-1], *shape) for (name, shape), part in pairs}

    def forecast(self, weights: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [networks, m, H] and quantiles [networks, m, H, Q] of m windows each."""
        shape = self.net.shape
        with torch.no_grad():
            raw = run(self.views(weights), self.net.linear, inputs, shape, training=False)
            mean, quantiles = mean_and_quantiles(raw, shape.levels)
        return unlaid(mean[:, None], shape)[..., 0], unlaid(quantiles, shape)

    def losses(
        self, weights: torch.Tensor, batch: Batch, mean_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each network minimises in training and its pinball part: [networks] each."""
        shape = self.net.shape
        with half_precision(weights.device):
            raw = run(self.views(weights), self.net.linear, batch.inputs, shape, training=True)
        weight = batch.scale.clamp_max(MAX_WEIGHT).expand_as(batch.target)
        target, counted, weight = (
            laid(each, shape) for each in (batch.target, batch.counted, weight)
        )
        loss, sharp = BandLoss.apply(*raw, target, counted, weight, shape.levels, mean_weight)
        return loss, sharp


class StackOptimiser:
    """AdamW (Loshchilov & Hutter 2019) and a running mean of the weights, for rows of a matrix.

    The learning rate falls to zero along a half cosine over `steps` steps, after a short rise.
    """

    def __init__(self, weights: torch.Tensor, schedule: Schedule, steps: int) -> None:
        self.schedule, self.steps, self.step_number = schedule, steps, 0
        self.weights = weights.clone().requires_grad_()
        self.averaged = weights.clone()
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all networks but these."""
        self.weights = self.weights.detach()[rows].requires_grad_()
        self.averaged = self.averaged[rows]
        self._first, self._second = self._first[rows], self._second[rows]

    def step(self, losses: torch.Tensor) -> None:
        """One step of every network along the gradient of its own loss: losses [networks]."""
        (gradient,) = torch.autograd.grad(losses.sum(), self.weights)
        norm = gradient.norm(dim=1, keepdim=True)
        finite = torch.isfinite(norm)
        gradient.mul_((self.schedule.clip_norm / (norm + 1e-6)).clamp_max(1.0))
        rate = self.schedule.lr * rate_at(self.step_number, self.steps)
        self.step_number += 1
        with torch.no_grad():
            if bool(finite.all()):
                self._move(gradient, rate)
            else:
                self._move_some(torch.where(finite, gradient, 0.0), rate * finite)
            decay = self.schedule.average if self.step_number > 1 else 0.0
            self.averaged.lerp_(self.weights, 1.0 - decay)

    def _move(self, gradient: torch.Tensor, rate: float) -> None:
        """All networks, in one pass over their weights."""
        torch._fused_adamw_(
            [self.weights],
            [gradient],
            [self._first],
            [self._second],
            [],
            [torch.full((), float(self.step_number), device=gradient.device)],
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.schedule.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _move_some(self, gradient: torch.Tensor, rate: torch.Tensor) -> None:
        """Each network at its own rate: float [networks, 1]."""
        first, second = BETAS
        self._first.lerp_(gradient, 1.0 - first)
        self._second.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        size = (self._second / (1.0 - second**self.step_number)).sqrt_().add_(EPSILON)
        towards = self._first / (1.0 - first**self.step_number)
        self.weights.mul_(1.0 - rate * self.schedule.weight_decay)
        self.weights.sub_(rate * towards / size)
