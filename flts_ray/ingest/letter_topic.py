"""The topic `DLQ-<topic>`: how a dead letter is written there, and what its end says.

Design choices: a message is the original one, its bytes untouched, with headers that say why it was
refused and where it came from; every message carries the offset below which all letters of its
partition had been acknowledged when it was sent, so the last messages tell exactly what is missing,
also after a crash within a batch; a letter that the broker does not take goes as our own headers
alone, and its bytes stay in its segment. Whoever may write to the topic can also write what looks
like ours: such a message counts only for letters that can be there, so a forged one may keep
letters out of the topic that were stored before it, never later ones, and none out of the store.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from flts_ray.config_stream import StreamConfig
from flts_ray.errors import Unavailable
from flts_ray.ingest.letters import Letter
from flts_ray.streams import connect
from flts_ray.streams.access import NotTaken
from flts_ray.streams.records import Consumer, Headers, Producer, Records

PREFIX = "flts."
LARGE_BYTES = 500_000
"""A letter of this size waits for its own acknowledgement."""
ANSWER_S = 10.0
_POLL_RECORDS = 5000
_DETAIL_CHARS = 1000
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_EPOCH = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Tail:
    """What the end of a dead-letter topic says of one source partition.

    All letters below offset `complete` are there, and those at `seen` as well.
    """

    complete: int = 0
    seen: frozenset[int] = frozenset()


class LetterTopic(Protocol):
    """Where letters go."""

    def tail(self, partition: int, epoch: str, count: int, end: int) -> Tail | None:
        """What the last `count` letters say of a source partition; None: nothing.

        `end`: letters from this offset on cannot be there.
        """

    def send(self, letters: Sequence[Letter], complete: int) -> None:
        """Send letters of one partition; returns when all are acknowledged.

        Raises NotTaken if the broker refuses one of several (some of them may be there), other
        Unavailable if it is away.
        """

    def close(self) -> None: ...


class Message(NamedTuple):
    """One message of a topic."""

    offset: int
    value: bytes | None
    key: bytes | None
    headers: Headers


class KafkaLetterTopic:
    """`DLQ-<topic>` of a broker, made if it is not there, with as many partitions as the source.

    Letters keep their partition number (modulo the number of partitions, where it has fewer).
    Raises Unavailable where the broker does not answer.
    """

    def __init__(self, stream: StreamConfig, brokers: str) -> None:
        self.name = dead_letter_topic(stream.topic)
        self._brokers = brokers
        self._stream = stream.model_copy(update={"topic": self.name})
        with closing(connect.admin(stream, brokers)) as admin:
            sources = max(1, admin.partitions(stream.topic))
            admin.create_topic(self.name, sources)
            self.partitions = admin.partitions(self.name) or sources
        self._sharing = -(-sources // self.partitions)
        self._producer: Producer | None = None

    def tail(self, partition: int, epoch: str, count: int, end: int) -> Tail | None:
        last = count * self._sharing
        messages = self._messages(partition % self.partitions, last)
        return tail_of((read_headers(m.headers) for m in messages), partition, epoch, end)

    def send(self, letters: Sequence[Letter], complete: int) -> None:
        try:
            for letter in letters:
                self._send(letter, letter.raw, message_headers(letter, complete))
            self._flush()
        except Unavailable as error:
            self.close()  # a client may go on refusing what it refused once
            hopeless = isinstance(error, NotTaken) or letters[0].nbytes >= LARGE_BYTES
            if len(letters) > 1 or not hopeless:
                raise
            # One letter that is not taken must not keep the others for ever.
            headers = message_headers(letters[0], complete, cut=True)
            self._send(letters[0], None, headers)
            self._flush()

    def messages(self, partition: int) -> Iterator[tuple[int, Letter | None]]:
        """All messages of one partition of this topic with their offsets; None: not a letter."""
        return ((message.offset, letter_of(message)) for message in self._messages(partition))

    def letters(self, partition: int) -> Iterator[Letter]:
        """Letters of one partition of this topic, each once."""
        found: set[tuple[str, str, str]] = set()
        for _, letter in self.messages(partition):
            if letter is None or (name := (letter.epoch, letter.topic, letter.id)) in found:
                continue
            found.add(name)
            yield letter

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _send(self, letter: Letter, value: bytes | None, headers: Headers) -> None:
        if self._producer is None:
            self._producer = connect.producer(self._stream, self._brokers)
        place = letter.partition % self.partitions
        self._producer.send(self.name, value, message_key(letter), place, headers)

    def _flush(self) -> None:
        if self._producer is not None:
            self._producer.flush(ANSWER_S)

    def _messages(self, partition: int, last: int | None = None) -> Iterator[Message]:
        group = f"{self._stream.group}-dlq"
        with closing(connect.consumer(self._stream, self._brokers, group=group)) as consumer:
            start, end = consumer.bounds([partition])[partition]
            begin = start if last is None else max(start, end - last)
            yield from read_range(consumer, partition, begin, end)


def dead_letter_topic(topic: str) -> str:
    """Name of the topic that gets the dead letters of another."""
    return f"DLQ-{topic}"


def message_key(letter: Letter) -> bytes:
    """Equal for the same letter sent twice."""
    return f"{letter.topic}/{letter.id}".encode()


def message_headers(letter: Letter, complete: int, cut: bool = False) -> list[tuple[str, bytes]]:
    """Ours first, then the original ones.

    `cut`: value, key and original headers are left out, and how many bytes each of them had is
    said in their place.
    """
    said = {
        "code": letter.code, "detail": letter.detail, "topic": letter.topic,
        "partition": letter.partition, "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms, "epoch": letter.epoch,
        "complete": complete,
    }  # fmt: skip
    if cut:
        value, key = len(letter.raw or b""), len(letter.key or b"")
        rest = {"cut": value, "cut-key": key, "cut-headers": letter.nbytes - value - key}
        said |= {"detail": letter.detail[:_DETAIL_CHARS], "originals": 0, **rest}
    ours = [(PREFIX + name, str(value).encode()) for name, value in said.items()]
    if cut:
        return ours
    if letter.key is not None:
        ours.append((PREFIX + "key", letter.key))
    ours.append((PREFIX + "originals", str(len(letter.headers)).encode()))
    return [*ours, *letter.headers]


def read_headers(headers: Headers) -> dict[str, str]:
    """What `message_headers` said, without its prefix; of a repeated name the first counts."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(PREFIX):
            text = (value or b"").decode(errors="replace")
            found.setdefault(name.removeprefix(PREFIX), text)
    return found


