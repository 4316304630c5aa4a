from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.ingest.progress import IngestView
from flts_ray.jobs import demo_stream
from flts_ray.jobs.demo_stream import input_file, send, stream_servers, tabulate, take_in
from flts_ray.jobs.replay import Replayed
from flts_ray.local.stack import Addresses
from flts_ray.sources.snapshot import find_source
from flts_ray.store import Store
from tests.segments import EPOCH, TOPIC, segment, stored


def config_of(root: object, **sections: Any) -> Config:
    data = {"snapshot": "latest", "covariates": {"temp": "past", "site": "static"}}
    return parse_config({"name": "demo", "root": str(root), "data": data, **sections})


@dataclass
class Told:
    """A narrator that remembers."""

    steps: list[str] = field(default_factory=list)
    stages: list[tuple[str, int, int]] = field(default_factory=list)

    def step(self, title: str, detail: str = "") -> None:
        self.steps.append(f"{title}: {detail.partition(' (')[0]}")

    def stage(self, name: str, done: int, total: int) -> None:
        self.stages.append((name, done, total))

    def study(self) -> Any:
        raise AssertionError("nothing is studied")


@dataclass
class Stand:
    """A broker whose logs end at `ends`, and actors that `store` what they should."""

    ends: dict[int, int]
    ingest: Callable[[], None]
    ran: int = 0


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(tmp_path)


@pytest.fixture
def stand(config: Config, monkeypatch: pytest.MonkeyPatch) -> Stand:
    store = Store.open(config.root)
    found = Stand({0: 20, 1: 0}, lambda: None)

    def ingest() -> None:
        stored(store, 0, 20)

    def run(
        config: Config, narrator: object, *, until_end: bool, watch: Callable[[IngestView], None]
    ) -> None:
        assert until_end
        found.ran += 1
        found.ingest()
        watch(IngestView(1.0, {"messages": 20}, 20.0, 1.0, 0, ("done",)))

    found.ingest = ingest
    monkeypatch.setattr(demo_stream, "run_actors", run)
    monkeypatch.setattr(demo_stream, "log_ends", lambda config: found.ends)
    monkeypatch.setattr(demo_stream, "brokers_of", lambda config: "127.0.0.1:1000")
    monkeypatch.setattr(demo_stream, "epoch_at", lambda config, brokers: EPOCH)
    return found


def test_what_is_in_the_topic_is_stored_and_checked(config: Config, stand: Stand) -> None:
    told = Told()
    take_in(config, told)
    letters = "16 rows in 1 segment, 4 dead letters, every byte verified"
    assert told.steps == [f"Ingest: {letters}"]
    assert told.stages == [("stored", 0, 20), ("stored", 20, 20)]


def test_no_actor_is_started_where_everything_is_stored(config: Config, stand: Stand) -> None:
    take_in(config, Told())
    told = Told()
    take_in(config, told)
    assert stand.ran == 1
    assert told.steps[0].endswith("every byte verified; nothing new")


def test_an_interrupt_is_told_in_the_words_of_the_whole_demo(config: Config, stand: Stand) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt("stopped after a drain: 0 rows in 0 segments")

    stand.ingest = interrupted
    with pytest.raises(KeyboardInterrupt) as stopped:
        take_in(config, Told())
    assert str(stopped.value) == ""


def test_what_came_since_is_taken_in(config: Config, stand: Stand) -> None:
    take_in(config, Told())
    store = Store.open(config.root)
    stand.ends, stand.ingest = {0: 30, 1: 5}, lambda: (stored(store, 20, 30), None)[1]
    told = Told()
    take_in(config, told)
    assert told.stages[0] == ("stored", 0, 15)
    assert stand.ran == 2


def test_a_broker_that_lost_more_than_can_be_sent_again_is_told_of(
    config: Config, stand: Stand, tmp_path: Path
) -> None:
    take_in(config, Told())
    stand.ends = {0: 19, 1: 30}
    with pytest.raises(DataError, match=rf"partition 0 .* ends at 19, but 20 .* rm -r {tmp_path}"):
        take_in(config, Told())
    assert stand.ran == 1


def test_a_damaged_segment_stops_the_demo(config: Config, stand: Stand) -> None:
    data, info = segment(0, 20)
    Store.open(config.root).put_new(info.key, data[:-40] + data[-39:] + b"x")
    with pytest.raises(DataError, match="1 problem"):
        take_in(config, Told())


def test_the_snapshot_is_what_preparation_reads(config: Config, stand: Stand) -> None:
    take_in(config, Told())
    told = Told()
    tabulate(config, told)
    tabulate(config, told)
    assert told.steps == ["Snapshot: 1: 16 rows, 1 dates"] * 2
    source = find_source(config)
    assert source.snapshot is not None
    assert (source.snapshot["topic"], source.snapshot["number"]) == (TOPIC, 1)


def test_what_is_in_the_topic_is_not_sent_again(
    config: Config, stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = []

    def replay(
        config: Config, brokers: str, path: str, *, progress: Callable[[int, int], None]
    ) -> Replayed:
        sent.append((brokers, path))
        progress(25, 25)
        return Replayed(5, 20)

    monkeypatch.setattr(demo_stream, "replay", replay)
    told = Told()
    send(config, told, tmp_path / "in.csv", 20)
    assert sent == []
    send(config, told, tmp_path / "in.csv", 25)
    assert sent == [("127.0.0.1:1000", str(tmp_path / "in.csv"))]
    assert told.steps == [
        "Stream: 20 samples are in topic load already",
        "Stream: 5 samples to topic load",
    ]
    assert told.stages == [("samples", 25, 25)]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether S3 was wanted, of each stack that was started."""
    found: list[bool] = []

    @contextmanager
    def stack(config: Config, *, s3: bool) -> Iterator[Addresses]:
        found.append(s3)
        yield Addresses("127.0.0.1:1", "http://127.0.0.1:2" if s3 else "", {})

    monkeypatch.setattr(demo_stream, "local_stack", stack)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    return found


@pytest.mark.parametrize(
    ("root", "brokers", "endpoint", "wanted", "steps"),
    [
        ("s3://flts/demo", None, None, [True], ["broker at 127.0.0.1:1, S3 at http://127.0.0.1:2"]),
        ("folder", None, None, [False], ["broker at 127.0.0.1:1"]),
        ("s3://flts/demo", None, "http://s3.example", [False], ["broker at 127.0.0.1:1"]),
        ("s3://flts/demo", "kafka:9092", "http://s3.example", [], []),
    ],
)
def test_only_what_nobody_names_is_started(
    started: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    brokers: str | None,
    endpoint: str | None,
    wanted: list[bool],
    steps: list[str],
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    told = Told()
    with stream_servers(config_of(root, stream={"brokers": brokers}), told):
        assert started == wanted
    assert told.steps == [f"Servers: {step}" for step in steps]


def test_the_file_lies_beside_what_this_machine_keeps() -> None:
    config = config_of("s3://flts/demo", stream={"topic": "elecdemand"})
    assert input_file(config) == Path(".flts/demo/input/elecdemand.csv")
    assert input_file(config_of("/data/x")) == Path("/data/x/input/load.csv")
