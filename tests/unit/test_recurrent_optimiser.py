"""AdamW and the running mean of the weights, against torch's own."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from flts_ray.models.recurrent_optimiser import Optimiser, rate_at

CLIP = 1.0


def weights() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3), torch.randn(5)]


def gradients(step: int) -> list[torch.Tensor]:
    torch.manual_seed(step)
    return [3.0 * torch.randn(4, 3), torch.randn(5)]


def test_steps_are_those_of_adamw_with_clipped_gradients() -> None:
    own, averaged = weights(), weights()
    theirs = [nn.Parameter(w.clone()) for w in own]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    optimiser = Optimiser(own, averaged, weight_decay=0.1, average=0.9, clip_norm=CLIP)
    optimiser.rate.fill_(0.01)
    mean = [w.clone() for w in own]
    for step in range(6):
        for weight, gradient in zip(theirs, gradients(step), strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(theirs, CLIP)
        reference.step()
        optimiser.step(gradients(step))
        keep = 0.9 if step else 0.0
        mean = [keep * m + (1 - keep) * w.detach() for m, w in zip(mean, theirs, strict=True)]
    for ours, its in zip(own, theirs, strict=True):
        torch.testing.assert_close(ours, its.detach())
    torch.testing.assert_close(averaged, mean)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(broken: float) -> None:
    own = weights()
    optimiser = Optimiser(own, weights(), weight_decay=0.1, average=0.9, clip_norm=CLIP)
    optimiser.rate.fill_(0.01)
    optimiser.step(gradients(0))
    state = copy.deepcopy(vars(optimiser))
    bad = gradients(1)
    bad[1][2] = broken
    optimiser.step(bad)
    for name in ("weights", "_first", "_second", "_steps"):
        torch.testing.assert_close(vars(optimiser)[name], state[name], rtol=0, atol=0)
    optimiser.step(gradients(1))
    assert not torch.equal(own[0], state["weights"][0])


def test_the_rate_rises_and_falls_to_zero() -> None:
    steps = 200
    rates = [rate_at(step, steps) for step in range(steps)]
    assert rates[:4] == [0.25, 0.5, 0.75, rate_at(3, steps)] and rates[3] > 0.99
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 1e-3
