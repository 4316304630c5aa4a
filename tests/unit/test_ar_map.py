"""Sums over windows: the same for any division into parts, and wherever the parts run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import FltsError
from flts_ray.models import ar_map
from flts_ray.models.ar_map import Sample, moments_of, part_moments
from flts_ray.models.ar_settings import Settings, layout_of
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.ridge import Moments
from flts_ray.models.spread import Failed, attempt, in_turn
from flts_ray.prepare.arrays import SeriesArrays, origins_in
from tests.synthetic import seasonal_set

DATA = seasonal_set(n_series=3, length=300)
LAYOUT = layout_of(DATA, 6, Settings(lags=24))
WHOLE = Sample(DATA, *origins_in(DATA, "train", LAYOUT.lookback, 6))
N = len(WHOLE.series)
DIRECT = part_moments(DATA, (WHOLE.series, WHOLE.origins), LAYOUT)


def assert_same_sums(found: Moments, expected: Moments) -> None:
    for name, value in vars(expected).items():
        size = float(np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9 * size)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(N)), st.lists(st.integers(1, N - 1), max_size=6))
def test_sums_of_any_division_add_up(order: list[int], cuts: list[int]) -> None:
    """Windows in any order, in any number of parts."""
    pieces = [piece for piece in np.split(np.asarray(order), sorted(cuts)) if len(piece)]
    parts = [(WHOLE.series[piece], WHOLE.origins[piece]) for piece in pieces]
    found = map(partial(part_moments, DATA, layout=LAYOUT), parts)
    assert_same_sums(reduce(add, found), DIRECT)


def test_parts_are_few_and_hold_every_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ar_map, "PART_WINDOWS", 10)
    seen: list[Any] = []

    def watched(
        work: Any, data: SeriesArrays, parts: Sequence[Any], costs: Sequence[float]
    ) -> Iterator[Any]:
        seen.extend(parts)
        assert [len(series) for series, _ in parts] == list(costs)
        return in_turn(work, data, parts, costs)

    found = moments_of(Sample(DATA, WHOLE.series, WHOLE.origins, watched), LAYOUT)
    assert_same_sums(found, DIRECT)
    assert 1 < len(seen) <= ar_map.MAX_PARTS
    np.testing.assert_array_equal(np.concatenate([origins for _, origins in seen]), WHOLE.origins)
    np.testing.assert_array_equal(np.concatenate([series for series, _ in seen]), WHOLE.series)


def test_a_part_that_failed_fails_the_sum() -> None:
    """A sum without some of its windows would be a wrong one."""

    def lossy(
        work: Any, data: SeriesArrays, parts: Sequence[Any], costs: Sequence[float]
    ) -> Iterator[Any]:
        yield Failed("out of memory")

    with pytest.raises(FltsError, match="a part of the fit failed: out of memory"):
        moments_of(Sample(DATA, WHOLE.series, WHOLE.origins, lossy), LAYOUT)


def test_a_fit_is_the_same_wherever_its_sums_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ar_map, "PART_WINDOWS", 50)
    calls: list[int] = []

    def backwards(
        work: Any, data: SeriesArrays, parts: Sequence[Any], costs: Sequence[float]
    ) -> Iterator[Any]:
        """Runs the last part first, and gives results in order."""
        calls.append(len(parts))
        found = [attempt(work, data, part) for part in reversed(parts)]
        return reversed(found)

    params, task = {"lags": 24}, Task(6, (0.1, 0.5, 0.9))
    here = fit_fully("ar", DATA, task, params).state()
    there = fit_fully("ar", DATA, task, params, Compute(spread=backwards)).state()
    assert max(calls) > 1
    assert here[0] == there[0]
    for name, array in here[1].items():
        assert there[1][name].tobytes() == array.tobytes(), name
