"""Dead letters from a real topic to their own topic, and back."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flts_ray.errors import Unavailable
from flts_ray.ingest.letter_topic import KafkaLetterTopic, read_headers, read_range
from flts_ray.ingest.letters import Letter, Which
from flts_ray.jobs.dlq import chosen, forward, list_letters, purge
from flts_ray.jobs.ingest_worker import open_worker
from flts_ray.jobs.replay_letters import CLAIM_S, REPLAY_OF, Replayed, replay
from flts_ray.local.broker import Broker, NoidaBroker
from flts_ray.store import FolderStore, Store
from flts_ray.streams import connect
from flts_ray.streams.kafka_python_topics import KafkaPythonProducer
from flts_ray.streams.records import Producer
from tests.ingesting import Ingesting

pytestmark = pytest.mark.integration

HEADERS = [("trace", b"\x00\xff"), ("trace", b"again")]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with NoidaBroker(tmp_path_factory.mktemp("noida")) as running:
        yield running


@pytest.fixture
def ingesting(broker: Broker, tmp_path: Path) -> Ingesting:
    """A topic of which messages 0 to 199 are ingested: 0, 50, 100 and 150 are dead letters."""
    made = Ingesting(tmp_path, broker.brokers, f"load-{uuid.uuid4().hex[:8]}")
    made.create()
    made.produce(0, 200)
    ingest(made)
    return made


def ingest(made: Ingesting) -> None:
    worker = open_worker(made.config, made.brokers, 0, 1)
    with closing(worker):
        worker.run(threading.Event(), until_end=True)


def dead_letters(made: Ingesting) -> list[Letter]:
    """What the dead-letter topic holds, repetitions included."""
    topic = KafkaLetterTopic(made.config.stream, made.brokers)
    found = [letter for p in range(2) for _, letter in topic.messages(p)]
    assert None not in found
    return [letter for letter in found if letter is not None]


def send(made: Ingesting, value: bytes, key: bytes | None = None) -> None:
    with closing(connect.producer(made.config.stream, made.brokers)) as producer:
        producer.send(made.topic, value, key=key, partition=1, headers=HEADERS)
        producer.flush(10)


def test_letters_arrive_in_their_topic_once_whoever_forwards_them(ingesting: Ingesting) -> None:
    send(ingesting, b"\xff\x00", key=b"k")
    ingest(ingesting)
    config = ingesting.config
    listed = list(list_letters(config))
    assert [letter.id for letter in listed] == ["0/0", "0/25", "0/50", "0/75", "1/100"]
    last = listed[-1]
    assert (last.raw, last.key, last.headers) == (b"\xff\x00", b"k", tuple(HEADERS))
    assert forward(config, ingesting.brokers) == 5
    assert forward(config, ingesting.brokers) == 0
    ingesting.produce(200, 260)
    ingest(ingesting)
    assert forward(config, ingesting.brokers) == 2
    assert dead_letters(ingesting) == list(list_letters(config))


def test_letters_that_a_broker_took_before_a_crash_are_not_sent_again(
    ingesting: Ingesting,
) -> None:
    config = ingesting.config
    topic = KafkaLetterTopic(config.stream, ingesting.brokers)
    letters = [letter for letter in list_letters(config) if letter.partition == 0]
    with closing(topic):
        topic.send([letters[0], letters[2]], complete=0)
    assert forward(config, ingesting.brokers) == 2
    assert sorted(dead_letters(ingesting), key=lambda one: one.offset) == letters


def test_two_forwarders_may_repeat_and_readers_do_not_see_it(ingesting: Ingesting) -> None:
    config = ingesting.config
    assert forward(config, ingesting.brokers) == 4
    letters = list(list_letters(config))
    with closing(KafkaLetterTopic(config.stream, ingesting.brokers)) as topic:
        topic.send(letters[1:3], complete=0)
        assert len(dead_letters(ingesting)) == 6
        assert list(topic.letters(0)) == letters


def test_a_letter_too_large_for_its_topic_goes_without_its_bytes(ingesting: Ingesting) -> None:
    size = 2**20 - 300
    send(ingesting, b"{" * size)
    send(ingesting, b"behind it")
    ingest(ingesting)
    config = ingesting.config
    assert forward(config, ingesting.brokers) == 6
    found = {letter.id: letter for letter in dead_letters(ingesting)}
    assert found["1/100"].raw is None and found["1/101"].raw == b"behind it"
    stream = config.stream.model_copy(update={"topic": f"DLQ-{ingesting.topic}"})
    with closing(connect.consumer(stream, ingesting.brokers, group="g")) as reader:
        said = [read_headers(m.headers) for m in read_range(reader, 1, 0, 2)]
    assert [one.get("cut") for one in said] == [str(size), None]
    stored = next(chosen(config, Which(ids=("1/100",))))
    assert stored.raw is not None and len(stored.raw) == size


def test_a_letter_with_a_large_key_keeps_no_other(ingesting: Ingesting) -> None:
    send(ingesting, b"first")
    send(ingesting, b"{", key=b"k" * (2**20 - 300))
    send(ingesting, b"behind it")
    ingest(ingesting)
    config, brokers = ingesting.config, ingesting.brokers
    assert forward(config, brokers) == 7
    found = {letter.id: letter for letter in dead_letters(ingesting)}
    assert found["1/100"].raw == b"first" and found["1/102"].raw == b"behind it"
    assert (found["1/101"].raw, found["1/101"].key) == (None, None)
    assert forward(config, brokers) == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_letter_that_the_topic_does_not_take_again_is_named_and_keeps_no_other(
    ingesting: Ingesting, force: bool
) -> None:
    send(ingesting, b"first")
    send(ingesting, b"{" * (2**20 - 110))
    send(ingesting, b"behind it")
    ingest(ingesting)
    config, brokers = ingesting.config, ingesting.brokers
    done = replay(config, brokers, Which(partition=1), force=force)
    assert done == Replayed(sent=2, refused=("1/101",))
    assert sorted(value or b"" for _, value, _ in replayed(ingesting)) == [b"behind it", b"first"]
    again = replay(config, brokers, Which(partition=1, before_ms=1 << 62))
    assert again == Replayed(skipped=2, waiting=() if force else ("1/101",),
                             refused=("1/101",) if force else ())  # fmt: skip


def replayed(made: Ingesting) -> list[tuple[int, bytes | None, bytes | None]]:
    with closing(connect.consumer(made.config.stream, made.brokers, group="g")) as reader:
        return [
            (p, message.value, message.key)
            for p, (start, end) in reader.bounds([0, 1]).items()
            for message in read_range(reader, p, start, end)
            if any(name == REPLAY_OF for name, _ in message.headers)
        ]


def test_letters_are_replayed_once_as_they_came(ingesting: Ingesting) -> None:
    send(ingesting, b"\xff\x00", key=b"k")
    ingest(ingesting)
    config, brokers = ingesting.config, ingesting.brokers
    assert replay(config, brokers, Which(partition=1)) == Replayed(sent=1)
    assert replay(config, brokers, Which(partition=1)) == Replayed(skipped=1)
    assert replayed(ingesting) == [(1, b"\xff\x00", b"k")]
    assert replay(config, brokers, Which(ids=("1/100", "0/50"))) == Replayed(sent=1, skipped=1)
    assert replay(config, brokers, Which(ids=("1/100",)), force=True) == Replayed(sent=1)
    assert len(replayed(ingesting)) == 3
    ingest(ingesting)
    again = next(chosen(config, Which(ids=("1/101",))))
    assert (again.raw, again.key) == (b"\xff\x00", b"k")
    epoch = again.epoch.encode()
    assert again.headers == (*HEADERS, (REPLAY_OF, epoch + b"/1/100"))
    assert replay(config, brokers, Which(ids=("1/101",))) == Replayed(sent=1)
    ingest(ingesting)
    third = next(chosen(config, Which(ids=("1/103",))))
    assert third.headers == (*HEADERS, (REPLAY_OF, epoch + b"/1/101"))


def test_a_replay_that_crashed_after_sending_is_not_repeated(
    ingesting: Ingesting, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, brokers, which = ingesting.config, ingesting.brokers, Which(partition=0)

    def lost(self: Store, key: str, data: bytes) -> None:
        raise Unavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", lost)
        with pytest.raises(Unavailable):
            replay(config, brokers, which)
    assert len(replayed(ingesting)) == 4
    assert replay(config, brokers, which) == Replayed(skipped=4)
    assert len(replayed(ingesting)) == 4


def test_a_replay_that_crashed_before_sending_is_made_up_for(
    ingesting: Ingesting, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, brokers, which = ingesting.config, ingesting.brokers, Which(partition=0)

    def lost(self: Producer, *message: object, **more: object) -> None:
        raise Unavailable("the broker is away")

    with monkeypatch.context() as patch:
        patch.setattr(KafkaPythonProducer, "send", lost)
        with pytest.raises(Unavailable):
            replay(config, brokers, which)
    waiting = ("0/0", "0/25", "0/50", "0/75")
    assert replay(config, brokers, which) == Replayed(waiting=waiting)
    later = time.time() + CLAIM_S + 1
    assert replay(config, brokers, which, clock=lambda: later) == Replayed(sent=4)
    assert replay(config, brokers, which) == Replayed(skipped=4)
    assert len(replayed(ingesting)) == 4


def test_purging_frees_what_the_topic_begins_with(ingesting: Ingesting) -> None:
    config, brokers = ingesting.config, ingesting.brokers
    assert purge(config, Which(ids=("0/25",)), brokers).messages == 0
    assert forward(config, brokers) == 3
    done = purge(config, Which(ids=("0/0", "0/75")), brokers)
    assert (done.letters, done.messages) == (2, 1)
    assert [letter.id for letter in dead_letters(ingesting)] == ["0/50", "0/75"]
    assert purge(config, Which(), brokers).messages == 2
    assert dead_letters(ingesting) == [] and list(list_letters(config)) == []
    assert forward(config, brokers) == 0
    assert replay(config, brokers, Which()) == Replayed()
