"""GRU and LSTM layers of many networks at once, with their gradients written out.

Design choices: windows are the last axis and networks the first, so that every gate of a network
is one piece of memory and each operation runs over it without a gap; a sequence is one operation
for autograd, because a graph of single gates reads and writes memory several times as often as
the products do; nothing that a gradient does not need is kept; the sums over the steps that a
weight's gradient is are made by the products themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

Kept = tuple[torch.Tensor, ...]


class State(NamedTuple):
    """One layer after a step: hidden and cell state; in a GRU the cell state is empty."""

    hidden: torch.Tensor
    cell: torch.Tensor


class Weights(NamedTuple):
    """One layer of all networks: of_input, of_state: [S, gates, D]; their biases [S, gates]."""

    of_input: torch.Tensor
    of_state: torch.Tensor
    input_bias: torch.Tensor
    state_bias: torch.Tensor


def read_sequence(kind: str, x: torch.Tensor, weights: Weights) -> tuple[torch.Tensor, State]:
    """Outputs [T, S, D, n] and the last state [S, D, n] for x [T, S, D, n], from a zero state."""
    outputs, cell = _Sequence.apply(kind, x, *weights)
    return outputs, State(outputs[-1], cell)


def step_from(kind: str, x: torch.Tensor, weights: Weights, state: State) -> torch.Tensor:
    """One step for each of k inputs, all from the same state of their window.

    x: [S, D, k, n], or [S, D, k, 1] if all windows share the inputs; state: [S, D, n] each.
    Returns the output [S, D, k, n].
    """
    ahead = product(weights.of_input, x.flatten(2), weights.input_bias).unflatten(2, x.shape[2:])
    back = product(weights.of_state, state.hidden, weights.state_bias)[:, :, None]
    size = *ahead.shape[:3], back.shape[3]
    spread = [part[:, :, None].expand(-1, -1, *size[2:]) for part in state if part.numel()]
    hidden: torch.Tensor = _Step.apply(kind, ahead.expand(size), back.expand(size), *spread)
    return hidden


def product(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """weight [S, m, d] times x [S, d, n], plus bias [S, m]."""
    found: torch.Tensor = _Product.apply(weight, x, bias)
    return found


def _multiplied(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(bias[:, :, None], weight, x)


def _summed(x: torch.Tensor) -> torch.Tensor:
    """x [S, m, n] over its last axis, as a product: many times faster than `sum` where n is few."""
    return (x.reshape(-1, x.shape[-1]) @ x.new_ones(x.shape[-1])).view(x.shape[:-1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, x)
        return _multiplied(weight, x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight, x = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        of_x = torch.bmm(weight.mT, grad) if ctx.needs_input_grad[1] else None
        return torch.bmm(grad, x.to(weight.dtype).mT), of_x, _summed(grad)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: str, x: torch.Tensor, *given: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(given[0].dtype)
            weights, step = Weights(*given), FORWARD[kind]
            zero = torch.zeros_like(x[0])
            states, kept = [State(zero, zero if kind == "lstm" else zero[:0])], []
            for now in x.unbind():
                ahead = _multiplied(weights.of_input, now, weights.input_bias)
                back = _multiplied(weights.of_state, states[-1].hidden, weights.state_bias)
                state, held = step(ahead, back, states[-1])
                states.append(state)
                kept.append(held)
        ctx.kind, ctx.states, ctx.kept = kind, [state.hidden for state in states], kept
        ctx.save_for_backward(x, weights.of_input, weights.of_state)
        return torch.stack(ctx.states[1:]), states[-1].cell

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, of_input, of_state = ctx.saved_tensors
        outputs, cell = grads
        d_input, d_state = torch.zeros_like(of_input), torch.zeros_like(of_state)
        d_ahead, d_back, d_x = None, None, []
        state = State(torch.zeros_like(x[0]), cell)
        for at in reversed(range(len(x))):
            state = State(state.hidden + outputs[at], state.cell)
            ahead, back, state = BACKWARD[ctx.kind](state, ctx.kept[at])
            d_input.baddbmm_(ahead, x[at].mT)
            d_state.baddbmm_(back, ctx.states[at].mT)
            d_x.append(torch.bmm(of_input.mT, ahead))
            state = State(torch.baddbmm(state.hidden, of_state.mT, back), state.cell)
            d_ahead = ahead if d_ahead is None else d_ahead.add_(ahead)
            d_back = back if d_back is None else d_back.add_(back)
        assert d_ahead is not None and d_back is not None  # a sequence has a step
        return None, torch.stack(d_x[::-1]), d_input, d_state, _summed(d_ahead), _summed(d_back)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: str, ahead: torch.Tensor, back: torch.Tensor, *state: torch.Tensor
    ) -> torch.Tensor:
        hidden, cell = state if len(state) > 1 else (state[0], state[0][:0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        given = State(hidden, cell)
        after, ctx.kept = FORWARD[kind](ahead.to(wide), back.to(wide), given)
        ctx.kind, ctx.types = kind, (ahead.dtype, back.dtype)
        return after.hidden

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        like = grads[0][:0] if ctx.kind == "gru" else torch.zeros_like(grads[0])
        ahead, back, state = BACKWARD[ctx.kind](State(grads[0], like), ctx.kept)
        parts = [part for part in state if part.numel()]
        return None, ahead.to(ctx.types[0]), back.to(ctx.types[1]), *parts


def _gru(ahead: torch.Tensor, back: torch.Tensor, state: State) -> tuple[State, Kept]:
    """ahead, back: what input and state say to the gates, [S, 3 D, ...]."""
    width = ahead.shape[1] // 3
    gates = (ahead[:, : 2 * width] + back[:, : 2 * width]).sigmoid_()
    reset, keep = gates[:, :width], gates[:, width:]
    on = back[:, 2 * width :]
    new = _tanh_(torch.addcmul(ahead[:, 2 * width :], reset, on))
    after = torch.lerp(new, state.hidden, keep)
    return State(after, state.cell), (gates, on, new, state.hidden)


def _gru_back(grad: State, kept: Kept) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Gradients of `_gru`'s three arguments, from that of the state it gives."""
    gates, on, new, hidden = kept
    width = new.shape[1]
    reset, keep = gates[:, :width], gates[:, width:]
    ahead = new.new_empty(len(new), 3 * width, *new.shape[2:])
    d_gates, d_new = ahead[:, : 2 * width], ahead[:, 2 * width :]
    past = grad.hidden * keep
    torch.ops.aten.tanh_backward.grad_input(grad.hidden - past, new, grad_input=d_new)
    torch.mul(d_new, on, out=d_gates[:, :width])
    torch.mul(grad.hidden, hidden - new, out=d_gates[:, width:])
    torch.ops.aten.sigmoid_backward.grad_input(d_gates, gates, grad_input=d_gates)
    back = ahead.clone()
    back[:, 2 * width :].mul_(reset)
    return ahead, back, State(past, grad.cell)


