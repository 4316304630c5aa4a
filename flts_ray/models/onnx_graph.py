"""The recurrent network as an ONNX graph, written operator by operator.

Design choices: ONNX's own GRU and LSTM read the window, which is what makes a single window
quick; the graph is written by hand from the stored weights and not traced, because a trace fixes
the number of windows, takes seconds, and brings a compiler along, while a graph that has drifted
from the network is found by the check that follows every export; the network runs in float32,
but its linear map, the sums of quantile gaps and the results are float64, because that is where
digits are lost; networks of single series share one graph and come as inputs of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flts_ray.models.recurrent_shape import Shape

OPSET, IR = 17, 8
GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Where ONNX's gates (update, reset, new; in, out, forget, cell) stand among the stored ones."""


def in_onnx_order(cell: str, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored weights [..., *shape] with the gates of the recurrent layer as ONNX orders them."""
    return {
        name: _gates(cell, name, array) if name.startswith("cell.") else array
        for name, array in weights.items()
    }


def _gates(cell: str, name: str, array: np.ndarray) -> np.ndarray:
    axis = -2 if name.startswith("cell.weight") else -1
    parts = np.split(array, len(GATES[cell]), axis=axis)
    return np.concatenate([parts[at] for at in GATES[cell]], axis=axis)


def graph_of(
    shape: Shape, weights: Mapping[str, np.ndarray], given: Mapping[str, tuple[int, ...]]
) -> bytes:
    """A serialised model: float64 `mean` [n, H] and `quantiles` [n, H, Q] in normalised units.

    weights: float32, from `in_onnx_order`, without the name of the part; given: shapes of weights
    that are inputs of the graph in place of being part of it. Its other inputs are those of
    `Readings` that the network reads.
    """
    from onnx import TensorProto, checker, helper

    graph = _Graph(weights, given)
    inputs = list(_inputs(shape))
    states = _encoded(graph, shape)
    raw = _decoded(graph, shape, states)
    _finish(graph, shape, raw)
    taken = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *size])
        for name, size in inputs
    ] + [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(size))
        for name, size in given.items()
    ]
    results = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", shape.horizon, *more])
        for name, more in (("mean", ()), ("quantiles", (len(shape.levels),)))
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "forecast", taken, results, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="flts-ray",
    )
    checker.check_model(made)
    return bytes(made.SerializeToString(deterministic=True))


def _inputs(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the network reads: names and shapes after the first axis."""
    yield "z", (shape.lookback,)
    if shape.marked:
        yield "observed", (shape.lookback,)
    if shape.seen:
        yield "seen", (shape.lookback, shape.seen)
    if shape.ahead:
        yield "ahead", (shape.horizon, shape.ahead)
    if shape.static:
        yield "static", (shape.static,)


@dataclass
class _Graph:
    """Nodes and constants so far; every method adds what it says and returns its name."""

    weights: Mapping[str, np.ndarray]
    given: Mapping[str, tuple[int, ...]]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"{kind}_{len(self.nodes)}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def whole(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, name: str, dtype: type = np.float32) -> str:
        if name not in self.given and name not in self._known:
            self._known.add(name)
            self.constant(self.weights[name].astype(dtype), name)
        return name

    def linear(self, x: str, name: str, weight: str = "weight", bias: str | None = "bias") -> str:
        """x [..., in] through the layer called `name`."""
        turned = self.add("Transpose", self.weight(f"{name}.{weight}"), perm=[1, 0])
        found: str = self.add("MatMul", x, turned)
        return found if bias is None else self.add("Add", found, self.weight(f"{name}.{bias}"))

    def expanded(self, x: str, axis: int) -> str:
        found: str = self.add("Unsqueeze", x, self.whole(axis))
        return found

    def sliced(self, x: str, begin: int, end: int, axis: int) -> str:
        bounds = (self.whole(each) for each in (begin, end, axis))
        found: str = self.add("Slice", x, *bounds)
        return found

    def result(self, x: str, name: str) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [x], [name]))

    def double(self, x: str) -> str:
        from onnx import TensorProto

        found: str = self.add("Cast", x, to=TensorProto.DOUBLE)
        return found


def _encoded(graph: _Graph, shape: Shape) -> list[list[str]]:
    """States [n, hidden] of each layer after the window: hidden and, for an LSTM, cell."""
    steps = [graph.expanded("z", 2)]
    steps += [graph.expanded("observed", 2)] if shape.marked else []
    steps += ["seen"] if shape.seen else []
    width = shape.segment * (1 + shape.marked + shape.seen)
    together = graph.add("Concat", *steps, axis=2) if len(steps) > 1 else steps[0]
    count = shape.lookback // shape.segment
    segments = graph.add("Reshape", together, graph.whole(0, count, width))
    embedded = graph.add("Relu", graph.linear(segments, "embed"))
    x = graph.add("Transpose", embedded, perm=[1, 0, 2])
    states = []
    for layer in range(shape.layers):
        x, ends = _read(graph, shape, layer, x)
        states.append(ends)
    return states


def _read(graph: _Graph, shape: Shape, layer: int, x: str) -> tuple[str, list[str]]:
    """One layer over x [T, n, hidden]: its outputs [T, n, hidden] and last states."""
    weights = [
        graph.expanded(graph.weight(f"cell.weight_{part}_l{layer}"), 0) for part in ("ih", "hh")
    ]
    biases = [graph.weight(f"cell.bias_{part}_l{layer}") for part in ("ih", "hh")]
    bias = graph.expanded(graph.add("Concat", *biases, axis=0), 0)
    about: dict[str, Any] = {"hidden_size": shape.hidden}
    if shape.cell == "gru":
        about["linear_before_reset"] = 1
    kind = shape.cell.upper()
    outputs, *last = graph.add(kind, x, *weights, bias, outputs=3 if kind == "LSTM" else 2, **about)
    ends = [graph.add("Squeeze", each, graph.whole(0)) for each in last]
    return graph.add("Squeeze", outputs, graph.whole(1)), ends