def letter_of(message: Message) -> Letter | None:
    """The letter in a message of a dead-letter topic; None if it is not one of ours."""
    said = read_headers(message.headers)
    counts = [said.get(name, "") for name in ("partition", "offset", "originals")]
    try:
        stamp = int(said["timestamp_ms"])
        topic, epoch, code = said["topic"], said["epoch"], said["code"]
    except (KeyError, ValueError):
        return None
    if not (all(map(_NUMBER.fullmatch, counts)) and _EPOCH.fullmatch(epoch)):
        return None
    partition, offset, originals = map(int, counts)
    if originals > len(message.headers):
        return None
    ours = len(message.headers) - originals
    keys = [value for name, value in message.headers[:ours] if name == PREFIX + "key"]
    return Letter(
        topic, epoch, partition, offset, code, said.get("detail", ""), message.value,
        keys[0] if keys else None, stamp, tuple(message.headers[ours:]),
    )  # fmt: skip


def tail_of(
    messages: Iterable[Mapping[str, str]], partition: int, epoch: str, end: int
) -> Tail | None:
    """What the headers of the last messages say of a source partition; None: nothing.

    A message that says what none of ours can say is not heard: an offset from `end` on, where
    nothing is stored yet, or letters complete beyond its own.
    """
    mine = []
    for said in messages:
        numbers = [said.get(name, "") for name in ("complete", "offset")]
        here = (said.get("epoch"), said.get("partition")) == (epoch, str(partition))
        if here and all(map(_NUMBER.fullmatch, numbers)):
            complete, offset = map(int, numbers)
            if complete <= offset < end:
                mine.append((complete, offset))
    if not mine:
        return None
    complete = max(complete for complete, _ in mine)
    return Tail(complete, frozenset(offset for _, offset in mine if offset >= complete))


def read_range(consumer: Consumer, partition: int, begin: int, end: int) -> Iterator[Message]:
    """Messages of the offsets [begin, end) of one partition that are still there.

    Raises Unavailable if nothing comes for ten seconds.
    """
    if begin >= end:
        return
    consumer.assign([partition])
    consumer.seek(partition, begin)
    limit = time.monotonic() + ANSWER_S
    while consumer.position(partition) < end:
        for records in consumer.poll(0.5, _POLL_RECORDS):
            limit = time.monotonic() + ANSWER_S
            for message in _messages(records):
                if message.offset < end:
                    yield message
        if time.monotonic() > limit:
            raise Unavailable(
                f"partition {partition}: the broker gave nothing for {ANSWER_S:g} s at offset "
                f"{consumer.position(partition)} of {end}; check it, then repeat"
            )


def _messages(records: Records) -> Iterator[Message]:
    headers = records.headers or ((),) * len(records.offsets)
    columns = (records.offsets, records.values, records.keys, headers)
    return (Message(*row) for row in zip(*columns, strict=True))
