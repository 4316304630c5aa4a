"""Every client keeps the same promises with every embedded broker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flts_ray.config import parse_config
from flts_ray.config_stream import StreamConfig
from flts_ray.errors import Conflict, Unavailable
from flts_ray.jobs.replay import replay
from flts_ray.local.broker import Broker, NoidaBroker
from flts_ray.local.process import free_port
from flts_ray.streams import connect
from flts_ray.streams.records import Consumer
from tests.brokers import (
    BROKERS,
    CLIENTS,
    BrokerKind,
    ClientKind,
    embedded_broker,
    new_topic,
    read,
    send,
)

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Place:
    """A broker, a client library, and a topic with two partitions."""

    kind: BrokerKind
    broker: Broker
    stream: StreamConfig

    @property
    def brokers(self) -> str:
        return self.broker.brokers

    def consumer(self, *partitions: int, group: str = "g", member: str = "") -> Consumer:
        reader = connect.consumer(self.stream, self.brokers, group=group, member=member)
        if partitions:
            reader.assign(partitions)
        return reader

    def send(self, *messages: tuple[int, bytes | None]) -> None:
        send(self.stream, self.brokers, messages)

    def other_client(self) -> StreamConfig:
        other: ClientKind = "confluent" if self.stream.client == "kafka-python" else "kafka-python"
        return self.stream.model_copy(update={"client": other})


@pytest.fixture(scope="module", params=BROKERS)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BrokerKind, Broker]]:
    with embedded_broker(request.param, tmp_path_factory.mktemp(request.param)) as broker:
        yield request.param, broker


@pytest.fixture(params=CLIENTS)
def place(request: pytest.FixtureRequest, running: tuple[BrokerKind, Broker]) -> Place:
    kind, broker = running
    return Place(kind, broker, new_topic(broker.brokers, request.param))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer within a second is away."""
    for module in ("kafka_python", "kafka_python_access", "kafka_python_topics"):
        monkeypatch.setattr(f"flts_ray.streams.{module}.ANSWER_MS", 1000)
    for module in ("confluent", "confluent_topics"):
        monkeypatch.setattr(f"flts_ray.streams.{module}.ANSWER_S", 1.0)


def test_messages_come_as_they_were_sent(place: Place) -> None:
    producer = connect.producer(place.stream, place.brokers)
    topic = place.stream.topic
    producer.send(topic, b"one", key=b"k", partition=1, headers=[("deadline_ms", b"5")])
    producer.send(topic, None, key=b"k", partition=1, timestamp_ms=1_700_000_000_000)
    producer.send(topic, b"three", partition=1)
    producer.flush(10)
    producer.close()
    reader = place.consumer(0, 1)
    _, found = read(reader, lambda offsets: len(offsets.get(1, ())) == 3)
    reader.close()
    assert {records.partition for records in found} == {1}
    assert [o for r in found for o in r.offsets] == [0, 1, 2]
    assert [v for r in found for v in r.values] == [b"one", None, b"three"]
    assert [k for r in found for k in r.keys] == [b"k", b"k", None]
    assert [t for r in found for t in r.timestamps_ms][1] == 1_700_000_000_000
    assert sum(r.nbytes for r in found) == len(b"onethree" + b"kk" + b"deadline_ms5")
    headers = [list(h) for r in found for h in (r.headers or [()] * len(r.offsets))]
    assert headers == [[("deadline_ms", b"5")], [], []]


def test_a_header_whose_name_is_no_text_stops_nothing(place: Place) -> None:
    class Odd(str):
        def encode(self, *_: object) -> bytes:
            return b"h\xff"

    plain = place.stream.model_copy(update={"client": "kafka-python"})
    producer = connect.producer(plain, place.brokers)
    for name in ("a", Odd("h"), "b"):
        producer.send(plain.topic, b"x", partition=0, headers=[(name, b"1")])
    producer.flush(10)
    producer.close()
    reader = place.consumer(0)
    offsets, found = read(reader, lambda offsets: len(offsets.get(0, ())) == 3)
    reader.close()
    assert offsets == {0: [0, 1, 2]}
    headers = [list(held) for records in found for held in records.headers]
    odd = [(r"h\xff", b"1")] if place.stream.client == "kafka-python" else []
    assert headers == [[("a", b"1")], odd, [("b", b"1")]]


