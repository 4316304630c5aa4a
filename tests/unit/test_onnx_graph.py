"""The hand-written graph against the trained network, shape by shape."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from flts_ray.errors import ArtifactError
from flts_ray.models.onnx_fitted import open_session
from flts_ray.models.onnx_graph import graph_of, in_onnx_order
from flts_ray.models.recurrent_net import Inputs, SegmentNet
from flts_ray.models.recurrent_shape import Shape

PLAIN: dict[str, Any] = {
    "lookback": 24, "segment": 6, "horizon": 12, "levels": (0.1, 0.5, 0.9), "marked": 0, "seen": 0,
    "ahead": 0, "static": 0, "hidden": 8, "layers": 1, "dropout": 0.1, "lags": 0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "nothing but the target": {},
    "a horizon that is no multiple of a segment": {"horizon": 10, "ahead": 3},
    "a segment as long as the window": {"segment": 24, "seen": 2},
    "segments of one step": {"segment": 1, "marked": 1},
    "a map of all lags": {"lags": 24},
    "a map of some lags": {"lags": 5},
    "the median alone": {"levels": (0.5,)},
    "nothing below the median": {"levels": (0.5, 0.7, 0.9)},
    "nothing above the median": {"levels": (0.1, 0.5)},
    "three layers": {"layers": 3},
    "numbers of the series": {"static": 2},
    "labels of the series": {"static": 3, "categories": (0, 4, 2)},
    "nothing but labels": {"static": 1, "categories": (3,)},
    "everything": {
        "horizon": 17, "marked": 1, "seen": 2, "ahead": 4, "static": 2, "categories": (5, 0),
        "layers": 2, "lags": 24, "levels": (0.025, 0.1, 0.5, 0.9, 0.975),
    },
}  # fmt: skip


def network(shape: Shape) -> SegmentNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = SegmentNet(shape).eval()
        torch.nn.init.normal_(net.linear, std=0.1)
        torch.nn.init.normal_(net.head.weight, std=0.5)
    return net


def inputs(shape: Shape, n: int) -> Inputs:
    rng = np.random.default_rng(3)

    def draw(*size: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(size).astype(np.float32))

    static = draw(n, shape.static)
    for column, labels in enumerate(shape.categories):
        if labels:
            static[:, column] = torch.from_numpy(rng.integers(0, labels + 1, n).astype(np.float32))
    return Inputs(
        z=draw(n, shape.lookback),
        observed=(draw(n, shape.lookback) > -1).float(),
        seen=draw(n, shape.lookback, shape.seen),
        ahead=draw(n, shape.horizon, shape.ahead),
        static=static,
    )


def weights_of(net: SegmentNet) -> dict[str, np.ndarray]:
    stored = {name: weight.numpy().copy() for name, weight in net.state_dict().items()}
    return in_onnx_order(net.shape.cell, stored)


def ran(graph: bytes, seen: Inputs, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = open_session("gru", graph)
    read = {each.name for each in session.get_inputs()}
    feed = {name: array.numpy() for name, array in seen._asdict().items() if name in read}
    found: list[np.ndarray] = session.run(("mean", "quantiles"), feed | given)
    return found


def expected(net: SegmentNet, seen: Inputs) -> list[np.ndarray]:
    with torch.inference_mode():
        return [each.numpy() for each in net.double()(Inputs(*(one.double() for one in seen)))]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_the_network_does(cell: str, case: str) -> None:
    shape = Shape(cell=cell, **(PLAIN | CASES[case]))
    net, seen = network(shape), inputs(shape, 5)
    weights = weights_of(net)
    graph = graph_of(Shape.of(asdict(shape)), weights, {})
    for found, wanted in zip(ran(graph, seen, {}), expected(net, seen), strict=True):
        assert found.dtype == np.float64
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_weights_that_are_given_count_as_those_inside(cell: str) -> None:
    shape = Shape(cell=cell, **(PLAIN | CASES["everything"]))
    net, seen = network(shape), inputs(shape, 3)
    weights = weights_of(net)
    known = Shape.of(asdict(shape))
    own = {name: array for name, array in weights.items() if name != "linear"}
    graph = graph_of(known, weights, {name: array.shape for name, array in own.items()})
    inside = ran(graph_of(known, weights, {}), seen, {})
    for found, wanted in zip(ran(graph, seen, own), inside, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert not set(own) & {each.name for each in onnx.load_from_string(graph).graph.initializer}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_window_does_not_depend_on_the_rest_of_its_batch(cell: str) -> None:
    shape = Shape(cell=cell, **(PLAIN | CASES["everything"]))
    net, seen = network(shape), inputs(shape, 67)
    graph = graph_of(Shape.of(asdict(shape)), weights_of(net), {})
    whole = ran(graph, seen, {})
    for size in (1, 2, 7, 33):
        part = ran(graph, Inputs(*(each[:size] for each in seen)), {})
        for found, wanted in zip(part, whole, strict=True):
            np.testing.assert_allclose(found, wanted[:size], atol=1e-6)


def test_the_same_network_gives_the_same_bytes() -> None:
    shape = Shape(cell="gru", **(PLAIN | CASES["everything"]))
    weights = weights_of(network(shape))
    known = Shape.of(asdict(shape))
    assert graph_of(known, weights, {}) == graph_of(known, weights, {})


def test_stacked_weights_are_put_in_order_one_by_one() -> None:
    shape = Shape(cell="lstm", **PLAIN)
    one = {name: weight.numpy() for name, weight in network(shape).state_dict().items()}
    stacked = {name: np.stack([array, 2 * array]) for name, array in one.items()}
    for name, array in in_onnx_order("lstm", stacked).items():
        np.testing.assert_array_equal(array[1], 2 * in_onnx_order("lstm", one)[name])


def test_the_graph_is_readable_by_anybody() -> None:
    shape = Shape(cell="gru", **(PLAIN | {"marked": 1, "ahead": 2}))
    graph = graph_of(Shape.of(asdict(shape)), weights_of(network(shape)), {})
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.input] == ["z", "observed", "ahead"]
    assert [each.name for each in model.graph.output] == ["mean", "quantiles"]


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ArtifactError, match="its graph cannot be run"):
        open_session("gru", b"no graph")
