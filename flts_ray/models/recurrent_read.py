"""GRU and LSTM over a sequence for a stack of networks, with gradients by hand.

Design choices: one product with all weights of the stack a step, and on the way back one product
for the gradient of the weights after all steps instead of one a step, because the networks are so
small that the number of operations is what counts; dimensions before the last two are networks,
so the same lines run one network or thousands, and `torch.func.vmap` finds its way by itself.
Backpropagation through time: Werbos 1990.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

Parts = tuple[torch.Tensor, ...]


class ReadGRU(Function):
    """Outputs of a GRU layer from a zero state.

    ahead: [T, ..., n, 3H], the input's share of the gates; weight: [..., 3H, H] and bias:
    [..., 3H] of the state's share. Returns the outputs [T, ..., n, H] and, for the way back, the
    gates and the state's share of the new value.
    """

    @staticmethod
    def forward(ahead: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Parts:
        size = weight.shape[-1]
        gates = ahead.clone()
        gates[..., : 2 * size] += bias[..., None, : 2 * size]
        towards, own = weight.mT.contiguous(), bias[..., None, 2 * size :]
        hidden = ahead.new_zeros(*ahead.shape[1:-1], size)
        outputs, shares = (ahead.new_empty(*ahead.shape[:-1], size) for _ in range(2))
        for step, gate in enumerate(gates):
            back = torch.matmul(hidden, towards)
            switches = gate[..., : 2 * size].add_(back[..., : 2 * size]).sigmoid_()
            torch.add(back[..., 2 * size :], own, out=shares[step])
            new = gate[..., 2 * size :].addcmul_(switches[..., :size], shares[step]).tanh_()
            hidden = torch.lerp(new, hidden, switches[..., size:], out=outputs[step])
        return outputs, gates, shares

    @staticmethod
    def setup_context(ctx: Any, inputs: Parts, output: Parts) -> None:
        ctx.save_for_backward(inputs[1], *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Parts:
        weight, outputs, gates, shares = ctx.saved_tensors
        reset, keep, new = gates.chunk(3, -1)
        before = _before(outputs)
        by_keep = (before - new) * keep * (1.0 - keep)
        by_new = (1.0 - keep) * (1.0 - new * new)
        by_reset = shares * reset * (1.0 - reset)
        ahead, back = torch.empty_like(gates), torch.empty_like(gates)
        size = weight.shape[-1]
        (given, *_), carried = gradients, torch.zeros_like(before[0])
        for step in range(len(gates) - 1, -1, -1):
            total = carried + given[step]
            on_new = torch.mul(total, by_new[step], out=ahead[step, ..., 2 * size :])
            torch.mul(on_new, by_reset[step], out=back[step, ..., :size])
            torch.mul(total, by_keep[step], out=back[step, ..., size : 2 * size])
            torch.mul(on_new, reset[step], out=back[step, ..., 2 * size :])
            carried = torch.matmul(back[step], weight).addcmul_(total, keep[step])
        ahead[..., : 2 * size] = back[..., : 2 * size]
        return ahead, *_of_weights(back, before)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: torch.Tensor) -> Any:
        return ReadGRU.apply(*_stacked(info.batch_size, in_dims, inputs)), (1, 1, 1)


class ReadLSTM(Function):
    """Outputs and cell states of an LSTM layer from a zero state.

    ahead: [T, ..., n, 4H], weight: [..., 4H, H] and bias: [..., 4H] as for `ReadGRU`. Returns
    the outputs [T, ..., n, H], the last cell state [1, ..., n, H] and, for the way back, the
    gates and all cell states.
    """

    @staticmethod
    def forward(ahead: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Parts:
        size = weight.shape[-1]
        gates, towards = ahead + bias[..., None, :], weight.mT.contiguous()
        hidden = cell = ahead.new_zeros(*ahead.shape[1:-1], size)
        outputs, cells = (ahead.new_empty(*ahead.shape[:-1], size) for _ in range(2))
        for step, gate in enumerate(gates):
            gate += torch.matmul(hidden, towards)
            let_in, keep = gate[..., : 2 * size].sigmoid_().chunk(2, -1)
            new, out = gate[..., 2 * size : 3 * size].tanh_(), gate[..., 3 * size :].sigmoid_()
            cell = torch.mul(keep, cell, out=cells[step]).addcmul_(let_in, new)
            hidden = torch.mul(out, torch.tanh(cell), out=outputs[step])
        return outputs, cell[None].clone(), gates, cells

    @staticmethod
    def setup_context(ctx: Any, inputs: Parts, output: Parts) -> None:
        outputs, _, gates, cells = output
        ctx.save_for_backward(inputs[1], outputs, gates, cells)
        ctx.mark_non_differentiable(gates, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Parts:
        weight, outputs, gates, cells = ctx.saved_tensors
        let_in, keep, new, out = gates.chunk(4, -1)
        shown, before = torch.tanh(cells), _before(outputs)
        cells_before = _before(cells)
        on_cell = out * (1.0 - shown * shown)
        factors = torch.cat(
            [
                new * let_in * (1.0 - let_in),
                cells_before * keep * (1.0 - keep),
                let_in * (1.0 - new * new),
            ],
            dim=-1,
        )
        by_out = shown * out * (1.0 - out)
        size, back = weight.shape[-1], torch.empty_like(gates)
        carried, of_cell = torch.zeros_like(before[0]), gradients[1][0]
        for step in range(len(gates) - 1, -1, -1):
            total = carried + gradients[0][step]
            of_cell = torch.addcmul(of_cell, total, on_cell[step])
            repeated = of_cell.repeat(*[1] * (of_cell.dim() - 1), 3)
            torch.mul(repeated, factors[step], out=back[step, ..., : 3 * size])
            torch.mul(total, by_out[step], out=back[step, ..., 3 * size :])
            of_cell = of_cell * keep[step]
            carried = torch.matmul(back[step], weight)
        return back, *_of_weights(back, before)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: torch.Tensor) -> Any:
        return ReadLSTM.apply(*_stacked(info.batch_size, in_dims, inputs)), (1, 1, 1, 1)


def _before(states: torch.Tensor) -> torch.Tensor:
    """The state before each step: [T, ..., n, H]."""
    return torch.cat([torch.zeros_like(states[:1]), states[:-1]])


def _of_weights(back: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of weight and bias from those of the state's share and the states before."""
    rows, states = (each.movedim(0, -3).flatten(-3, -2) for each in (back, before))
    return torch.matmul(rows.mT, states), rows.sum(-2)


def _stacked(size: int, in_dims: tuple[int | None, ...], inputs: Parts) -> Parts:
    """Inputs with the dimension of the networks where the functions above expect it."""
    ahead, weight, bias = (
        each.expand(size, *each.shape) if dim is None else each.movedim(dim, 0)
        for each, dim in zip(inputs, in_dims, strict=True)
    )
    return ahead.movedim(0, 1), weight, bias
