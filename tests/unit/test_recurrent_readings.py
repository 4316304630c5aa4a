"""The units of a window in NumPy and in training are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_net import window_scale
from flts_ray.models.recurrent_readings import (
    WindowUnits,
    denormalised,
    inputs_of,
    readings_of,
    window_units,
)
from flts_ray.prepare.arrays import Windows
from tests.served import plain_contract

VALUES = arrays(np.float64, (3, 7), elements=st.floats(-1e6, 1e6))
SCALES = arrays(np.float64, (3, 1), elements=st.floats(1e-6, 1e6) | st.just(float("nan")))


@pytest.mark.parametrize("centre", ["last", "mean"])
@settings(deadline=None)
@given(y=VALUES, own=SCALES)
def test_units_are_those_of_training(centre: str, y: np.ndarray, own: np.ndarray) -> None:
    found = window_units(y, own, centre)
    wanted = window_scale(torch.from_numpy(y), torch.from_numpy(own), centre)
    digit = 1e-12 * np.abs(y).max()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-9, atol=digit)
    assert (found.scale > 0).all()


def test_only_what_a_network_reads_is_made() -> None:
    contract = plain_contract()
    windows = Windows(
        contract=contract,
        ids=("a",),
        origin_us=np.array([0]),
        y=np.arange(6.0)[None],
        observed=np.ones((1, 6), dtype=bool),
        past=np.zeros((1, 6, 0)),
        future=np.ones((1, 8, 1)),
        static=np.zeros((1, 0)),
        scale=np.array([2.0]),
    )
    one, none = np.ones(1, np.float32), np.zeros(0, np.float32)
    scaling = ColumnScaling(none, none, one, one, none, none, cycles=(0,), events=())
    whole, units = readings_of(windows, scaling, "last")
    some, same = inputs_of(windows, scaling, "last", ["z", "ahead"])
    assert list(some) == ["z", "ahead"]
    for name, array in some.items():
        np.testing.assert_array_equal(array, getattr(whole, name))
    np.testing.assert_array_equal(units.scale, same.scale)
    unread = replace(windows, future=np.zeros((1, 0, 0)))
    assert list(inputs_of(unread, scaling, "last", ["z"])[0]) == ["z"]


def test_forecasts_come_back_in_the_units_of_the_input() -> None:
    units = WindowUnits(np.array([[10.0], [-1.0]]), np.array([[2.0], [0.5]]))
    found = denormalised(np.array([[0.0, 1.0], [2.0, 4.0]]), np.ones((2, 2, 3)), units)
    np.testing.assert_array_equal(found.mean, [[10.0, 12.0], [0.0, 1.0]])
    np.testing.assert_array_equal(found.quantiles[:, 0, 0], [12.0, -0.5])
    np.testing.assert_array_equal(found.scale, [2.0, 0.5])
