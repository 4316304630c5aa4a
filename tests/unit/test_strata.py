"""What is taken of a row is one of each stratum, and even over every cycle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.strata import BITS, TURNS, evenly, in_turn_of, stratified


def phases_of(positions: np.ndarray, season: int) -> np.ndarray:
    return np.bincount(positions % season, minlength=season)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(TURNS))
def test_as_many_as_asked_for_once_each_and_in_order(total: int, count: int, turn: float) -> None:
    found = stratified(total, min(total, count), turn)
    assert found.dtype == np.int64
    assert len(found) == min(total, count)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0 and found[-1] < total


@given(st.integers(1, 1000), st.integers(0, 10**6), st.sampled_from(TURNS))
def test_every_stratum_has_one(count: int, more: int, turn: float) -> None:
    total = 2 * count + more
    for part, found in enumerate(stratified(total, count, turn).tolist()):
        # The position is the cell in which a point of the stratum lies.
        assert found < Fraction((part + 1) * total, count)
        assert found + 1 > Fraction(part * total, count)


@given(st.integers(1, 1000), st.data())
def test_where_most_are_taken_every_stratum_leaves_one_out(left: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(2 * left + 1, 6 * left))
    out = np.setdiff1d(np.arange(total), stratified(total, total - left))
    np.testing.assert_array_equal(out, stratified(total, left))


@pytest.mark.parametrize(("total", "count"), [(2**38, 1000), (2**38 - 1, 2**20 + 7)])
def test_positions_are_exact_however_long_the_row(total: int, count: int) -> None:
    found = stratified(total, count)
    turned = int(TURNS[0] * 2**64)
    for part in (0, 1, count // 2, count - 2, count - 1):
        place = Fraction((part + 1) * turned % 2**64 >> (64 - BITS), 2**BITS)
        assert found[part] == (part + place) * total // count


def test_the_same_on_every_machine() -> None:
    assert stratified(1000, 8).tolist() == [77, 154, 356, 434, 511, 713, 790, 993]
    assert stratified(12, 8).tolist() == [0, 2, 4, 5, 6, 7, 9, 11]


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.sampled_from([24, 48, 168, 720, 1440]), st.integers(2, 1440)),
    st.integers(50, 100),
    st.floats(1.01, 40.0),
)
def test_every_phase_is_met_alike(season: int, each: int, ratio: float) -> None:
    most = season * each
    total = int(most * ratio)
    found = evenly(total, most, lambda at: (at % season,))
    assert len(found) == min(total, most)
    expected = phases_of(np.arange(total), season) * (len(found) / total)
    np.testing.assert_allclose(phases_of(found, season), expected, rtol=0.2)


@pytest.mark.parametrize("distance", [1 + TURNS[0], 1 - TURNS[0], 2 - TURNS[0], 1, 0.5, 7])
def test_a_cycle_that_moves_with_the_golden_turn_is_met_alike_too(distance: float) -> None:
    """At distances of n + m * turn seasons what one turn takes comes from a few phases."""
    season, most = 168, 168 * 60
    total = round(most * distance * season)
    found = evenly(total, most, lambda at: (at % season,))
    np.testing.assert_allclose(phases_of(found, season), 60, rtol=0.2)


def test_the_golden_turn_alone_would_miss_phases() -> None:
    found = stratified(round(168 * 60 * (2 - TURNS[0]) * 168), 168 * 60)
    assert phases_of(found, 168).max() > 100


@given(st.integers(1, 40), st.integers(1, 400))
def test_in_turn_is_what_a_finished_row_has(stride: int, parts: int) -> None:
    taken = in_turn_of(np.arange(parts * stride), stride)
    assert (taken.reshape(parts, stride).sum(axis=1) == 1).all()
    if stride > 1:
        np.testing.assert_array_equal(np.flatnonzero(taken), stratified(parts * stride, parts))


@pytest.mark.parametrize("stride", [2, 7, 8, 24, 48])
def test_in_turn_meets_every_phase(stride: int) -> None:
    taken = np.flatnonzero(in_turn_of(np.arange(24 * stride * 60), stride))
    np.testing.assert_allclose(phases_of(taken, 24), 60, rtol=0.2)