def test_messages_without_headers_carry_none(place: Place) -> None:
    place.send((0, b"x"), (0, b"y"))
    reader = place.consumer(0)
    _, found = read(reader, lambda offsets: len(offsets.get(0, ())) == 2)
    reader.close()
    assert [len(records.headers) for records in found] == [0] * len(found)


def test_bounds_are_those_of_the_log(place: Place) -> None:
    for _ in range(3):
        place.send(*((0, b"x") for _ in range(10)))
    reader = place.consumer()
    assert reader.partitions() == [0, 1]
    assert reader.bounds([0, 1]) == {0: (0, 30), 1: (0, 0)}
    reader.assign([0])
    read(reader, lambda offsets: len(offsets.get(0, ())) == 30)
    place.send((0, b"later"))
    read(reader, lambda offsets: len(offsets.get(0, ())) == 1)
    assert reader.bounds([0, 1]) == {0: (0, 31), 1: (0, 0)}
    reader.close()


def test_seek_and_position(place: Place) -> None:
    place.send(*((0, b"%d" % i) for i in range(20)))
    reader = place.consumer(0, 1)
    reader.seek(0, 12)
    assert reader.position(0) == 12
    offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 8)
    assert offsets == {0: list(range(12, 20))}
    assert (reader.position(0), reader.position(1)) == (20, 0)
    reader.seek(0, 3)
    offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 17)
    assert offsets == {0: list(range(3, 20))}
    reader.close()


def test_a_poll_returns_at_most_what_is_asked(place: Place) -> None:
    place.send(*((i % 2, b"x") for i in range(40)))
    reader = place.consumer(0, 1)
    counts = [0]
    end = time.monotonic() + 60
    while sum(counts) < 40 and time.monotonic() < end:
        counts.append(sum(len(records.offsets) for records in reader.poll(5, 7)))
    reader.close()
    assert sum(counts) == 40
    assert max(counts) <= 7


def test_a_paused_partition_waits_where_it_was(place: Place) -> None:
    place.send(*((i % 2, b"x") for i in range(40)))
    reader = place.consumer(0, 1)
    first = [r for r in (reader.poll(5, 4) or reader.poll(5, 4)) if r.partition == 0]
    seen = len(first[0].offsets) if first else 0
    reader.pause([0])
    offsets, _ = read(reader, lambda offsets: 1 in offsets and max(offsets[1]) == 19)
    assert 0 not in offsets
    assert reader.poll(0.3, 100) == []
    assert reader.position(0) == seen
    reader.resume([0])
    offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 20 - seen)
    assert offsets == {0: list(range(seen, 20))}
    reader.close()


def test_a_seek_keeps_the_pause(place: Place) -> None:
    place.send((0, b"x"), (1, b"y"))
    reader = place.consumer(0, 1)
    reader.pause([0])
    reader.seek(0, 0)
    offsets, _ = read(reader, lambda offsets: 1 in offsets)
    assert reader.poll(0.3, 100) == []
    assert 0 not in offsets
    reader.resume([0])
    assert read(reader, lambda offsets: 0 in offsets)[0] == {0: [0]}
    reader.close()


def test_commits_are_there_for_the_next_reader_of_the_group(place: Place) -> None:
    place.send(*((0, b"x") for _ in range(10)))
    reader = place.consumer(0, 1)
    assert reader.committed([0, 1]) == {0: None, 1: None}
    reader.commit({0: 4}, {0: "00000000000000000002"})
    for _ in range(100):
        reader.poll(0.05, 1)
        if reader.committed([0])[0]:
            break
    reader.close()
    assert reader.commit_failures == 0
    again = place.consumer(0, 1)
    metadata = "00000000000000000002" if place.kind == "noida" else ""  # Tansu keeps none
    assert again.committed([0, 1]) == {0: (4, metadata), 1: None}
    offsets, _ = read(again, lambda offsets: len(offsets.get(0, ())) == 6)
    again.close()
    assert offsets == {0: list(range(4, 10))}
    stranger = place.consumer(group="another")
    assert stranger.committed([0]) == {0: None}
    stranger.close()


def test_a_topic_that_is_not_there_is_named_and_not_made(place: Place) -> None:
    missing = replace(place, stream=place.stream.model_copy(update={"topic": "missing"}))
    reader = missing.consumer()
    with pytest.raises(Unavailable, match="'missing'"):
        reader.partitions()
    reader.close()
    admin = connect.admin(place.stream, place.brokers)
    with pytest.raises(Unavailable, match="'missing'"):
        admin.topic_identity("missing")
    assert admin.partitions("missing") == 0
    assert "missing" not in admin.topics()
    admin.close()


