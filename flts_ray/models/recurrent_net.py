"""A segment-wise recurrent network that forecasts every step of the horizon at once.

Design choices: the lookback is cut into segments and the recurrent layer steps over segments, so
a week of half hours is 28 steps instead of 336; every segment of the horizon is decoded in
parallel from the last state, its position and its known-future columns, so no error feeds back
(SegRNN: Lin et al. 2023, arXiv 2308.11200). The calendar is read for the horizon alone: what it
did to the past is in the window. Windows are normalised one by one and forecasts are mapped back
(Kim et al., ICLR 2022), so a level shift changes nothing the network sees. Quantiles are the
median plus running sums of positive gaps, so they cannot cross. A fixed linear map of the window
is added to the median and the mean; the network learns what that map leaves over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from flts_ray.models.recurrent_cell import CELLS, State, read, step_from
from flts_ray.models.recurrent_readings import SCALE_FLOOR, TINY, UNSEEN_FLOOR
from flts_ray.models.recurrent_shape import Shape

UNTOLD = 0.1
"""Share of training windows that do not tell their label."""
HUBER = 3.0
"""Beyond this error the loss of the mean grows no faster than linearly."""


class Inputs(NamedTuple):
    """What the network sees of n windows, float32, everything scaled.

    z, observed: [n, L]; seen: [n, L, columns]; ahead: [n, H, columns]; static: [n, S], in a
    column of labels the number of the label, or of labels for an unknown one.
    """

    z: torch.Tensor
    observed: torch.Tensor
    seen: torch.Tensor
    ahead: torch.Tensor
    static: torch.Tensor


class WindowScale(NamedTuple):
    """The map of each window between its units and the network's: [..., 1] each."""

    centre: torch.Tensor
    scale: torch.Tensor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.centre) / self.scale


def window_scale(y: torch.Tensor, series_scale: torch.Tensor, centre: str) -> WindowScale:
    """Centre and scale of each window (Kim et al., ICLR 2022).

    y: [..., L]; series_scale: [..., 1] in the units of y, NaN for a series never seen before;
    centre: "last" value or "mean" of the window. The scale is the window's standard deviation,
    but at least a tenth of the series' own, so that a constant window cannot blow up whatever
    comes after it; an unseen series has its level in place of that.
    """
    mean = y.mean(dim=-1, keepdim=True)
    spread = (y - mean).square().mean(dim=-1, keepdim=True).sqrt()
    own = torch.where(
        torch.isnan(series_scale), UNSEEN_FLOOR * mean.abs(), SCALE_FLOOR * series_scale
    )
    middle = y[..., -1:] if centre == "last" else mean
    return WindowScale(middle, torch.maximum(spread, own).clamp_min(TINY))


