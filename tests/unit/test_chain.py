from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from flts_ray.errors import ArtifactError
from flts_ray.ingest.chain import Frontier, frontier, segments
from flts_ray.ingest.segment import partition_folder, segment_key
from flts_ray.store import FolderStore, ObjectInfo, Store
from tests.segments import EPOCH, TOPIC, Racing, segment, stored


class Counting(FolderStore):
    """A folder that tells which keys were asked for."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.heads: list[str] = []
        self.listed: list[str | None] = []

    def head(self, key: str) -> ObjectInfo:
        self.heads.append(key)
        return super().head(key)

    def list(self, prefix: str = "", after: str | None = None) -> list[ObjectInfo]:
        self.listed.append(after)
        return super().list(prefix, after)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(str(tmp_path))


def key(begin: int, partition: int = 0) -> str:
    return segment_key(TOPIC, EPOCH, partition, begin)


def found(store: Store, hint: tuple[int, str] | None, start: int = 0) -> Frontier:
    return frontier(store, TOPIC, EPOCH, 0, hint, start)


def chain(store: Store, *edges: int, partition: int = 0) -> None:
    for begin, end in pairwise(edges):
        stored(store, begin, end, partition)


def test_segments_are_listed_by_partition_and_offset(store: Counting) -> None:
    chain(store, 0, 5, 10, partition=2)
    chain(store, 0, 7, partition=10)
    assert segments(store, TOPIC, EPOCH) == [key(0, 2), key(5, 2), key(0, 10)]
    assert segments(store, TOPIC, EPOCH, 2) == [key(0, 2), key(5, 2)]
    assert segments(store, TOPIC, EPOCH, 2, after=key(0, 2)) == [key(5, 2)]
    assert segments(store, TOPIC, EPOCH, 1) == []
    assert segments(store, TOPIC, "another", 2) == []


def test_a_chain_without_segments_begins_at_the_start(store: Counting) -> None:
    assert found(store, None, 17) == Frontier(17, None)
    assert found(store, (17, ""), 17) == Frontier(17, None)


def test_a_usual_restart_asks_for_one_segment_and_what_follows_it(store: Counting) -> None:
    chain(store, 0, 5, 10, 20)
    assert found(store, (20, "10")) == Frontier(20, 10)
    assert store.heads == [key(10)]
    assert store.listed == [key(10)]


def test_segments_behind_the_commit_are_followed(store: Counting) -> None:
    chain(store, 0, 5, 10, 20, 33)
    assert found(store, (10, "5")) == Frontier(33, 20)
    assert sorted(store.heads) == [key(5), key(10), key(20)]


def test_a_lost_commit_costs_a_listing(store: Counting) -> None:
    chain(store, 0, 5, 10)
    assert found(store, None) == Frontier(10, 5)
    assert store.listed == [None]


def test_a_commit_without_metadata_costs_a_listing_and_one_segment(store: Counting) -> None:
    chain(store, 0, 5, 10, 20, 30)
    assert found(store, (20, "")) == Frontier(30, 20)
    assert store.heads == [key(10), key(20)]
    assert store.listed == [None]


def test_a_chain_may_begin_before_the_start_but_not_behind_it(store: Counting) -> None:
    chain(store, 3, 5)
    assert found(store, None, 4) == Frontier(5, 3)
    with pytest.raises(ArtifactError, match=r"\[0, 3\).*restore"):
        found(store, None, 0)


@pytest.mark.parametrize(
    "hint",
    [
        (25, "20"),  # Beyond what is stored.
        (11, "5"),  # The segment is there and ends elsewhere.
        (7, "7"),  # Within a segment.
        (0, "-1"),
        (3, "٣"),
        (3, "x" * 50),
        (3, "9" * 30),
        (3, ""),
    ],
)
def test_a_hint_that_does_not_fit_is_told_and_the_store_decides(
    store: Counting, hint: tuple[int, str]
) -> None:
    chain(store, 0, 5, 10)
    assert found(store, hint) == Frontier(10, 5, hint_was_wrong=True)


def test_a_commit_of_nothing_stored_is_wrong(store: Counting) -> None:
    assert found(store, (50, "40"), 3) == Frontier(3, None, hint_was_wrong=True)


def test_a_right_offset_without_metadata_is_not_wrong(store: Counting) -> None:
    chain(store, 0, 5, 10)
    assert found(store, (10, "")) == Frontier(10, 5)


def test_other_partitions_are_not_looked_at(store: Counting) -> None:
    chain(store, 0, 5)
    chain(store, 0, 9, partition=1)
    chain(store, 0, 11, partition=10)
    assert found(store, (5, "0")) == Frontier(5, 0)


@pytest.mark.parametrize("hint", [None, (5, "0")])
def test_a_gap_is_an_error_with_a_remedy(store: Counting, hint: tuple[int, str] | None) -> None:
    chain(store, 0, 5)
    chain(store, 8, 9)
    with pytest.raises(ArtifactError, match=rf"{key(8)}.*\[5, 8\).*restore"):
        found(store, hint)


@pytest.mark.parametrize("hint", [None, (5, "0")])
def test_an_overlap_is_an_error_with_a_remedy(
    store: Counting, hint: tuple[int, str] | None
) -> None:
    chain(store, 0, 5)
    chain(store, 4, 9)
    with pytest.raises(ArtifactError, match=rf"{key(4)}.*below 5.*move"):
        found(store, hint)


def test_a_damaged_segment_is_an_error_with_a_remedy(store: Counting) -> None:
    chain(store, 0, 5)
    store.put(key(5), b"x")
    for hint in (None, (5, "0"), (9, "5")):
        with pytest.raises(ArtifactError, match=rf"{key(5)}.*restore"):
            found(store, hint)


def test_a_foreign_object_in_the_chain_is_an_error_with_a_remedy(store: Counting) -> None:
    chain(store, 0, 5)
    store.put(f"{partition_folder(TOPIC, EPOCH, 0)}/notes.txt", b"")
    with pytest.raises(ArtifactError, match=r"notes\.txt.*move"):
        found(store, None)


def test_a_copy_of_another_segment_is_an_error(store: Counting) -> None:
    chain(store, 0, 5)
    data, _ = segment(0, 5, partition=1)
    store.put(key(5), data)
    with pytest.raises(ArtifactError, match=rf"{key(5)}.*{key(0, 1)}"):
        found(store, (5, "0"))


@pytest.mark.parametrize("missed", [(5,), (5, 10), (0,), (0, 5, 20)])
@pytest.mark.parametrize("hint", [None, (5, "0"), (10, "")])
def test_what_a_listing_missed_is_no_gap(
    store: Counting, missed: tuple[int, ...], hint: tuple[int, str] | None
) -> None:
    chain(store, 0, 5, 10, 20, 33, 40)
    racing = Racing(store.root, *missed)
    assert len(segments(racing, TOPIC, EPOCH, 0)) == 5 - len(missed)
    end = found(racing, hint)
    assert (end.offset, end.last_begin) == (40, 33)


def test_a_gap_behind_what_a_listing_missed_is_found(store: Counting) -> None:
    chain(store, 0, 5, 10)
    chain(store, 12, 14)
    with pytest.raises(ArtifactError, match=r"\[10, 12\)"):
        found(Racing(store.root, 5), None)
