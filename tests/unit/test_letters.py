from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flts_ray.errors import DataError
from flts_ray.ingest.decode_table import message_digest
from flts_ray.ingest.letters import Letter, Purge, Which, counts, letters, parse_id, purge
from flts_ray.store import Store
from tests.segments import EPOCH, TOPIC, stored

ALL = Which()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Offsets 0 to 29 of partition 0 and 0 to 9 of partition 10; every fifth message is bad."""
    store = Store.open(str(tmp_path))
    for begin in (0, 10, 20):
        stored(store, begin, begin + 10)
    stored(store, 0, 10, partition=10)
    return store


def ids(store: Store, which: Which = ALL) -> list[str]:
    return [letter.id for letter in letters(store, TOPIC, EPOCH, which)]


def test_letters_are_the_error_rows_with_all_that_came(store: Store) -> None:
    assert ids(store) == ["0/0", "0/5", "0/10", "0/15", "0/20", "0/25", "10/0", "10/5"]
    letter = next(letters(store, TOPIC, EPOCH, Which(ids=("0/15",))))
    assert letter == Letter(
        TOPIC, EPOCH, 0, 15, "not_json", "byte 1", b"{\xff", b"k", 1_700_000_000_015,
        (("trace", b"\x00"), ("trace", b"")),
    )  # fmt: skip


def test_letters_are_chosen(store: Store) -> None:
    first = 1_700_000_000_000
    assert ids(store, Which(code="too_large")) == []
    assert ids(store, Which(partition=10)) == ["10/0", "10/5"]
    assert ids(store, Which(partition=0, since_ms=first + 20)) == ["0/20", "0/25"]
    assert ids(store, Which(before_ms=first + 5)) == ["0/0", "10/0"]
    assert ids(store, Which(ids=("10/5", "0/20", "0/21", "3/0", "0/99"))) == ["0/20", "10/5"]


def test_counts_read_no_segment_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store), "get", lambda self, key: pytest.fail("a segment was read"))
    assert counts(store, TOPIC, EPOCH) == {0: 6, 10: 2}


def test_purged_letters_are_hidden_and_later_ones_are_not(store: Store) -> None:
    purge(store, TOPIC, EPOCH, Which(partition=0, before_ms=1_800_000_000_000), "now")
    assert ids(store) == ["10/0", "10/5"]
    stored(store, 30, 40)
    assert ids(store) == ["0/30", "0/35", "10/0", "10/5"]
    purge(store, TOPIC, EPOCH, Which(ids=("0/35", "10/0")), "now")
    assert ids(store) == ["0/30", "10/5"]
    kept = letters(store, TOPIC, EPOCH, Which(partition=0), purged=True)
    assert [letter.offset for letter in kept] == [0, 5, 10, 15, 20, 25, 30, 35]


def test_two_who_purge_at_once_both_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = type(store).list
    purge(store, TOPIC, EPOCH, Which(ids=("0/0",)), "now")

    def stale(self: Store, prefix: str = "", after: str | None = None) -> object:
        return [] if prefix.endswith("purged") else listed(self, prefix, after)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "list", stale)
        purge(store, TOPIC, EPOCH, Which(ids=("0/5",)), "now")
    assert ids(store, Which(partition=0)) == ["0/10", "0/15", "0/20", "0/25"]


def test_a_purge_survives_json() -> None:
    entry = Purge(Which("not_json", 3, 1, 2, ("3/1",)), {3: 10}, "2024-01-01T00:00:00+00:00")
    assert Purge.from_json(entry.to_json()) == entry


@pytest.mark.parametrize("text", ["", "7", "a/1", "1/", "/1", "-1/2", "1/-2", "1/2/3", "²/1"])
def test_names_of_letters_are_checked(text: str) -> None:
    with pytest.raises(DataError, match="partition/offset"):
        parse_id(text)


def test_a_letter_of_which_only_the_start_was_kept_is_not_whole() -> None:
    letter = Letter("load", "e", 0, 7, "too_large", message_digest(b"x" * 100), b"x")
    assert not letter.whole
    assert replace(letter, code="not_json").whole
    assert replace(letter, detail="2000 bytes, at most 1000 are allowed").whole