def test_a_producer_makes_no_topic(place: Place, impatient: None) -> None:
    producer = connect.producer(place.stream, place.brokers)
    with pytest.raises(Unavailable):
        producer.send("unheard-of", b"x")
        producer.flush(5)
    with suppress(Unavailable):
        producer.close()
    admin = connect.admin(place.stream, place.brokers)
    assert "unheard-of" not in admin.topics()
    admin.close()


def test_topics_are_made_once_listed_and_removed(place: Place) -> None:
    admin = connect.admin(place.stream, place.brokers)
    topic = place.stream.topic
    assert not admin.create_topic(topic, 2)
    assert admin.partitions(topic) == 2
    assert topic in admin.topics()
    admin.delete_topic(topic)
    admin.delete_topic(topic)
    assert topic not in admin.topics()
    admin.close()


def test_both_clients_give_a_topic_the_same_identity(place: Place) -> None:
    admins = [connect.admin(s, place.brokers) for s in (place.stream, place.other_client())]
    first, second = (admin.topic_identity(place.stream.topic) for admin in admins)
    assert first == second
    assert first[0]
    assert len(first[1]) == (0 if place.kind == "noida" else 32)
    for admin in admins:
        admin.close()


def test_a_topic_that_is_made_again_has_another_identity(place: Place) -> None:
    if place.kind == "noida":
        pytest.skip("noida-db gives topics no identity; stream.generation tells them apart")
    admin = connect.admin(place.stream, place.brokers)
    topic = place.stream.topic
    first = admin.topic_identity(topic)
    admin.delete_topic(topic)
    assert admin.create_topic(topic, 2)
    assert admin.topic_identity(topic)[1] not in ("", first[1])
    admin.close()


def test_records_are_deleted_or_the_broker_says_that_it_cannot(place: Place) -> None:
    place.send(*((0, b"x") for _ in range(10)))
    admin = connect.admin(place.stream, place.brokers)
    deleted = admin.delete_records(place.stream.topic, {0: 6})
    admin.close()
    assert deleted == (place.kind == "noida")
    reader = place.consumer(0)
    start = 6 if deleted else 0
    assert reader.bounds([0]) == {0: (start, 10)}
    offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 10 - start)
    reader.close()
    assert offsets == {0: list(range(start, 10))}


def test_an_offset_that_is_gone_starts_again_at_the_first_that_is_there(place: Place) -> None:
    if place.kind == "tansu":
        pytest.skip("Tansu cannot delete records")
    place.send(*((0, b"x") for _ in range(10)))
    admin = connect.admin(place.stream, place.brokers)
    assert admin.delete_records(place.stream.topic, {0: 6})
    admin.close()
    reader = place.consumer(0)
    reader.seek(0, 2)
    offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 4)
    reader.close()
    assert offsets == {0: [6, 7, 8, 9]}


def test_the_group_protocol_assigns(place: Place) -> None:
    if place.kind == "tansu" and place.stream.client == "confluent":
        pytest.skip("joining takes Tansu a session timeout; once is enough")
    place.send(*((i % 2, b"x") for i in range(20)))
    told: list[tuple[str, list[int]]] = []
    first = place.consumer(member="m0", group=place.stream.topic)

    def assigned(partitions: list[int]) -> None:
        told.append(("assigned", partitions))
        for partition in partitions:
            first.seek(partition, 5)

    first.subscribe(assigned, lambda partitions: told.append(("revoked", partitions)))
    offsets, _ = read(first, lambda offsets: sum(map(len, offsets.values())) == 10)
    assert offsets == {0: list(range(5, 10)), 1: list(range(5, 10))}
    assert told == [("assigned", [0, 1])]
    assert first.rebalances == 1
    first.close()


def test_a_broker_that_restarts_is_waited_for(place: Place, impatient: None) -> None:
    place.send(*((0, b"x") for _ in range(10)))
    reader = place.consumer(0)
    read(reader, lambda offsets: len(offsets.get(0, ())) == 10)
    place.broker.stop()
    for _ in range(40):
        assert reader.poll(0.2, 100) == []
        if reader.away_since is not None:
            break
    assert reader.away_since is not None
    reader.commit({0: 10}, {})
    with pytest.raises(Unavailable):
        reader.bounds([0])
    place.broker.start()
    place.send((0, b"after"))
    offsets, found = read(reader, lambda offsets: 0 in offsets)
    assert (offsets, found[0].values) == ({0: [10]}, [b"after"])
    assert reader.away_since is None
    reader.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_broker_that_is_not_there_is_named(client: ClientKind, impatient: None) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    stream = StreamConfig(client=client)
    with pytest.raises(Unavailable, match=nowhere):
        connect.admin(stream, nowhere)
    with pytest.raises(Unavailable, match=nowhere):
        connect.producer(stream, nowhere)
    with pytest.raises(Unavailable, match=nowhere):
        connect.consumer(stream, nowhere, group="g")


