from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config_stream import StreamConfig
from flts_ray.errors import Unavailable
from flts_ray.ingest.letter_topic import (
    LARGE_BYTES,
    KafkaLetterTopic,
    Message,
    Tail,
    dead_letter_topic,
    letter_of,
    message_headers,
    message_key,
    read_headers,
    tail_of,
)
from flts_ray.ingest.letters import Letter
from flts_ray.streams import connect
from flts_ray.streams.access import NotTaken
from flts_ray.streams.records import Headers

headers = st.lists(
    st.tuples(st.sampled_from(["a", "flts.code", "flts.key", "flts.offset"]), st.binary()),
    max_size=4,
).map(tuple)
letters = st.builds(
    Letter,
    topic=st.just("load"), epoch=st.just("e"), partition=st.integers(0, 9),
    offset=st.integers(0, 2**62), code=st.sampled_from(["not_json", "too_large"]),
    detail=st.text(), raw=st.none() | st.binary(), key=st.none() | st.binary(),
    timestamp_ms=st.integers(-1, 2**50), headers=headers,
)  # fmt: skip


@given(letters)
def test_a_letter_comes_back_from_its_message(letter: Letter) -> None:
    written = message_headers(letter, complete=0)
    assert letter_of(Message(7, letter.raw, message_key(letter), written)) == letter


def test_the_message_says_what_and_where() -> None:
    letter = Letter("load", "e", 2, 41, "not_json", "byte 1", b"{", b"k", 5, (("trace", b"t"),))
    said = dict(message_headers(letter, complete=40))
    assert dead_letter_topic("load") == "DLQ-load"
    assert message_key(letter) == b"load/2/41"
    for name, value in {
        "code": b"not_json", "detail": b"byte 1", "topic": b"load", "partition": b"2",
        "offset": b"41", "timestamp_ms": b"5", "epoch": b"e", "complete": b"40",
    }.items():  # fmt: skip
        assert said[f"flts.{name}"] == value
    assert said["trace"] == b"t"


def test_a_cut_letter_says_its_size() -> None:
    letter = Letter("load", "e", 0, 1, "too_large", "", b"x" * 1000)
    said = read_headers(message_headers(letter, 0, cut=True))
    assert (said["cut"], said["cut-key"], said["cut-headers"]) == ("1000", "0", "0")
    assert "cut" not in read_headers(message_headers(letter, 0))


def test_messages_of_others_are_no_letters() -> None:
    assert letter_of(Message(0, b"{}", None, ())) is None
    assert letter_of(Message(0, b"{}", None, (("flts.partition", b"one"),))) is None


def test_the_tail_is_of_one_partition_and_one_life() -> None:
    def said(partition: int, epoch: str, offset: int, complete: int) -> dict[str, str]:
        letter = Letter("load", epoch, partition, offset, "c", "", b"")
        return read_headers(message_headers(letter, complete))

    messages = [
        said(0, "e", 5, 5), said(0, "e", 9, 5), said(0, "old", 99, 99), said(1, "e", 50, 40),
        {"foreign": "message"}, {"epoch": "e", "partition": "0", "complete": "all"},
        said(0, "e", 20, 12), said(0, "e", 14, 12),
    ]  # fmt: skip
    assert tail_of(messages, 0, "e", 100) == Tail(12, frozenset({20, 14}))
    assert tail_of(messages, 1, "e", 100) == Tail(40, frozenset({50}))
    assert tail_of(messages, 2, "e", 100) is None


def test_a_cut_letter_carries_nothing_of_a_stranger_but_sizes() -> None:
    letter = Letter("load", "e", 0, 1, "c", "d" * 5000, b"v" * 10, b"k" * 20, 5, (("né", b"xyz"),))
    headers = message_headers(letter, 0, cut=True)
    said = read_headers(headers)
    assert (said["cut"], said["cut-key"], said["cut-headers"]) == ("10", "20", "6")
    assert sum(len(name) + len(value) for name, value in headers) < 1500
    read = letter_of(Message(0, None, message_key(letter), headers))
    assert read == Letter("load", "e", 0, 1, "c", "d" * 1000, None, None, 5, ())


