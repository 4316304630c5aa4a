from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flts_ray.errors import Unavailable
from flts_ray.ingest.dead_letters import BackgroundForwarder, Forwarder, chunks
from flts_ray.ingest.letter_topic import Tail, message_headers, read_headers, tail_of
from flts_ray.ingest.letters import Letter, Which, purge
from flts_ray.store import Store
from flts_ray.streams.access import NotTaken
from tests.running import until
from tests.segments import EPOCH, TOPIC, stored

BAD = list(range(0, 100, 5))


@dataclass
class Log:
    """A dead-letter topic in memory. `accept`: which letters of the next batches it takes;
    `cut`: offsets of letters that it never takes whole."""

    letters: list[tuple[Letter, dict[str, str]]] = field(default_factory=list)
    accept: list[Callable[[Letter], bool]] = field(default_factory=list)
    cut: frozenset[int] = frozenset()
    sizes: list[int] = field(default_factory=list)
    opened: int = 0
    away: bool = False
    sending: threading.Event = field(default_factory=threading.Event)

    def open(self) -> Log:
        if self.away:
            raise Unavailable("nobody answers")
        self.opened += 1
        return self

    def tail(self, partition: int, epoch: str, count: int, end: int) -> Tail | None:
        mine = [said for letter, said in self.letters if letter.partition == partition]
        return tail_of(mine[-count:], partition, epoch, end)

    def send(self, letters: Sequence[Letter], complete: int) -> None:
        self.sending.set()
        self.sizes.append(len(letters))
        if len(letters) > 1 and self.cut & {letter.offset for letter in letters}:
            self.accept, self.sizes[-1] = [lambda letter: letter.offset not in self.cut], 0
        takes = self.accept.pop(0) if self.accept else None
        for letter in letters:
            if takes is None or takes(letter):
                self.letters.append((letter, read_headers(message_headers(letter, complete))))
        if takes is not None:
            raise Unavailable("no acknowledgement") if self.sizes[-1] else NotTaken("too large")

    def close(self) -> None:
        return

    def offsets(self, partition: int = 0) -> list[int]:
        return [letter.offset for letter, _ in self.letters if letter.partition == partition]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path))
    for begin in range(0, 100, 20):
        stored(store, begin, begin + 20)
    return store


def forwarder(store: Store, log: Log, chunk: int = 3) -> Forwarder:
    return Forwarder(store, TOPIC, EPOCH, log.open, clock=lambda: 0.0, chunk=chunk)


def test_letters_go_in_order_once_and_only_of_segments_below_the_limit(store: Store) -> None:
    log = Log()
    one = forwarder(store, log)
    assert one.forward(0, 40)
    assert log.offsets() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert one.forward(0, 40) and one.forward(0, 100) and one.forward(0, 100)
    assert log.offsets() == BAD
    assert one.forwarded == len(BAD)


def test_partitions_do_not_disturb_each_other(store: Store) -> None:
    stored(store, 0, 20, partition=3)
    log = Log()
    one = forwarder(store, log)
    assert one.forward(3, 20) and one.forward(0, 60)
    two = forwarder(store, log)
    assert two.forward(0, 100) and two.forward(3, 20)
    assert log.offsets(3) == [0, 5, 10, 15]
    assert log.offsets(0) == BAD


def test_without_letters_no_topic_is_opened(tmp_path: Path, store: Store) -> None:
    log = Log()
    assert forwarder(store, log).forward(1, 100)
    assert log.opened == 0


def test_a_new_forwarder_goes_on_where_the_topic_ends(store: Store) -> None:
    log = Log()
    for upto in range(0, 101, 20):
        assert forwarder(store, log).forward(0, upto)
    assert log.offsets() == BAD


@pytest.mark.parametrize("seed", range(20))
def test_no_letter_is_lost_or_sent_twice_whatever_a_failing_broker_took(
    store: Store, seed: int
) -> None:
    dice = random.Random(seed)
    log = Log()
    one = forwarder(store, log, chunk=dice.choice([1, 3, 4, 100]))
    for _ in range(30):
        if dice.random() < 0.7:
            share = dice.random()
            log.accept = [lambda letter, share=share: dice.random() < share]  # type: ignore[misc]
        try:
            one.forward(0, dice.choice([40, 60, 100]))
        except Unavailable:
            if dice.random() < 0.5:
                one = forwarder(store, log, chunk=one._chunk)
    log.accept = []
    assert one.forward(0, 100)
    assert sorted(log.offsets()) == BAD


def test_letters_of_another_life_of_the_topic_say_nothing(store: Store) -> None:
    log = Log()
    old = Letter(TOPIC, "f" * 16, 0, 90, "not_json", "", b"")
    log.send([old], 90)
    assert forwarder(store, log).forward(0, 100)
    assert log.offsets() == [90, *BAD]


