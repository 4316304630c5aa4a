"""A device that is not there: its tensors hold real numbers, and refuse what a GPU would refuse.

Design choices: torch's own key for foreign devices, so that autograd, autocast and modules treat
it as they treat a GPU; the numbers lie on the processor, so that a fit runs to its end and can be
compared; a recording runs the operations it has seen again on the same memory, as CUDA graphs do,
so that a Python number that changes from step to step stays what it was when recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.modules import rnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
AUTOCAST = "AutocastPrivateUse1"
HALVED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm")
WIDENED = ("softplus", "huber_loss", "cumsum", "sum", "sum.dim_IntList")
PROMOTED = ("addcmul",)
"""What CUDA's autocast does in half precision, in float32, and in the widest type given."""
aten = torch.ops.aten
WAITS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
"""What makes the processor wait for the device; so does what calls them."""
FUSED = (aten._fused_adamw_.default, aten._fused_adamw_.tensor_lr)
MOVES = (aten._to_copy.default, aten.copy_.default)
"""What may take tensors of two devices."""
Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class OnDevice(torch.Tensor):  # type: ignore[misc]
    """A tensor of the device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        assert isinstance(made, OnDevice)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretended device outside of it")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.inner!r})"


class Pretended(TorchDispatchMode):  # type: ignore[misc]
    """While it is on, the device is there.

    waits: how often the processor waited for it; narrowed: recurrent layers run in float16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.narrowed = self.recorded = self.replayed = 0
        self._tape: list[Call] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would import its compiler

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As `recurrent_replay.Record`; refuses what no CUDA graph can hold."""
        tape: list[Call] = []
        self._tape = tape
        try:
            work()
        finally:
            self._tape = None
        self.recorded += 1
        done = True

        def replay() -> None:
            nonlocal done
            if not done:  # the numbers had to be computed once while they were recorded
                self.replayed += 1
                for call in tape:
                    _again(*call)
            done = False

        return replay

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        given = [*_tensors(args), *_tensors(list(named.values()))]
        there = [x for x in given if isinstance(x, OnDevice)]
        asked = named.get("device")
        to_device = _lies_there(func, given, asked)
        self._check(func, given, there, to_device)
        assert named.get("generator") is None or not to_device, "the processor's random numbers"
        if asked is not None and to_device:
            named["device"] = torch.device("cpu")
        args = _mapped(args, _inner)
        named = {name: _mapped(value, _inner) for name, value in named.items()}
        if func in FUSED:
            _check_layout(args)
        if func is aten._to_copy.default and not named.get("dtype"):
            found = args[0].clone()  # another device has another memory
        else:
            found = func(*args, **named)
        if self._tape is not None:
            self._tape.append((func, args, named, found))
        if not to_device:
            return found
        known = {id(x.inner): x for x in there}
        return _mapped(found, lambda x: known[id(x)] if id(x) in known else OnDevice(x))

    def _check(
        self, func: Any, given: list[torch.Tensor], there: list[OnDevice], to_device: bool
    ) -> None:
        here = [x for x in given if not isinstance(x, OnDevice)]
        mixed = bool(there and here) or (bool(there) != to_device and bool(given))
        single = func not in FUSED and not any(x.dim() for x in here)  # goes with the operation
        if mixed and func not in MOVES and not single:
            raise RuntimeError(f"{func}: tensors of two devices")
        masked = func in (aten.index.Tensor, aten.index_put_.default) and any(
            x.dtype == torch.bool for x in there[1:]
        )
        back = func in MOVES and bool(there) and not to_device
        waits = bool(there) and (func in WAITS or masked or back)
        self.waits += waits
        if self._tape is not None and (waits or mixed or not to_device):
            raise AssertionError(f"{func}: cannot be recorded: it needs the processor")


def _inner(x: torch.Tensor) -> torch.Tensor:
    return x.inner if isinstance(x, OnDevice) else x


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """With every tensor in tuples and lists changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(each, change) for each in value])
    return value


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _lies_there(func: Any, given: list[torch.Tensor], asked: torch.device | None) -> bool:
    if asked is not None:
        return asked.type == NAME
    first = given[:1] if func is aten.copy_.default else given
    return any(isinstance(x, OnDevice) for x in first)


