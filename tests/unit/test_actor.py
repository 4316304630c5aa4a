from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.ingest import actor
from flts_ray.ingest.actor import IngestActor
from flts_ray.ingest.fleet import (
    Fleet,
    environment_for_actors,
    seen_from_elsewhere,
    surrounded_by,
)
from flts_ray.ingest.restarts import note_start, read_starts, starts_key
from flts_ray.ingest.worker_status import COUNTS, PartitionStatus, Stuck, WorkerStatus
from flts_ray.store import NotFound, Store
from tests.running import until

KEY = starts_key("load", "demo", 1)


def status_of(rows: int, segments: int = 0) -> WorkerStatus:
    part = PartitionStatus(9, 7, 7, 10, 3, 2, 50, False, "")
    totals = {**dict.fromkeys(COUNTS, 0), "rows": rows, "segments": segments}
    times = ("2024-01-01T00:00:00+00:00",) * 2
    return WorkerStatus("w", "load", "e", 1, 2, {3: part}, totals, False, False, *times)


class Work:
    """A worker that runs until it is stopped, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.running, self.closed = threading.Event(), threading.Event()
        self.until_end: bool | None = None
        self.segments = 0

    def run(self, stop: threading.Event, until_end: bool = False) -> None:
        self.until_end = until_end
        self.running.set()
        if self.error is not None:
            raise self.error
        if not until_end:
            assert stop.wait(30)

    def snapshot(self) -> WorkerStatus:
        return status_of(5, self.segments)

    def close(self) -> None:
        self.closed.set()


class Letters:
    def __init__(self) -> None:
        self.forwarded, self.upto, self.closed = 2, dict[int, int](), False

    def forward(self, partition: int, upto: int) -> None:
        self.upto[partition] = upto

    def close(self, timeout_s: float = 10.0) -> bool:
        self.closed = True
        return True


class Place:
    """Actors over one store; `ended` are the exit codes of processes that would be gone."""

    def __init__(self, root: Path) -> None:
        self.config = parse_config(
            {
                "name": "demo",
                "root": str(root),
                "data": {"snapshot": "latest"},
                "ingest": {"actors": 2},
            }
        )
        self.store = Store.open(str(root))
        self.letters = Letters()
        self.metered: list[Mapping[str, Any]] = []
        self.ended: list[int] = []
        self.over = threading.Event()

    def actor(self, work: Work | Exception, until_end: bool = False) -> IngestActor:
        def open_worker(config: Config, brokers: str, index: int, of: int) -> Work:
            assert (config.name, brokers, index, of) == ("demo", "here:1", 1, 2)
            if isinstance(work, Exception):
                raise work
            return work

        def end(code: int) -> None:
            self.ended.append(code)
            self.over.set()

        def forwarder(config: Config, brokers: str, epoch: str) -> Letters:
            assert epoch == "e"
            return self.letters

        fleet = Fleet(
            self.config,
            "here:1",
            open_worker,
            until_end=until_end,
            open_forwarder=forwarder,
            environment={"FLTS_TEST_SECRET": "hidden"},
        )
        return IngestActor(fleet, 1, lambda fleet, index: self.metered.append, end)


def awaited(one: IngestActor, state: str) -> dict[str, Any]:
    until(lambda: one.status()["state"] == state, 10, state)
    return one.status()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("FLTS_TEST_SECRET", "")
    monkeypatch.setattr(actor, "REPORT_S", 0.01)
    return Place(tmp_path)


def test_it_works_from_its_construction_until_it_is_drained(place: Place) -> None:
    work = Work()
    one = place.actor(work)
    assert work.running.wait(10)
    said = one.status()
    assert (said["state"], said["index"], said["of"], said["pid"]) == ("running", 1, 2, os.getpid())
    assert said["worker"]["partitions"]["3"]["lag"] == 3
    assert one.ping() == os.getpid()
    assert len(read_starts(place.store, KEY).at) == 1
    assert one.drain(10)["state"] == "done"
    assert work.closed.is_set()
    assert work.until_end is False
    assert read_starts(place.store, KEY).at == ()
    assert place.ended == []
    assert os.environ["FLTS_TEST_SECRET"] == "hidden"


def test_dead_letters_are_forwarded_as_far_as_they_are_durable_and_metered(place: Place) -> None:
    awaited(place.actor(Work(), until_end=True), "done")
    assert (place.letters.upto, place.letters.closed) == ({3: 7}, True)
    until(lambda: place.metered, 10, "a reading")
    assert place.metered[0]["totals"]["forwarded"] == 2
    assert place.metered[0]["totals"]["rows"] == 5


@pytest.mark.parametrize("error", [Unavailable("store away"), RuntimeError("nobody foresaw it")])
def test_what_a_restart_may_mend_ends_the_process_and_leaves_its_reason(
    place: Place, error: Exception
) -> None:
    work = Work(error)
    with capture_logs() as logs:
        one = place.actor(work)
        assert place.over.wait(10)
    assert place.ended == [1]
    assert one.status()["state"] == "restarting"
    assert str(error) in read_starts(place.store, KEY).error
    assert work.closed.is_set()
    told = [log for log in logs if log["event"] == "ingest_gives_up"]
    assert [str(error) in log["error"] for log in told] == [True]
    assert [bool(log["exc_info"]) for log in told] == [not isinstance(error, Unavailable)]


@pytest.mark.parametrize("trouble", [NotFound("no such bucket"), RuntimeError("a bug")])
def test_a_failure_that_cannot_be_noted_ends_the_process_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(actor, "note_failure", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    place.actor(Work(Unavailable("store away")))
    assert place.over.wait(10)
    assert place.ended == [1]


def test_a_start_that_cannot_be_noted_is_a_start_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotFound("no such bucket")

    monkeypatch.setattr(actor, "note_start", fail)
    monkeypatch.setattr(actor, "STORE_AWAY_S", 0.01)
    work = Work()
    one = place.actor(work)
    assert work.running.wait(10)
    one.drain(10)


def test_a_report_that_fails_is_not_the_last_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ZeroDivisionError("a bug"), NotFound("no such bucket")]

    def forward(partition: int, upto: int) -> None:
        if failures:
            raise failures.pop()
        place.letters.upto[partition] = upto

    monkeypatch.setattr(place.letters, "forward", forward)
    with capture_logs() as logs:
        one = place.actor(Work())
        until(lambda: place.letters.upto == {3: 7} and place.metered, 10, "a report")
    assert one.drain(10)["state"] == "done"
    told = [log["error"] for log in logs if log["event"] == "ingest_report_failed"]
    assert len(told) == 2 and "bucket" in told[0] and "a bug" in told[1]


def test_what_stays_undecoded_up_to_the_end_is_told_at_once(place: Place) -> None:
    one = place.actor(Work(Stuck("partition 0: the claim's store is away")), until_end=True)
    assert "claim's store" in awaited(one, "failed")["error"]
    assert place.ended == []


def test_a_task_leaves_nothing_of_its_environment_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    given = {"AWS_REGION": "there", "AWS_SECRET_ACCESS_KEY": "hidden"}
    with pytest.raises(ZeroDivisionError), surrounded_by(given):
        assert {name: os.environ[name] for name in given} == given
        raise ZeroDivisionError
    assert os.environ["AWS_REGION"] == "here"
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ


def test_a_worker_that_cannot_be_opened_is_a_failed_start(place: Place) -> None:
    place.actor(Unavailable("no broker"))
    assert place.over.wait(10)
    assert read_starts(place.store, KEY).error == "no broker"


def test_what_no_restart_mends_stays_and_is_told(place: Place) -> None:
    one = place.actor(ConfigError("covariates: rename y"))
    assert awaited(one, "failed")["error"] == "covariates: rename y"
    assert one.drain(10)["state"] == "failed"
    assert place.ended == []


def test_a_process_that_was_started_often_waits_and_can_be_drained_meanwhile(place: Place) -> None:
    for _ in range(6):
        note_start(place.store, KEY, time.time())
    work = Work()
    one = place.actor(work)
    assert awaited(one, "waiting")["starts"] == 7
    assert one.drain(10)["state"] == "done"
    assert not work.running.is_set()


def test_whoever_stored_something_is_not_held_to_its_earlier_restarts(place: Place) -> None:
    note_start(place.store, KEY, time.time())
    work = Work()
    one = place.actor(work)
    assert work.running.wait(10)
    assert len(read_starts(place.store, KEY).at) == 2
    work.segments = 1
    until(lambda: not read_starts(place.store, KEY).at, 10, "starts that are forgotten")
    until(lambda: one.status()["starts"] == 0, 10, "a status that says so")
    one.drain(10)


def test_secrets_travel_and_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("PATH_OF_SOMETHING", "x")
    environment = environment_for_actors()
    assert environment["AWS_SECRET_ACCESS_KEY"] == "s3cr3t"
    assert "PATH_OF_SOMETHING" not in environment
    fleet = Fleet(Place(tmp_path).config, "b", lambda *_: Work(), environment=environment)
    assert "s3cr3t" not in repr(fleet)


def test_the_digest_tells_fleets_apart_that_do_not_do_the_same(tmp_path: Path) -> None:
    config = Place(tmp_path).config
    same = Fleet(config, "b", lambda *_: Work())
    assert same.digest() == Fleet(config, "b", lambda *_: Work()).digest()
    more = config.model_copy(update={"ingest": config.ingest.model_copy(update={"actors": 3})})
    others = [
        Fleet(more, "b", same.open_worker),
        Fleet(config, "c", same.open_worker),
        Fleet(config, "b", same.open_worker, compact_every_s=5.0),
        Fleet(config, "b", same.open_worker, environment={"AWS_REGION": "x"}),
    ]
    assert len({one.digest() for one in [same, *others]}) == 5


def test_a_relative_root_becomes_one_that_others_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Place(tmp_path).config
    near = config.model_copy(update={"root": "data/here"})
    assert seen_from_elsewhere(near).root == str(tmp_path / "data" / "here")
    far = config.model_copy(update={"root": "s3://bucket/x"})
    assert seen_from_elsewhere(far).root == "s3://bucket/x"
