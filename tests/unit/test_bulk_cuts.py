from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models.base import ModelSpec, Task
from flts_ray.serve.bulk_cuts import MOST_NUMBERS, MOST_SERIES, PART_S, Cuts, numbers_of
from tests.served import plain_contract


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def parts(cuts: Cuts) -> Iterator[range]:
    while (rows := cuts.next()) is not None:
        yield rows


@given(st.lists(st.integers(0, 2 * MOST_NUMBERS), max_size=50), st.integers(1, 7))
def test_every_series_is_in_one_part_of_bounded_size(sizes: list[int], batch: int) -> None:
    found = list(parts(Cuts(np.array(sizes, np.int64), batch)))
    assert [i for rows in found for i in rows] == list(range(len(sizes)))
    for rows in found:
        assert len(rows) == 1 or sum(sizes[i] for i in rows) <= MOST_NUMBERS
        assert 1 <= len(rows) <= batch


def test_parts_grow_to_what_the_model_does_in_time() -> None:
    clock = Clock()
    cuts = Cuts(np.ones(20_000, np.int64), 256, clock)
    assert cuts.next() == range(256)
    clock.seconds = PART_S
    cuts.done(1000)
    assert cuts.next() == range(256, 256 + 768)
    cuts.done(10**9)
    assert cuts.next() == range(1024, 1024 + MOST_SERIES)
    clock.seconds = 1e9
    cuts.done(3072)
    assert cuts.next() == range(3072, 3328)


def test_parts_of_long_histories_are_whole_batches_where_one_fits() -> None:
    clock = Clock()
    cuts = Cuts(np.full(5000, MOST_NUMBERS // 700), 256, clock)
    cuts.done(10**9)
    assert cuts.next() == range(512)
    few = Cuts(np.full(9, MOST_NUMBERS // 3), 256, clock)
    assert [len(rows) for rows in parts(few)] == [3, 3, 3]


def test_a_series_counts_what_is_laid_for_it() -> None:
    contract = plain_contract(past=("wind",), known_future=("event",))
    spec = ModelSpec("any", Task(6, (0.1, 0.5)), 100, contract)
    np.testing.assert_array_equal(numbers_of(np.array([0, 1000]), spec), [312, 1012])
