"""Parts in this process, and how they are packed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.models.base import Compute
from flts_ray.models.spread import Failed, in_turn, packed
from flts_ray.prepare.arrays import SeriesArrays
from tests.synthetic import seasonal_set

COSTS = st.lists(st.floats(0.0, 1e6), max_size=60)


def length(data: SeriesArrays, part: int) -> int:
    if part == 1:
        raise DataError("series b: too short")
    return int(data.lengths[part])


def test_a_part_that_raises_costs_only_itself() -> None:
    data = seasonal_set(n_series=2, length=100)
    found = list(in_turn(length, data, [0, 1, 0, 7], [1.0] * 4))
    assert found[0] == found[2] == 100
    assert found[1] == Failed("series b: too short")
    assert isinstance(found[3], Failed)
    assert found[3].reason.startswith("IndexError: ")


def test_a_fit_runs_its_parts_in_this_process_unless_told_otherwise() -> None:
    assert Compute().over_parts is in_turn


@settings(deadline=None)
@given(COSTS, st.integers(1, 12))
def test_every_part_is_packed_once_the_costliest_pack_first(costs: list[float], bins: int) -> None:
    groups = packed(costs, bins)
    assert sorted(index for group in groups for index in group) == list(range(len(costs)))
    assert len(groups) <= bins
    loads = [sum(costs[index] for index in group) for group in groups]
    assert loads == sorted(loads, reverse=True) or max(loads) - min(loads) < 1e-6 * max(loads)
    assert all(group == sorted(group) for group in groups)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=60), st.integers(1, 12))
def test_packs_are_even(costs: list[float], bins: int) -> None:
    """None is costlier than the mean by more than one part (Graham's bound)."""
    longest = max(sum(costs[index] for index in group) for group in packed(costs, bins))
    assert longest <= sum(costs) / bins + max(costs) + 1e-6
