"""A segment-wise recurrent network that forecasts every step of the horizon at once.

Design choices: the lookback is cut into segments and the recurrent layer steps over segments, so
a week of half hours is 28 steps instead of 336; every segment of the horizon is decoded in
parallel from the last state, its position and its known-future columns, so no error feeds back
(SegRNN: Lin et al. 2023, arXiv 2308.11200). Windows are normalised one by one and forecasts are
mapped back (Kim et al., ICLR 2022), so a level shift changes nothing the network sees. Quantiles
are the median plus running sums of positive gaps, so they cannot cross. A fixed linear map of the
window is added to the median and the mean; the network learns what that map leaves over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}
SCALE_FLOOR = 0.1
UNSEEN_FLOOR = 1e-3
TINY = 1e-12


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the names and shapes of the weights.

    `lookback` is a multiple of `segment`; `lags` is the number of last steps the linear map
    reads (0: no map); `past`, `future` and `static` count columns.
    """

    cell: str
    lookback: int
    segment: int
    horizon: int
    levels: tuple[float, ...]
    past: int
    future: int
    static: int
    hidden: int
    layers: int
    dropout: float
    lags: int

    @property
    def ahead(self) -> int:
        """Segments that cover the horizon."""
        return -(-self.horizon // self.segment)


class Inputs(NamedTuple):
    """What the network sees of n windows, float32, everything scaled.

    z, observed: [n, L]; past: [n, L, P]; future: [n, L + H, F]; static: [n, S].
    """

    z: torch.Tensor
    observed: torch.Tensor
    past: torch.Tensor
    future: torch.Tensor
    static: torch.Tensor


class WindowScale(NamedTuple):
    """The map of each window between its units and the network's: [n, 1] each."""

    centre: torch.Tensor
    scale: torch.Tensor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.centre) / self.scale


def window_scale(y: torch.Tensor, series_scale: torch.Tensor, centre: str) -> WindowScale:
    """Centre and scale of each window (Kim et al., ICLR 2022).

    y: [n, L]; series_scale: [n, 1] in the units of y, NaN for a series never seen before;
    centre: "last" value or "mean" of the window. The scale is the window's standard deviation,
    but at least a tenth of the series' own, so that a constant window cannot blow up whatever
    comes after it; an unseen series has its level in place of that.
    """
    mean = y.mean(dim=1, keepdim=True)
    spread = (y - mean).square().mean(dim=1, keepdim=True).sqrt()
    own = torch.where(
        torch.isnan(series_scale), UNSEEN_FLOOR * mean.abs(), SCALE_FLOOR * series_scale
    )
    middle = y[:, -1:] if centre == "last" else mean
    return WindowScale(middle, torch.maximum(spread, own).clamp_min(TINY))


class SegmentNet(nn.Module):
    """Mean and quantiles of the horizon from normalised windows."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.segment, shape.hidden
        per_step = 2 + shape.past + shape.future
        self.embed = nn.Linear(width * per_step, wide)
        self.cell = CELLS[shape.cell](
            wide,
            wide,
            num_layers=shape.layers,
            dropout=shape.dropout if shape.layers > 1 else 0.0,
            batch_first=True,
        )
        self.position = nn.Parameter(0.1 * torch.randn(shape.ahead, wide))
        self.known = nn.Linear(width * shape.future, wide, bias=False) if shape.future else None
        self.about = nn.Linear(shape.static, wide, bias=False) if shape.static else None
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(wide, width * (len(shape.levels) + 1))
        self.linear = nn.Parameter(torch.zeros(shape.horizon, shape.lags), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(shape.horizon), requires_grad=False)
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
        state = self._encode(inputs)
        raw = self._decode(inputs, state)
        lags = self.shape.lags
        base = self.offset + (inputs.z[:, -lags:] @ self.linear.T if lags else 0.0)
        median = base + raw[..., 0]
        quantiles = _around(median, functional.softplus(raw[..., 2:]), self.shape.levels)
        # In units of the band, so that a wide last step does not blur the mean of a narrow first.
        width = (quantiles[..., -1] - quantiles[..., 0]).detach()
        return median + raw[..., 1] * width, quantiles

    def _encode(self, inputs: Inputs) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        n, lookback = inputs.z.shape
        steps = torch.cat(
            [
                inputs.z[..., None],
                inputs.observed[..., None],
                inputs.past,
                inputs.future[:, :lookback],
            ],
            dim=-1,
        )
        segments = steps.reshape(n, lookback // self.shape.segment, -1)
        _, state = self.cell(self.dropout(functional.relu(self.embed(segments))))
        return state

    def _decode(
        self, inputs: Inputs, state: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """One step of the same cell for every segment of the horizon; raw [n, H, Q + 1]."""
        shape, n = self.shape, len(inputs.z)
        token = self.position.expand(n, -1, -1)
        if self.known is not None:
            ahead = inputs.future[:, shape.lookback :]
            padded = functional.pad(ahead, (0, 0, 0, shape.ahead * shape.segment - shape.horizon))
            token = token + self.known(padded.reshape(n, shape.ahead, -1))
        if self.about is not None:
            token = token + self.about(inputs.static)[:, None]
        token = token.reshape(n * shape.ahead, 1, shape.hidden)
        if isinstance(state, tuple):
            first = (self._spread(state[0]), self._spread(state[1]))
            decoded, _ = self.cell(token, first)
        else:
            decoded, _ = self.cell(token, self._spread(state))
        raw = self.head(self.dropout(decoded[:, 0]))
        return raw.reshape(n, shape.ahead * shape.segment, -1)[:, : shape.horizon]

    def _spread(self, state: torch.Tensor) -> torch.Tensor:
        return state.repeat_interleave(self.shape.ahead, dim=1).contiguous()


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
    pinball = torch.maximum(levels * error, (levels - 1.0) * error).mean(-1) * weight
    squared = functional.huber_loss(mean * weight, target * weight, reduction="none", delta=3.0)
    total = counted.sum().clamp_min(1.0)
    sharp = (pinball * counted).sum() / total
    return sharp + mean_weight * (squared * counted).sum() / total, sharp.detach()