@pytest.mark.parametrize("client", CLIENTS)
def test_files_are_replayed_once(client: ClientKind, tmp_path: Path) -> None:
    lines = [
        f"2024-01-{1 + i // 24:02}T{i % 24:02}:00Z,s{j},{i + j}"
        for j in range(3)
        for i in range(48)
    ]
    (tmp_path / "load.csv").write_text("ds,id,y\n" + "\n".join(lines) + "\n")
    with NoidaBroker(tmp_path / "broker") as broker:
        config = parse_config({
            "name": "c", "data": {"path": str(tmp_path / "load.csv"), "id": "id"},
            "stream": {"partitions": 2, "client": client},
        })  # fmt: skip
        first = replay(config, broker.brokers, limit=50)
        second = replay(config, broker.brokers)
        third = replay(config, broker.brokers)
        assert [(r.sent, r.already) for r in (first, second, third)] == [
            (50, 0),
            (94, 50),
            (0, 144),
        ]
        reader = connect.consumer(config.stream, broker.brokers, group="g")
        reader.assign([0, 1])
        _, found = read(reader, lambda offsets: sum(map(len, offsets.values())) == 144)
        reader.close()
    values = [json.loads(value or b"") for records in found for value in records.values]
    assert len({(v["unique_id"], v["ds"]) for v in values}) == 144
    for series in ("s0", "s1", "s2"):
        stamps = [v["ds"] for v in values if v["unique_id"] == series]
        assert stamps == sorted(stamps)


@pytest.mark.parametrize("client", CLIENTS)
def test_acknowledged_messages_survive_a_kill_on_tansu(client: ClientKind, tmp_path: Path) -> None:
    with embedded_broker("tansu", tmp_path) as broker:
        stream = new_topic(broker.brokers, client)
        send(stream, broker.brokers, [(0, b"%d" % i) for i in range(50)])
        broker.kill()
        assert not broker.alive
        broker.start()
        reader = connect.consumer(stream, broker.brokers, group="g")
        reader.assign([0])
        offsets, _ = read(reader, lambda offsets: len(offsets.get(0, ())) == 50)
        reader.close()
    assert offsets == {0: list(range(50))}


def test_data_and_port_outlive_a_clean_restart_of_noida(tmp_path: Path) -> None:
    with NoidaBroker(tmp_path) as broker:
        stream = new_topic(broker.brokers)
        send(stream, broker.brokers, [(0, b"x")] * 5)
        port = broker.port
        broker.restart()
        assert broker.port == port
        reader = connect.consumer(stream, broker.brokers, group="g")
        assert reader.bounds([0]) == {0: (0, 5)}
        reader.close()
        with pytest.raises(Conflict, match=f"127.0.0.1:{port}"):
            NoidaBroker(tmp_path).start()
    assert not broker.alive


def test_unacknowledged_messages_are_counted(tmp_path: Path) -> None:
    with NoidaBroker(tmp_path) as broker:
        stream = new_topic(broker.brokers)
        producer = connect.producer(stream, broker.brokers)
        for _ in range(3):
            producer.send(stream.topic, b"x", partition=1)
        producer.flush(10)  # in a request of their own, which the large one cannot spoil
        producer.send(stream.topic, b"x" * 2_000_000, partition=0)
        with pytest.raises(Unavailable, match=r"1 messages were not acknowledged: .*TooLarge"):
            producer.flush(10)
        producer.close()
        producer = connect.producer(stream, broker.brokers)
        producer.send(stream.topic, b"x", partition=0)
        producer.flush(10)
        broker.stop()
        for _ in range(3):
            producer.send(stream.topic, b"x", partition=0)
        with pytest.raises(Unavailable, match=r"3 messages .* no answer to 3 within 0.5 s"):
            producer.flush(0.5)
        broker.start()
        producer.flush(30)
        producer.close()