class SegmentNet(nn.Module):
    """Mean and quantiles of the horizon from normalised windows."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.segment, shape.hidden
        self.embed = nn.Linear(width * (1 + shape.marked + shape.seen), wide)
        self.cell = CELLS[shape.cell](
            wide,
            wide,
            num_layers=shape.layers,
            dropout=shape.dropout if shape.layers > 1 else 0.0,
            batch_first=True,
        )
        self.position = nn.Parameter(0.1 * torch.randn(shape.tokens, wide))
        self.known = nn.Linear(width * shape.ahead, wide, bias=False) if shape.ahead else None
        numbers = len(shape.numbers)
        self.about = nn.Linear(numbers, wide, bias=False) if numbers else None
        self.labels = nn.ModuleDict(
            {str(at): nn.Embedding(n + 1, wide) for at, n in enumerate(shape.categories) if n}
        )
        for table in self.labels.values():
            nn.init.normal_(table.weight, std=0.1)
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(wide, width * (len(shape.levels) + 1))
        self.linear = nn.Parameter(torch.zeros(shape.horizon, shape.lags), requires_grad=False)
        self.start_at(1.0)

    def start_at(self, sigma: float) -> None:
        """Begin with the bands of a normal error of this size around the linear map."""
        levels = torch.tensor(self.shape.levels, dtype=torch.float64)
        gaps = sigma * torch.special.ndtri(levels).diff().clamp_min(1e-3)
        raw = gaps + torch.log(-torch.expm1(-gaps))  # the inverse of softplus
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            bias = torch.cat([torch.zeros(2, dtype=torch.float64), raw])
            self.head.bias.copy_(bias.repeat(self.shape.segment))

    def forward(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean [n, H] and quantiles [n, H, Q] in normalised units."""
        raw = self._decode(inputs, self._encode(inputs))
        median = raw[..., 0] + self._linear_part(inputs.z)
        # The whole of `raw` lies together in memory, which its slice does not.
        quantiles = _around(median, functional.softplus(raw)[..., 2:], self.shape.levels)
        # In units of the band, so that a wide last step does not blur the mean of a narrow first.
        width = (quantiles[..., -1] - quantiles[..., 0]).detach()
        return median + raw[..., 1] * width, quantiles

    def _linear_part(self, z: torch.Tensor) -> torch.Tensor:
        """What the fixed map says: [n, H], or nothing to add where there is none."""
        lags = self.shape.lags
        if not lags:
            return z.new_zeros(())
        # Not in half precision: what the map loses would be noise for the network to learn from.
        with torch.autocast(z.device.type, enabled=False):
            return z[:, -lags:] @ self.linear.T

    def _encode(self, inputs: Inputs) -> list[State]:
        shape, n = self.shape, len(inputs.z)
        marks = (inputs.observed,) if shape.marked else ()
        steps = torch.stack([inputs.z, *marks], dim=-1)
        steps = torch.cat([steps, inputs.seen], dim=-1) if shape.seen else steps
        count = shape.lookback // shape.segment
        embedded = functional.relu(self.embed(steps.reshape(n * count, self.embed.in_features)))
        segments = self.dropout(embedded).reshape(n, count, shape.hidden)
        return read(self.cell, segments)

    def _decode(self, inputs: Inputs, states: list[State]) -> torch.Tensor:
        """One step of the same cell for every segment of the horizon; raw [n, H, Q + 1]."""
        shape, n = self.shape, len(inputs.z)
        token = self.position[None]
        if self.known is not None:
            width = shape.tokens * shape.segment
            padded = functional.pad(inputs.ahead, (0, 0, 0, width - shape.horizon))
            known = self.known(padded.reshape(n * shape.tokens, self.known.in_features))
            token = token + known.reshape(n, shape.tokens, shape.hidden)
        for part in self._static_parts(inputs.static):
            token = token + part[:, None]
        decoded = self.dropout(step_from(self.cell, token, states))
        raw = self.head(decoded.reshape(n * shape.tokens, shape.hidden))
        numbers = len(shape.levels) + 1
        return raw.reshape(n, shape.tokens * shape.segment, numbers)[:, : shape.horizon]

    def _static_parts(self, static: torch.Tensor) -> Iterator[torch.Tensor]:
        """What the columns of the series add to a token: [n, hidden] each."""
        if self.about is not None:
            numbers = [static[:, column] for column in self.shape.numbers]
            yield self.about(torch.stack(numbers, dim=-1) if self.labels else static)
        for column, table in self.labels.items():
            label = static[:, int(column)].long()
            if self.training:  # the row of unknown labels learns what all series share
                unknown = torch.rand_like(static[:, 0]) < UNTOLD
                label = torch.where(unknown, len(table.weight) - 1, label)
            yield table(label)


def _around(median: torch.Tensor, gaps: torch.Tensor, levels: tuple[float, ...]) -> torch.Tensor:
    """Quantiles from the median and the gaps [n, H, Q - 1] between neighbouring levels."""
    below = levels.index(0.5)
    down = gaps[..., :below].flip(-1).cumsum(-1).flip(-1)
    up = gaps[..., below:].cumsum(-1)
    middle = median[..., None]
    return torch.cat([middle - down, middle, middle + up], dim=-1)


def forecast_loss(
    forecast: tuple[torch.Tensor, torch.Tensor],
    target: torch.Tensor,
    counted: torch.Tensor,
    weight: torch.Tensor,
    levels: torch.Tensor,
    mean_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pinball loss of the quantiles plus a Huber loss of the mean.

    target, counted: [n, H], normalised values and whether they count; weight: [n, 1], window
    scale in the series' own scale, so that the sum is the scaled pinball loss forecasts are
    judged on. Returns the sum to minimise and its pinball part alone.
    """
    mean, quantiles = forecast
    error = target[..., None] - quantiles
    pinball = (levels * error + functional.relu(-error)).mean(-1) * weight
    squared = functional.huber_loss(mean * weight, target * weight, reduction="none", delta=HUBER)
    total = counted.sum().clamp_min(1.0)
    sharp = (pinball * counted).sum() / total
    return sharp + mean_weight * (squared * counted).sum() / total, sharp.detach()