def _decoded(graph: _Graph, shape: Shape, states: list[list[str]]) -> str:
    """One step of the same cell for every segment of the horizon: raw [n, H, Q + 1]."""
    x = graph.expanded(graph.weight("position"), 0)
    for part in _token_parts(graph, shape):
        x = graph.add("Add", x, part)
    for layer, ends in enumerate(states):
        x = _step(graph, shape, layer, x, ends)
    numbers, steps = len(shape.levels) + 1, shape.tokens * shape.segment
    raw = graph.add("Reshape", graph.linear(x, "head"), graph.whole(0, steps, numbers))
    return graph.sliced(raw, 0, shape.horizon, 1)


def _token_parts(graph: _Graph, shape: Shape) -> Iterator[str]:
    """What is added to the positions: [n, tokens or 1, hidden] each."""
    if shape.ahead:
        missing = shape.tokens * shape.segment - shape.horizon
        padded = graph.add("Pad", "ahead", graph.whole(0, 0, 0, 0, missing, 0))
        width = shape.segment * shape.ahead
        segments = graph.add("Reshape", padded, graph.whole(0, shape.tokens, width))
        yield graph.linear(segments, "known", bias=None)
    if shape.numbers:
        columns = graph.add("Gather", "static", graph.whole(*shape.numbers), axis=1)
        yield graph.expanded(graph.linear(columns, "about", bias=None), 1)
    for column, labels in enumerate(shape.categories):
        if labels:
            yield graph.expanded(_label(graph, column), 1)


def _label(graph: _Graph, column: int) -> str:
    """The row of the label in a static column: [n, hidden]."""
    from onnx import TensorProto

    code = graph.add("Gather", "static", graph.constant(np.array(column, np.int64)), axis=1)
    row = graph.add("Cast", code, to=TensorProto.INT64)
    found: str = graph.add("Gather", graph.weight(f"labels.{column}.weight"), row, axis=0)
    return found


def _step(graph: _Graph, shape: Shape, layer: int, x: str, ends: list[str]) -> str:
    """One step for every input x [n or 1, k, hidden] from the same state of its window."""
    gates = len(GATES[shape.cell])
    ahead = graph.linear(x, "cell", f"weight_ih_l{layer}", f"bias_ih_l{layer}")
    back = graph.linear(ends[0], "cell", f"weight_hh_l{layer}", f"bias_hh_l{layer}")
    back, (hidden, *cell) = graph.expanded(back, 1), (graph.expanded(each, 1) for each in ends)
    if cell:
        parts = graph.add("Split", graph.add("Add", ahead, back), outputs=gates, axis=2)
        let_in, out, keep = (graph.add("Sigmoid", each) for each in parts[:3])
        held = graph.add("Mul", keep, cell[0])
        fresh = graph.add("Mul", let_in, graph.add("Tanh", parts[3]))
        now = graph.add("Tanh", graph.add("Add", held, fresh))
        return str(graph.add("Mul", out, now))
    forward = graph.add("Split", ahead, outputs=gates, axis=2)
    behind = graph.add("Split", back, outputs=gates, axis=2)
    keep, reset = (
        graph.add("Sigmoid", graph.add("Add", one, other))
        for one, other in zip(forward[:2], behind[:2], strict=True)
    )
    new = graph.add("Tanh", graph.add("Add", forward[2], graph.add("Mul", reset, behind[2])))
    apart = graph.add("Sub", hidden, new)
    return str(graph.add("Add", new, graph.add("Mul", keep, apart)))


def _finish(graph: _Graph, shape: Shape, raw: str) -> None:
    """`mean` and `quantiles` of raw [n, H, Q + 1]."""
    first, second = (
        graph.add("Squeeze", graph.double(graph.sliced(raw, at, at + 1, 2)), graph.whole(2))
        for at in (0, 1)
    )
    median = first
    if shape.lags:
        recent = graph.double(graph.sliced("z", shape.lookback - shape.lags, shape.lookback, 1))
        turned = graph.add("Transpose", graph.weight("linear", np.float64), perm=[1, 0])
        median = graph.add("Add", first, graph.add("MatMul", recent, turned))
    middle = graph.expanded(median, 2)
    below, count = shape.levels.index(0.5), len(shape.levels)
    parts = [middle]
    gaps = (
        graph.double(graph.add("Softplus", graph.sliced(raw, 2, count + 1, 2))) if count > 1 else ""
    )
    if below:
        down = graph.sliced(gaps, 0, below, 2)
        sums = graph.add("CumSum", down, graph.whole(2), reverse=1)
        parts.insert(0, graph.add("Sub", middle, sums))
    if below < count - 1:
        sums = graph.add("CumSum", graph.sliced(gaps, below, count - 1, 2), graph.whole(2))
        parts.append(graph.add("Add", middle, sums))
    quantiles = graph.add("Concat", *parts, axis=2)
    ends = (graph.sliced(quantiles, at, at + 1, 2) for at in (count - 1, 0))
    band = graph.add("Squeeze", graph.add("Sub", *ends), graph.whole(2))
    mean = graph.add("Add", median, graph.add("Mul", second, band))
    graph.result(mean, "mean")
    graph.result(quantiles, "quantiles")
