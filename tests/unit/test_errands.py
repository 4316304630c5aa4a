"""Questions to the store, asked on a thread of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flts_ray.errors import FltsError, Unavailable
from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.errands import Answer, Errands, Followed, Place, Stored
from flts_ray.ingest.faults import NO_FAULTS
from flts_ray.ingest.segment import Batch
from flts_ray.ingest.sink_actions import Put, Recover
from flts_ray.ingest.sink_events import Broken, PutCreated, PutExists, PutFailed
from flts_ray.store import Created, Exists, FolderStore, NotFound
from flts_ray.streams.records import Records
from tests.memory_broker import sample

PLACE = Place("load", "e" * 16, "me")


def batch(begin: int, end: int) -> Batch:
    count = end - begin
    values = [sample(number) for number in range(begin, end)]
    records = Records(0, range(begin, end), values, [0] * count, (), [None] * count, 60 * count)
    return Decoder({}, max_message_bytes=1000).decode(records)


def put(begin: int, end: int, token: int = 1) -> Put:
    return Put(0, token, begin, end, (batch(begin, end),), 0)


class Recording(FolderStore):
    """Remembers what is sent; fails as often as it is told to."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.sent: list[bytes] = []
        self.failures = 0
        self.bug = False

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        self.sent.append(data)
        self.failures -= 1
        if self.failures >= 0:
            raise Unavailable("503")
        if self.bug:
            raise ZeroDivisionError
        return super().put_new(key, data, metadata)


@pytest.fixture
def store(tmp_path: Path) -> Recording:
    return Recording(str(tmp_path))


@pytest.fixture
def errands(store: Recording) -> Iterator[Errands]:
    errands = Errands(store, PLACE, NO_FAULTS)
    yield errands
    errands.close()


def answers(errands: Errands, count: int) -> list[Answer]:
    found: list[Answer] = []
    limit = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < limit, "no answer"
        found += errands.answers()
    return found


def test_a_new_segment_is_created(errands: Errands) -> None:
    errands.put(put(0, 5))
    (stored,) = answers(errands, 1)
    assert isinstance(stored, Stored) and isinstance(stored.event, PutCreated)
    assert (stored.info.begin, stored.info.end, stored.info.rows) == (0, 5, 5)
    assert not errands.busy


def test_a_key_that_is_taken_tells_by_whom_and_how_far(store: Recording, errands: Errands) -> None:
    other = Errands(store, Place("load", "e" * 16, "other"), NO_FAULTS)
    other.put(put(0, 5))
    answers(other, 1)
    other.close()
    errands.put(put(0, 8))
    (stored,) = answers(errands, 1)
    assert isinstance(stored, Stored) and isinstance(stored.event, PutExists)
    event = stored.event
    assert (event.end, event.writer) == (5, "other") and event.checksum != event.sent


def test_a_repetition_sends_the_same_bytes(store: Recording, errands: Errands) -> None:
    store.failures = 2
    for _ in range(3):
        errands.put(put(0, 5))
    kinds = [type(answer) for answer in answers(errands, 3)]
    assert kinds == [PutFailed, PutFailed, Stored]
    assert store.sent[0] is store.sent[1] is store.sent[2]


def test_a_forgotten_partition_sends_what_it_is_given_anew(
    store: Recording, errands: Errands
) -> None:
    store.failures = 1
    errands.put(put(0, 5))
    errands.forget(0)
    errands.put(put(0, 7))
    assert [type(answer) for answer in answers(errands, 2)] == [PutFailed, Stored]
    assert len(store.sent[1]) != len(store.sent[0])


def test_the_chain_is_followed_from_0_and_from_a_hint(errands: Errands) -> None:
    errands.recover(Recover(0, 1, None), None)
    errands.put(put(0, 5))
    errands.put(put(5, 9, token=2))
    errands.recover(Recover(0, 3, None), (5, "0"))
    empty, _, _, full = answers(errands, 4)
    assert isinstance(empty, Followed) and isinstance(full, Followed)
    assert (empty.found.offset, empty.found.last_begin) == (0, None)
    assert (full.found.offset, full.found.last_begin, full.committed) == (9, 5, 5)


def test_rows_that_are_not_of_the_range_are_never_stored(errands: Errands) -> None:
    errands.put(Put(0, 1, 0, 3, (batch(0, 5),), 0))
    (answer,) = answers(errands, 1)
    assert isinstance(answer, Broken)


def test_an_unforeseen_error_comes_out(store: Recording, errands: Errands) -> None:
    store.bug = True
    errands.put(put(0, 5))
    with pytest.raises(ZeroDivisionError):
        answers(errands, 1)


@pytest.mark.parametrize("error", [Unavailable("503"), NotFound("no such bucket")])
def test_a_small_object_that_cannot_be_stored_is_told_and_stops_nothing(
    store: Recording, errands: Errands, monkeypatch: pytest.MonkeyPatch, error: FltsError
) -> None:
    def fail(key: str, data: bytes) -> None:
        raise error

    monkeypatch.setattr(store, "put", fail)
    told: list[FltsError] = []
    errands.overwrite("status.json", b"{}", told.append)
    errands.put(put(0, 5))
    assert isinstance(answers(errands, 1)[0], Stored)
    assert told == [error]
