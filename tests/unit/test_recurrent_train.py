"""Which windows an epoch takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models.recurrent_train import MIN_BATCHES, Schedule, epoch_orders


def schedule(epochs: int, windows_per_epoch: int, batch: int = 4) -> Schedule:
    return Schedule(
        epochs=epochs,
        windows_per_epoch=windows_per_epoch,
        batch=batch,
        lr=0.01,
        weight_decay=0.0,
        mean_weight=0.1,
        average=0.9,
        seed=0,
    )


def test_an_epoch_takes_every_so_many_windows_and_the_next_one_others() -> None:
    first, second = (set(order.tolist()) for order in epoch_orders(1000, schedule(2, 250)))
    assert len(first) == len(second) == 250
    assert {number % 4 for number in first} == {0}
    assert {number % 4 for number in second} == {1}


def test_the_first_epochs_are_half_as_long() -> None:
    lengths = [len(order) for order in epoch_orders(5000, schedule(8, 1000))]
    assert lengths == [500, 500, *[1000] * 6]


@given(
    windows=st.integers(1, 500),
    epochs=st.integers(1, 6),
    asked=st.integers(1, 300),
    batch=st.integers(1, 40),
)
def test_epochs_hold_existing_windows_and_no_more_than_asked(
    windows: int, epochs: int, asked: int, batch: int
) -> None:
    orders = list(epoch_orders(windows, schedule(epochs, asked, batch)))
    assert len(orders) == epochs
    for order in orders:
        assert 1 <= len(order) <= asked
        assert 0 <= int(order.min()) <= int(order.max()) < windows
    assert len(orders[-1]) == min(asked, max(windows, MIN_BATCHES * batch))
