"""Many networks in one matrix behave as each would alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flts_ray.models.recurrent_net import Inputs, SegmentNet, forecast_loss
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_stack import Stack, StackOptimiser
from flts_ray.models.recurrent_train import MAX_WEIGHT, Schedule
from flts_ray.models.recurrent_windows import Batch

SCHEDULE = Schedule(
    epochs=1,
    windows_per_epoch=1,
    batch=1,
    lr=0.01,
    weight_decay=0.1,
    mean_weight=0.1,
    average=0.9,
    seed=0,
)


def shape_of(cell: str) -> Shape:
    """Two layers and every kind of column; segments do not divide the horizon."""
    return Shape(cell, 12, 4, 6, (0.1, 0.3, 0.5, 0.9), 1, 1, 2, 1, 8, 2, 0.0, 12)


def batch_of(networks: int, windows: int = 3) -> Batch:
    size = (networks, windows)
    inputs = Inputs(
        torch.randn(*size, 12),
        torch.ones(*size, 12),
        torch.randn(*size, 12, 1),
        torch.randn(*size, 6, 2),
        torch.randn(*size, 1),
    )
    return Batch(inputs, torch.randn(*size, 6), torch.ones(*size, 6), torch.ones(*size, 1))


def doubled(batch: Batch) -> Batch:
    """In float64, some steps not counted, some windows far larger than their series."""
    inputs = Inputs(*(each.double() for each in batch.inputs))
    counted = (torch.rand_like(batch.counted) > 0.2).double()
    scale = 12.0 * torch.rand_like(batch.scale).double()
    return Batch(inputs, 2.0 * batch.target.double(), counted, scale)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_network_forecasts_as_it_does_alone(cell: str) -> None:
    torch.manual_seed(0)
    nets = [SegmentNet(shape_of(cell)).eval() for _ in range(3)]
    weights = torch.stack([Stack(net).row() for net in nets])
    batch = batch_of(3)
    stack = Stack(SegmentNet(shape_of(cell)))
    mean, quantiles = stack.forecast(weights, batch.inputs)
    for at, net in enumerate(nets):
        alone = net(Inputs(*(each[at] for each in batch.inputs)))
        torch.testing.assert_close(mean[at], alone[0])
        torch.testing.assert_close(quantiles[at], alone[1])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_network_learns_as_it_does_alone(cell: str) -> None:
    torch.manual_seed(0)
    nets = [SegmentNet(shape_of(cell)).double() for _ in range(3)]
    weights = torch.stack([Stack(net).row() for net in nets]).requires_grad_()
    batch = doubled(batch_of(3))
    losses, sharp = Stack(nets[0]).losses(weights, batch, mean_weight=0.1)
    (gradient,) = torch.autograd.grad((losses * torch.tensor([1.0, 2.0, 3.0])).sum(), weights)
    for at, net in enumerate(nets):
        forecast = net(Inputs(*(each[at] for each in batch.inputs)))
        weight = batch.scale[at].clamp_max(MAX_WEIGHT)
        levels = torch.tensor(net.shape.levels, dtype=torch.float64)
        alone = forecast_loss(forecast, batch.target[at], batch.counted[at], weight, levels, 0.1)
        trained = [w for w in net.parameters() if w.requires_grad]
        expected = torch.cat([g.ravel() for g in torch.autograd.grad(alone[0], trained)])
        torch.testing.assert_close(losses[at], alone[0])
        torch.testing.assert_close(sharp[at], alone[1])
        torch.testing.assert_close(gradient[at], (at + 1) * expected)


def test_dropout_is_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    stack = Stack(SegmentNet(replace(shape_of("gru"), dropout=0.5)))
    weights, batch = stack.row().repeat(2, 1), batch_of(2)
    first, second = (stack.losses(weights, batch, 0.1)[0] for _ in range(2))
    assert not torch.equal(first, second)
    one, two = (stack.forecast(weights, batch.inputs)[0] for _ in range(2))
    assert torch.equal(one, two)


def test_views_give_back_the_weights_of_a_row() -> None:
    net = SegmentNet(shape_of("gru"))
    stack = Stack(net)
    for name, view in stack.views(stack.row()[None]).items():
        torch.testing.assert_close(view[0], net.get_parameter(name).detach())


def test_a_step_is_that_of_adamw_with_a_clipped_gradient_and_a_running_mean() -> None:
    torch.manual_seed(0)
    start = torch.randn(1, 5)
    ours = StackOptimiser(start, SCHEDULE, steps=4)
    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([theirs], lr=SCHEDULE.lr, weight_decay=SCHEDULE.weight_decay)
    mean = [start.clone()]
    average = get_ema_multi_avg_fn(SCHEDULE.average)
    for step in range(3):
        ours.step((3 * ours.weights.square()).sum(1))
        optimiser.param_groups[0]["lr"] = SCHEDULE.lr * (0.5 + _fall(step, 4))
        optimiser.zero_grad()
        (3 * theirs.square()).sum().backward()
        torch.nn.utils.clip_grad_norm_([theirs], SCHEDULE.clip_norm)
        optimiser.step()
        if step:
            average(mean, [theirs.detach()], torch.tensor(step))
        else:
            mean = [theirs.detach().clone()]
    torch.testing.assert_close(ours.weights, theirs)
    torch.testing.assert_close(ours.averaged, mean[0])


def _fall(step: int, steps: int) -> float:
    return 0.5 * float(torch.cos(torch.tensor(torch.pi * step / steps)))


def test_a_network_without_a_finite_gradient_rests_alone() -> None:
    start = torch.ones(2, 3)
    optimiser = StackOptimiser(start, SCHEDULE, steps=4)
    factor = torch.tensor([1.0, torch.inf])
    optimiser.step(factor * optimiser.weights.square().sum(1))
    assert not torch.equal(optimiser.weights[0], start[0])
    torch.testing.assert_close(optimiser.weights[1].detach(), start[1])


def test_dropping_networks_leaves_the_others_where_they_were() -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 4)
    whole, part = (StackOptimiser(start, SCHEDULE, steps=4) for _ in range(2))
    for optimiser in (whole, part):
        optimiser.step(optimiser.weights.square().sum(1))
    part.keep(torch.tensor([True, False, True]))
    for optimiser in (whole, part):
        optimiser.step(optimiser.weights.square().sum(1))
    torch.testing.assert_close(part.weights, whole.weights[[0, 2]])
    torch.testing.assert_close(part.averaged, whole.averaged[[0, 2]])


def test_a_loss_counts_the_windows_of_its_network_alone() -> None:
    torch.manual_seed(0)
    stack = Stack(SegmentNet(shape_of("gru")))
    weights, batch = stack.row().repeat(2, 1), batch_of(2)
    other = batch.target.clone()
    other[1] += 5
    before, after = (
        stack.losses(weights, replace(batch, target=target), 0.1)[0]
        for target in (batch.target, other)
    )
    assert before[0] == after[0]
    assert before[1] != after[1]