def test_a_topic_that_forgot_its_messages_gets_old_letters_only_until_the_note(
    store: Store,
) -> None:
    log = Log()
    one = forwarder(store, log)
    one.forward(0, 60)
    one.forward(0, 100)  # notes that all below 60 was sent before
    log.letters.clear()
    forwarder(store, log).forward(0, 100)
    assert log.offsets() == [offset for offset in BAD if offset >= 60]


def test_purged_letters_are_not_forwarded(store: Store) -> None:
    purge(store, TOPIC, EPOCH, Which(ids=("0/5", "0/80")), "now")
    log = Log()
    forwarder(store, log).forward(0, 100)
    assert log.offsets() == [offset for offset in BAD if offset not in (5, 80)]


def test_one_call_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flts_ray.ingest.dead_letters.SEGMENTS_A_CALL", 2)
    log = Log()
    one = forwarder(store, log)
    assert [one.forward(0, 100) for _ in range(3)] == [False, False, True]
    assert log.offsets() == BAD


def test_large_letters_travel_alone() -> None:
    def letter(offset: int, size: int) -> Letter:
        return Letter(TOPIC, EPOCH, 0, offset, "too_large", "", b"x" * size)

    sizes = [10, 10, 10, 600_000, 10, 400_000, 200_000]
    found = chunks((letter(i, size) for i, size in enumerate(sizes)), 2)
    assert [[one.offset for one in part] for part in found] == [[0, 1], [2], [3], [4, 5], [6]]


def test_in_the_background_nothing_waits_and_nothing_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.ingest.dead_letters._FIRST_WAIT_S", 0.01)
    log = Log(away=True)
    background = BackgroundForwarder(forwarder(store, log))
    background.forward(0, 40)
    until(lambda: background.failures > 1, 10, "failures are counted")
    assert background.waiting == 1
    log.away = False
    background.forward(0, 100)
    until(lambda: background.waiting == 0, 10, "the letters are sent")
    assert background.close()
    assert log.offsets() == BAD and background.forwarded == len(BAD)


def test_closing_finishes_what_was_asked_for(store: Store) -> None:
    log = Log()
    background = BackgroundForwarder(forwarder(store, log, chunk=1))
    background.forward(0, 100)
    assert background.close()
    assert log.offsets() == BAD


def test_closing_does_not_wait_for_a_broker_that_is_away(store: Store) -> None:
    background = BackgroundForwarder(forwarder(store, Log(away=True)))
    background.forward(0, 100)
    until(lambda: background.failures > 0, 10, "a failure")
    assert not background.close(5.0)
    assert background.waiting == 1


def test_a_damaged_partition_does_not_keep_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.ingest.dead_letters._FIRST_WAIT_S", 0.01)
    damaged = stored(store, 0, 20, partition=1)
    store.put(damaged.key, b"no Parquet")
    log = Log()
    background = BackgroundForwarder(forwarder(store, log))
    background.forward(1, 20)
    until(lambda: background.failures > 0, 10, "a failure")
    background.forward(0, 100)
    until(lambda: log.offsets() == BAD, 10, "the other partition")
    assert not background.close() and background.waiting == 1


@pytest.mark.parametrize("cut", [{10}, {0, 95}, {40, 45, 50}, set(BAD)])
def test_letters_that_are_never_taken_whole_keep_no_others(store: Store, cut: set[int]) -> None:
    log = Log(cut=frozenset(cut))
    one = forwarder(store, log, chunk=4)
    assert one.forward(0, 100)
    assert sorted(log.offsets()) == BAD
    assert log.sizes.count(1) >= len(cut)


def test_only_the_letters_of_a_refused_batch_go_one_by_one(store: Store) -> None:
    log = Log(cut=frozenset({5}))
    assert forwarder(store, log, chunk=4).forward(0, 100)
    assert log.sizes == [0, 1, 4, 4, 4, 4]


def test_forged_messages_keep_no_later_letter_out(store: Store) -> None:
    log = Log()
    for offset, complete in ((5, 999_999_999), (999_999_999, 999_999_999), (100, 90)):
        forged = Letter(TOPIC, EPOCH, 0, offset, "not_json", "", b"")
        log.letters.append((forged, read_headers(message_headers(forged, complete))))
    assert forwarder(store, log).forward(0, 100)
    assert log.offsets()[3:] == BAD


def test_whatever_goes_wrong_the_background_tries_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.ingest.dead_letters._FIRST_WAIT_S", 0.01)
    log, opened = Log(), Log.open

    def broken(self: Log) -> Log:
        if background.failures < 2:
            raise ZeroDivisionError
        return opened(self)

    monkeypatch.setattr(Log, "open", broken)
    background = BackgroundForwarder(forwarder(store, log))
    background.forward(0, 100)
    until(lambda: log.offsets() == BAD, 10, "the letters are sent")
    assert background.close() and background.failures == 2


def test_letters_up_to_an_offset_travel_alone() -> None:
    letters = [Letter(TOPIC, EPOCH, 0, offset, "c", "", b"") for offset in range(7)]
    found = chunks(iter(letters), 3, alone=2)
    assert [[one.offset for one in part] for part in found] == [[0], [1], [2], [3, 4, 5], [6]]