class Broker:
    """Takes messages of at most `limit` bytes; `away`: answers nothing."""

    limit, away = 1000, False

    def __init__(self) -> None:
        self.taken: list[tuple[bytes | None, Headers]] = []
        self.refused = 0

    def send(
        self, topic: str, value: bytes | None, key: bytes | None, place: int, headers: Headers
    ) -> None:
        size = len(value or b"") + sum(len(name) + len(data or b"") for name, data in headers)
        if size > self.limit or self.away:
            self.refused += 1
        else:
            self.taken.append((value, headers))

    def flush(self, timeout_s: float) -> None:
        refused, self.refused = self.refused, 0
        if refused:
            raise Unavailable("no answer") if self.away else NotTaken("too large")

    def close(self) -> None:
        return


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    class Admin:
        def partitions(self, topic: str) -> int:
            return 1

        def create_topic(self, topic: str, partitions: int) -> bool:
            return True

        def close(self) -> None:
            return

    made = Broker()
    monkeypatch.setattr(connect, "admin", lambda *given: Admin())
    monkeypatch.setattr(connect, "producer", lambda *given: made)
    return made


@pytest.mark.parametrize(
    "large",
    [{"raw": b"x" * 2000}, {"key": b"k" * 2000}, {"headers": (("h", b"x" * 2000),)}],
    ids=["value", "key", "headers"],
)
def test_a_letter_that_is_not_taken_goes_as_our_headers_alone(
    broker: Broker, large: dict[str, Any]
) -> None:
    letter = Letter(**{"topic": "load", "epoch": "e", "partition": 0, "offset": 1, "code": "c",
                       "detail": "", "raw": b"", **large})  # fmt: skip
    small = Letter("load", "e", 0, 2, "c", "", b"{")
    topic = KafkaLetterTopic(StreamConfig(), "h:1")
    with pytest.raises(NotTaken):
        topic.send([letter, small], 1)
    broker.taken.clear()
    topic.send([letter], 1)
    (value, headers) = broker.taken[0]
    assert value is None and read_headers(headers)["offset"] == "1"
    broker.limit = 10
    with pytest.raises(NotTaken):
        topic.send([small], 2)


def test_a_broker_that_is_away_cuts_no_small_letter(broker: Broker) -> None:
    broker.away = True
    topic = KafkaLetterTopic(StreamConfig(), "h:1")
    small = Letter("load", "e", 0, 1, "c", "", b"{", headers=(("h", b"x" * (LARGE_BYTES - 10)),))
    with pytest.raises(Unavailable, match="no answer"):
        topic.send([small], 1)


def test_headers_and_key_make_a_letter_large() -> None:
    letter = Letter("load", "e", 0, 1, "c", "", b"12", b"345", headers=(("né", b"67"), ("t", b"")))
    assert letter.nbytes == 2 + 3 + 3 + 2 + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"complete": "9" * 5000}, {"offset": "9" * 5000}, {"offset": "²"}, {"complete": "٣"},
        {"complete": "6"}, {"offset": "100", "complete": "0"}, {"complete": "-1"},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_message_of_ours_says_is_not_heard(wrong: dict[str, str]) -> None:
    said = {"epoch": "e", "partition": "0", "offset": "5", "complete": "5"}
    assert tail_of([said], 0, "e", 100) == Tail(5, frozenset({5}))
    assert tail_of([{**said, **wrong}], 0, "e", 100) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", "../../x"), ("offset", "-1"), ("partition", "9" * 5000), ("originals", "50")],
)
def test_forged_letters_are_none(name: str, value: str) -> None:
    headers = dict(message_headers(Letter("load", "e", 0, 1, "c", "", b""), 0))
    assert letter_of(Message(0, b"", None, list(headers.items()))) is not None
    headers[f"flts.{name}"] = value.encode()
    assert letter_of(Message(0, b"", None, list(headers.items()))) is None
