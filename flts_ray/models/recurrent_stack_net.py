"""The network of `recurrent_net` for many sets of weights at once.

Design choices: the same sums in another order of the axes, with windows last, as
`recurrent_stack_cell` has them, so a stored network is the same whichever of the two trained it;
bands and their loss are one operation for autograd with its gradient written out, because they
are wider than the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from flts_ray.models.recurrent_net import HUBER, Inputs
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_stack_cell import Weights, product, read_sequence, step_from


class Raw(NamedTuple):
    """What S networks say about n windows each, for all steps in the order of `laid`.

    bands: [S, Q + 1, N]: offset of the median, that of the mean, gaps between quantiles, each as
    `SegmentNet`'s head gives them; base: [S, N], the linear map's forecast.
    """

    bands: torch.Tensor
    base: torch.Tensor


def run(
    weights: Mapping[str, torch.Tensor],
    linear: torch.Tensor,
    inputs: Inputs,
    shape: Shape,
    training: bool,
) -> Raw:
    """weights: [S, ...] each by their name in `SegmentNet`; inputs: [S, n, ...] each."""
    dropout = shape.dropout if training else 0.0
    x = _embedded(weights, inputs, shape, dropout)
    layers = [_layer(weights, number) for number in range(shape.layers)]
    states = []
    for number, layer in enumerate(layers):
        x = functional.dropout(x, dropout) if number and dropout else x
        x, state = read_sequence(shape.cell, x, layer)
        states.append(state)
    token = _tokens(weights, inputs, shape)
    for number, (layer, state) in enumerate(zip(layers, states, strict=True)):
        token = functional.dropout(token, dropout) if number and dropout else token
        token = step_from(shape.cell, token, layer, state)
    token = functional.dropout(token, dropout) if dropout else token
    return Raw(_head(weights, token, shape), _base(linear, inputs.z, shape))


def laid(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Values [S, n, H] of a horizon in the network's order: [S, N].

    N counts step in segment, segment, window, the last the fastest; steps of the last segment
    that lie beyond the horizon are zero.
    """
    missing = shape.tokens * shape.segment - shape.horizon
    padded = functional.pad(values, (0, missing)) if missing else values
    return padded.unflatten(2, (shape.tokens, shape.segment)).permute(0, 3, 2, 1).flatten(1)


