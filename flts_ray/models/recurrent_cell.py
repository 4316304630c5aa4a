"""GRU and LSTM layers: a whole sequence, and one step of many inputs from the same state.

Design choices: a network reads a sequence with torch's own layer, the fastest there is. When many
steps begin in one state, the gates' share of the input and that of the state are computed once
each and added by broadcasting, not once for every pair of input and state. Many networks at once:
`recurrent_stack_cell`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class State(NamedTuple):
    """One layer after a sequence: hidden and cell state [n, hidden]; a GRU has no cell state."""

    hidden: torch.Tensor
    cell: torch.Tensor | None


def read(layers: nn.RNNBase, x: torch.Tensor) -> list[State]:
    """State of each layer after the sequences x [n, T, hidden], from a zero state.

    Never in half precision: cuDNN would choose float16, in which small gradients vanish.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return read(layers, x.to(layers.get_parameter("weight_ih_l0").dtype))
    _, last = layers(x)
    if isinstance(last, tuple):
        return [State(h, c) for h, c in zip(*last, strict=True)]
    return [State(h, None) for h in last]


def step_from(layers: nn.RNNBase, x: torch.Tensor, states: list[State]) -> torch.Tensor:
    """One step for every input, each from the same state of its window.

    x: [n, k, hidden], or [1, k, hidden] if all windows share the inputs; states: [n, hidden]
    each. Returns the last layer's output [n, k, hidden].
    """
    for layer, (hidden, cell) in enumerate(states):
        if layer:
            x = functional.dropout(x, layers.dropout, layers.training)
        spread = State(hidden[:, None], None if cell is None else cell[:, None])
        # Products may come in half precision, states do not, and a gate wants one type.
        ahead = _from_input(layers, layer, x).to(hidden.dtype)
        back = _from_state(layers, layer, hidden).to(hidden.dtype)
        x = _step(ahead, back[:, None], spread).hidden
    return x


def _from_input(layers: nn.RNNBase, layer: int, x: torch.Tensor) -> torch.Tensor:
    weight, bias = (getattr(layers, f"{name}_ih_l{layer}") for name in ("weight", "bias"))
    flat = functional.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.reshape(*x.shape[:-1], len(weight))


def _from_state(layers: nn.RNNBase, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    weight, bias = (getattr(layers, f"{name}_hh_l{layer}") for name in ("weight", "bias"))
    return functional.linear(hidden, weight, bias)


def _step(ahead: torch.Tensor, back: torch.Tensor, state: State) -> State:
    """ahead, back: the gates' shares of input and state, [..., 3 or 4 times hidden]."""
    if state.cell is None:
        (read_in, keep_in, new_in), (read_on, keep_on, new_on) = (
            ahead.chunk(3, -1),
            back.chunk(3, -1),
        )
        reset, keep = torch.sigmoid(read_in + read_on), torch.sigmoid(keep_in + keep_on)
        new = torch.tanh(torch.addcmul(new_in, reset, new_on))
        return State(torch.lerp(new, state.hidden, keep), None)
    let_in, keep, new, out = (ahead + back).chunk(4, -1)
    cell = torch.addcmul(torch.sigmoid(keep) * state.cell, torch.sigmoid(let_in), torch.tanh(new))
    return State(torch.sigmoid(out) * torch.tanh(cell), cell)
