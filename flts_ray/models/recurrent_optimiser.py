"""AdamW and a running mean of the weights, without a word between processor and device.

Design choices: every number that changes from step to step lies in a tensor on the device of the
weights, so a step can be recorded once and replayed; a gradient that is not finite is passed over
by the operation itself, because asking would make the processor wait for the device after every
step; one fused operation for all weights, without torch's optimiser classes, whose import takes
longer than many a fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) and an exponential running mean, for lists of weights.

    `averaged` starts as a copy of the weights after the first step. The learning rate is what
    `rate` holds.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        averaged: Sequence[torch.Tensor],
        weight_decay: float,
        average: float,
        clip_norm: float,
    ) -> None:
        self.weights, self.averaged = list(weights), list(averaged)
        self.weight_decay, self.average, self.clip_norm = weight_decay, average, clip_norm
        device = self.weights[0].device
        self.rate = torch.zeros((), device=device)
        self._first = [torch.zeros_like(w) for w in self.weights]
        self._second = [torch.zeros_like(w) for w in self.weights]
        self._steps = [torch.zeros((), device=device) for _ in self.weights]
        self._keep = torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """Move along the gradients, which are cut to `clip_norm` in place."""
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.clip_norm / (norm + 1e-6)).clamp_max(1.0))
        broken = (~torch.isfinite(norm)).float()
        # Without alpha torch asks for the number itself, and the processor waits.
        torch._foreach_add_(self._steps, 1.0 - broken, alpha=1.0)
        torch._fused_adamw_(
            self.weights,
            gradients,
            self._first,
            self._second,
            [],
            self._steps,
            lr=self.rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=broken,
        )
        torch._foreach_mul_(self.averaged, self._keep)
        torch._foreach_add_(self.averaged, torch._foreach_mul(self.weights, 1.0 - self._keep))
        self._keep.fill_(self.average)


def rate_at(step: int, steps: int) -> float:
    """Share of the highest learning rate: a short rise, then half a cosine down to zero."""
    warm = max(1, steps // 50)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