def unlaid(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The inverse of `laid` for [S, numbers, N]: [S, n, H, numbers]."""
    apart = values.unflatten(2, (shape.segment, shape.tokens, -1))
    return apart.permute(0, 4, 3, 2, 1).flatten(2, 3)[:, :, : shape.horizon]


def mean_and_quantiles(raw: Raw, levels: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [S, N] and quantiles [S, Q, N] that the bands stand for."""
    median = raw.bands[:, 0] + raw.base
    quantiles = _quantiles(median, functional.softplus(raw.bands[:, 2:]), levels)
    width = quantiles[:, -1] - quantiles[:, 0]
    return torch.addcmul(median, raw.bands[:, 1], width), quantiles


class BandLoss(torch.autograd.Function):
    """`recurrent_net.forecast_loss` of each network: the sum to minimise and its pinball part.

    target, counted, weight: [S, N]; levels: Q numbers; both results: [S].
    """

    @staticmethod
    def forward(
        ctx: Any,
        bands: torch.Tensor,
        base: torch.Tensor,
        target: torch.Tensor,
        counted: torch.Tensor,
        weight: torch.Tensor,
        levels: Sequence[float],
        mean_weight: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        share = counted / counted.sum(1, keepdim=True).clamp_min(1.0)
        mean, quantiles = mean_and_quantiles(Raw(bands, base), levels)
        width = quantiles[:, -1] - quantiles[:, 0]
        error = target[:, None] - quantiles
        slope = (error < 0).to(error.dtype)
        slope.sub_(torch.tensor(levels, dtype=error.dtype, device=error.device)[:, None])
        slope.mul_((weight * share)[:, None])
        slope.div_(len(levels))
        sharp = -(slope * error).sum((1, 2))
        missed = (mean - target).mul_(weight)
        bent = missed.clamp(-HUBER, HUBER)
        squared = ((missed - 0.5 * bent) * bent * share).sum(1)
        of_mean = bent.mul_(weight).mul_(share).mul_(mean_weight)
        ctx.gradient = _of_bands(slope, of_mean, width, bands, levels)
        ctx.mark_non_differentiable(sharp)
        return sharp + mean_weight * squared, sharp

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return ctx.gradient * grads[0][:, None, None], *[None] * 6


def _of_bands(
    slope: torch.Tensor,
    of_mean: torch.Tensor,
    width: torch.Tensor,
    bands: torch.Tensor,
    levels: Sequence[float],
) -> torch.Tensor:
    """Gradient of the bands from those of the quantiles [S, Q, N] and of the mean [S, N].

    The width that the mean is measured in counts as given.
    """
    found = torch.empty_like(bands)
    count, middle = len(levels), levels.index(0.5)
    torch.mul(of_mean, width, out=found[:, 1])
    found[:, 0] = slope.sum(1).add_(of_mean)
    # A gap moves all quantiles on its far side from the median: sums from the outside in.
    total = -slope[:, 0]
    for gap in range(middle):
        found[:, 2 + gap] = total
        total = total - slope[:, gap + 1]
    total = slope[:, -1]
    for gap in reversed(range(middle, count - 1)):
        found[:, 2 + gap] = total
        total = total + slope[:, gap]
    found[:, 2:].mul_(torch.sigmoid(bands[:, 2:]))
    return found


def _quantiles(median: torch.Tensor, gaps: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """[S, Q, N] from the median and the gaps [S, Q - 1, N] between neighbouring levels."""
    middle = levels.index(0.5)
    found = median.new_empty(len(median), len(levels), median.shape[1])
    found[:, middle] = median
    for at in reversed(range(middle)):
        torch.sub(found[:, at + 1], gaps[:, at], out=found[:, at])
    for at in range(middle + 1, len(levels)):
        torch.add(found[:, at - 1], gaps[:, at - 1], out=found[:, at])
    return found


def _layer(weights: Mapping[str, torch.Tensor], number: int) -> Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Weights(*(weights[f"cell.{name}_l{number}"] for name in names))


def _embedded(
    weights: Mapping[str, torch.Tensor], inputs: Inputs, shape: Shape, dropout: float
) -> torch.Tensor:
    """The segments of the lookback: [T, S, D, n]."""
    marks = (inputs.observed,) if shape.marked else ()
    steps = torch.stack([inputs.z, *marks], dim=-1)
    steps = torch.cat([steps, inputs.seen], dim=-1) if shape.seen else steps
    apart = steps.unflatten(2, (-1, shape.segment)).flatten(3)  # [S, n, T, read in a segment]
    read = apart.permute(0, 3, 2, 1)
    embedded = product(weights["embed.weight"], read.flatten(2), weights["embed.bias"])
    embedded = functional.relu(embedded).unflatten(2, read.shape[2:])
    embedded = functional.dropout(embedded, dropout) if dropout else embedded
    return embedded.permute(2, 0, 1, 3).contiguous()


def _tokens(weights: Mapping[str, torch.Tensor], inputs: Inputs, shape: Shape) -> torch.Tensor:
    """The segments of the horizon: [S, D, k, n], or n = 1 where windows do not differ."""
    token = weights["position"].mT[..., None]
    if shape.ahead:
        missing = shape.tokens * shape.segment - shape.horizon
        padded = functional.pad(inputs.ahead, (0, 0, 0, missing))
        read = padded.unflatten(2, (shape.tokens, shape.segment)).flatten(3).permute(0, 3, 2, 1)
        known = torch.bmm(weights["known.weight"], read.flatten(2))
        token = token + known.unflatten(2, read.shape[2:])
    if shape.numbers:
        token = token + torch.bmm(weights["about.weight"], inputs.static.mT)[:, :, None]
    return token


def _head(weights: Mapping[str, torch.Tensor], decoded: torch.Tensor, shape: Shape) -> torch.Tensor:
    """What the network says of the bands: [S, Q + 1, N]; never in half precision."""
    size = (shape.segment, len(shape.levels) + 1)
    weight, bias = (
        weights[f"head.{name}"].unflatten(1, size).transpose(1, 2).flatten(1, 2)
        for name in ("weight", "bias")
    )
    said = product(weight, decoded.flatten(2), bias)
    said = said.to(torch.promote_types(said.dtype, torch.float32))
    return said.unflatten(1, size[::-1]).flatten(2)


def _base(linear: torch.Tensor, z: torch.Tensor, shape: Shape) -> torch.Tensor:
    # Not in half precision: what the map loses would be noise for the network to learn from.
    with torch.autocast(z.device.type, enabled=False):
        return laid(z[..., z.shape[-1] - shape.lags :] @ linear.mT, shape)