def _lstm(ahead: torch.Tensor, back: torch.Tensor, state: State) -> tuple[State, Kept]:
    """ahead, back: what input and state say to the gates, [S, 4 D, ...]."""
    width = ahead.shape[1] // 4
    gates = ahead + back
    new = _tanh_(gates[:, 2 * width : 3 * width].clone())
    gates.sigmoid_()
    let_in, forget, _, out = gates.split(width, dim=1)
    cell = torch.addcmul(forget * state.cell, let_in, new)
    told = _tanh_(cell.clone())
    return State(out * told, cell), (gates, new, told, state.cell)


def _lstm_back(grad: State, kept: Kept) -> tuple[torch.Tensor, torch.Tensor, State]:
    """Gradients of `_lstm`'s three arguments, from that of the state it gives."""
    gates, new, told, before = kept
    width = new.shape[1]
    let_in, forget, _, out = gates.split(width, dim=1)
    cell = grad.cell + torch.ops.aten.tanh_backward(grad.hidden * out, told)
    both = torch.cat([cell * new, cell * before, cell, grad.hidden * told], dim=1)
    ahead = torch.ops.aten.sigmoid_backward(both, gates)
    ahead[:, 2 * width : 3 * width] = torch.ops.aten.tanh_backward(cell * let_in, new)
    # What the state says meets what the input says in a sum: one gradient is that of both.
    return ahead, ahead.clone(), State(torch.zeros_like(cell), cell * forget)


def _tanh_(x: torch.Tensor) -> torch.Tensor:
    """In place; torch's own runs many times slower than its logistic function."""
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


FORWARD = {"gru": _gru, "lstm": _lstm}
BACKWARD = {"gru": _gru_back, "lstm": _lstm_back}
