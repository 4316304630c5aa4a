from __future__ import annotations

from flts_ray.streams.rebalance import Rebalances
from flts_ray.streams.records import Records


def records(partition: int, *offsets: int) -> Records:
    nothing = [None] * len(offsets)
    return Records(partition, offsets, nothing, offsets, (), nothing, 0)


class Reader:
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.rebalances = Rebalances(
            lambda partitions: self.told.append(("assigned", partitions)),
            lambda partitions: self.told.append(("revoked", partitions)),
        )

    def settle(self, *found: Records) -> list[int]:
        kept = self.rebalances.settle(found, lambda p, at: self.told.append(("seek", (p, at))))
        return [one.partition for one in kept]


def test_without_changes_everything_is_returned() -> None:
    reader = Reader()
    assert reader.settle(records(0, 1, 2), records(1, 5)) == [0, 1]
    assert (reader.told, reader.rebalances.count) == ([], 0)


def test_nobody_is_told_before_the_poll_ends() -> None:
    reader = Reader()
    reader.rebalances.note("assigned", {1, 0})
    assert reader.told == []
    assert reader.settle() == []
    assert reader.told == [("assigned", [0, 1])]
    assert reader.settle(records(0, 7)) == [0]
    assert reader.rebalances.count == 1


def test_messages_of_a_new_partition_are_withheld_and_read_again() -> None:
    reader = Reader()
    reader.rebalances.note("assigned", [1])
    assert reader.settle(records(0, 1), records(1, 5, 6)) == [0]
    assert reader.told == [("seek", (1, 5)), ("assigned", [1])]


def test_messages_of_a_revoked_partition_are_dropped() -> None:
    reader = Reader()
    reader.rebalances.note("revoked", [1])
    assert reader.settle(records(0, 1), records(1, 5)) == [0]
    assert reader.told == [("revoked", [1])]


def test_changes_are_told_in_their_order_and_empty_ones_not_at_all() -> None:
    reader = Reader()
    reader.rebalances.note("revoked", [2])
    reader.rebalances.note("assigned", [])
    reader.rebalances.note("assigned", [2])
    reader.settle()
    assert reader.told == [("revoked", [2]), ("assigned", [2])]
    assert reader.rebalances.count == 2
