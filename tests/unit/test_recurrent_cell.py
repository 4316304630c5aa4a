"""One step from a state gives what torch's own layers give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flts_ray.models.recurrent_cell import CELLS, read, step_from


@pytest.fixture(params=[(kind, layers) for kind in CELLS for layers in (1, 2)])
def layers(request: pytest.FixtureRequest) -> nn.RNNBase:
    kind, count = request.param
    torch.manual_seed(0)
    made: nn.RNNBase = CELLS[kind](6, 6, num_layers=count, batch_first=True)
    return made


def test_steps_from_one_state_are_those_of_the_layer(layers: nn.RNNBase) -> None:
    states, inputs = read(layers, torch.randn(4, 7, 6)), torch.randn(4, 3, 6)
    found = step_from(layers, inputs, states)
    hidden = torch.stack([state.hidden for state in states])
    cells = [state.cell for state in states if state.cell is not None]
    start = (hidden, torch.stack(cells)) if cells else hidden
    for at in range(3):
        expected, _ = layers(inputs[:, at : at + 1], start)
        torch.testing.assert_close(found[:, at], expected[:, 0])


def test_inputs_that_all_windows_share_need_not_be_repeated(layers: nn.RNNBase) -> None:
    states, shared = read(layers, torch.randn(4, 7, 6)), torch.randn(1, 3, 6)
    torch.testing.assert_close(
        step_from(layers, shared, states), step_from(layers, shared.expand(4, -1, -1), states)
    )
