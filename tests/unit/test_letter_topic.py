from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flts_ray.ingest.letter_topic import (
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
    assert read_headers(message_headers(letter, 0, cut=True))["cut"] == "1000"
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
    assert tail_of(messages, 0, "e") == Tail(12, frozenset({20, 14}))
    assert tail_of(messages, 1, "e") == Tail(40, frozenset({50}))
    assert tail_of(messages, 2, "e") is None