def _again(func: Any, args: tuple[Any, ...], named: dict[str, Any], before: Any) -> None:
    """Run an operation once more; its answer lands where the first one did."""
    found = func(*args, **named)
    if any(each.alias_info is not None for each in func._schema.returns):
        return  # a view, or written in place
    for old, new in zip(_tensors([before]), _tensors([found]), strict=True):
        old.copy_(new)


def _check_layout(args: tuple[Any, ...]) -> None:
    """CUDA's fused optimiser demands one layout of a weight, its gradient and its moments."""
    for each in zip(*args[:4], strict=True):
        layouts = {(tuple(x.shape), x.stride(), x.dtype) for x in each}
        assert len(layouts) == 1, f"layouts of a weight and its gradient differ: {layouts}"


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """What torch asks about the device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """The device, with recurrent layers that behave as cuDNN's do."""
    _register()
    device = Pretended()
    for kind in ("gru", "lstm"):
        own = getattr(rnn._VF, kind)
        patch.setattr(rnn._VF, kind, _as_cudnn(kind, own, device), raising=False)
    patch.setattr(torch, "inference_mode", torch.no_grad)  # no tensor of ours can be viewed in it
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # or `torch.tensor` moves what it made unseen
    try:
        # Threads for a device begin with the first gradient of a process, too early for ours.
        with torch.autograd.set_multithreading_enabled(False), device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


@cache
def _register() -> list[torch.library.Library]:
    """Once a process; what is returned must be kept, or torch forgets it."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    kernels, others = (torch.library.Library(name, "IMPL") for name in ("aten", "_"))
    others.fallback(torch.library.fallthrough_kernel, AUTOCAST)
    for names, cast in ((HALVED, _halved), (WIDENED, _widened), (PROMOTED, _promoted)):
        for name in names:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(aten, packet), overload or "default")
            kernels.impl(name, _cast_first(func, cast), AUTOCAST)
    return [kernels, others]


def _cast_first(func: Any, cast: Callable[[list[Any]], list[Any]]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C._parse_dispatch_key(AUTOCAST))

    def run(*args: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return func(*cast(list(args)), **named)

    return run


def _halved(args: list[Any]) -> list[Any]:
    return _as_type(args, torch.bfloat16)


def _widened(args: list[Any]) -> list[Any]:
    return _as_type(args, torch.float32)


def _promoted(args: list[Any]) -> list[Any]:
    types = {x.dtype for x in args if isinstance(x, torch.Tensor)}
    return args if len(types) == 1 else _as_type(args, torch.float32)


def _as_type(args: list[Any], dtype: torch.dtype) -> list[Any]:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    found: list[Any] = _mapped(args, cast)
    return found


def _as_cudnn(kind: str, own: Callable[..., Any], device: Pretended) -> Callable[..., Any]:
    """A recurrent layer in single operations; in float16 wherever autocast is on."""

    def run(x: torch.Tensor, start: Any, weights: list[torch.Tensor], *how: Any) -> Any:
        if not isinstance(x, OnDevice):
            return own(x, start, weights, *how)
        _, layers, dropout, training, *_ = how
        if torch.is_autocast_enabled(NAME):
            device.narrowed += 1
            x, start, weights = _mapped((x, start, weights), torch.Tensor.half)
        states = []
        for layer in range(layers):
            x = torch.dropout(x, dropout, training) if layer else x
            state = [each[layer] for each in ([start] if kind == "gru" else start)]
            outputs = []
            for now in x.unbind(1):
                state = _cell(now, state, weights[4 * layer : 4 * layer + 4])
                outputs.append(state[0])
            x = torch.stack(outputs, 1)
            states.append(state)
        return x, *(torch.stack(each) for each in zip(*states, strict=True))

    return run


def _cell(
    x: torch.Tensor, state: list[torch.Tensor], weights: list[torch.Tensor]
) -> list[torch.Tensor]:
    of_input, of_state, input_bias, state_bias = weights
    hidden = state[0]
    ahead, back = x @ of_input.T + input_bias, hidden @ of_state.T + state_bias
    if len(state) == 1:
        (r, z, n), (on_r, on_z, on_n) = ahead.chunk(3, -1), back.chunk(3, -1)
        keep = torch.sigmoid(z + on_z)
        new = torch.tanh(n + torch.sigmoid(r + on_r) * on_n)
        return [(1 - keep) * new + keep * hidden]
    let_in, forget, new, out = (ahead + back).chunk(4, -1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(let_in) * torch.tanh(new)
    return [torch.sigmoid(out) * torch.tanh(cell), cell]
