"""Broker and S3 server in the background, with real ones: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import Unavailable
from flts_ray.jobs.up import (
    LOG,
    adopt_local,
    brokers_of,
    down,
    local_stack,
    running,
    up,
    up_folder,
)
from flts_ray.local.stack import in_use
from flts_ray.narrate import LogNarrator
from flts_ray.store import Store
from flts_ray.streams.connect import admin, consumer, producer
from tests.running import MARK, Place, until

pytestmark = pytest.mark.integration

AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
UP = """
import sys
from flts_ray.config import parse_config
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.jobs.up import up
from flts_ray.narrate import LogNarrator
interrupt_on_sigterm()
print("ready", flush=True)
up(parse_config({"name": "load", "root": sys.argv[1], "data": {"path": "x.csv"}}), LogNarrator())
"""


def config_of(root: object, **sections: Any) -> Config:
    return parse_config({"name": "load", "root": str(root), "data": {"path": "x.csv"}, **sections})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Everything that a test starts carries its mark; nothing may be left of it."""
    place = Place(tmp_path)
    monkeypatch.setenv(MARK, place.mark)
    for name in (*AWS, "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield place
    try:
        until(lambda: place.processes() == [], 15, "all processes have gone")
    finally:
        for line in place.processes():
            os.kill(int(line.split()[0]), signal.SIGTERM)


def supervisor(config: Config) -> int:
    return int(json.loads((up_folder(config) / "run" / "stack.json").read_text())["pid"])


def read_all(config: Config, count: int) -> list[bytes | None]:
    reader = consumer(config.stream, brokers_of(config), group="test")
    found: list[bytes | None] = []
    try:
        reader.assign([0])
        reader.seek(0, 0)
        while len(found) < count:
            found += [value for records in reader.poll(1, 100) for value in records.values]
    finally:
        reader.close()
    return found


def send(config: Config, value: bytes) -> None:
    writer = producer(config.stream, brokers_of(config))
    try:
        writer.send(config.stream.topic, value, partition=0)
        writer.flush(10)
    finally:
        writer.close()


def test_up_serves_until_down_and_keeps_its_data(place: Place) -> None:
    config = config_of("s3://loads/here", stream={"topic": "raw", "partitions": 2})
    first = up(config, LogNarrator())
    assert up(config, LogNarrator()) == first
    told = up_folder(config) / "run" / "stack.json"
    assert told.stat().st_mode & 0o777 == 0o600
    secret = first.environment["AWS_SECRET_ACCESS_KEY"]
    for path in up_folder(config).rglob("*"):
        if path.is_file() and path != told:
            assert secret.encode() not in path.read_bytes(), path
    clerk = admin(config.stream, first.brokers)
    assert {"raw": 2, "DLQ-raw": 2}.items() <= {
        t: clerk.partitions(t) for t in clerk.topics()
    }.items()
    clerk.close()
    send(config, b"one")
    adopt_local(config)
    Store.open(config.root).put("k", b"kept")

    assert down(config) is True
    assert place.processes() == []
    assert (down(config), running(config)) == (False, None)
    with pytest.raises(Unavailable, match="flts up"):
        brokers_of(config)

    for name in AWS:
        del os.environ[name]
    second = up(config, LogNarrator())
    assert (second.brokers, second.s3) == (first.brokers, first.s3)
    assert second.environment["AWS_SECRET_ACCESS_KEY"] != secret
    adopt_local(config)
    assert Store.open(config.root).get("k") == b"kept"
    send(config, b"two")
    assert read_all(config, 2) == [b"one", b"two"]
    assert down(config) is True


def test_a_killed_supervisor_takes_its_servers_along_and_up_works_again(place: Place) -> None:
    config = config_of("root")
    first = up(config, LogNarrator(), s3=False)
    assert (first.s3, dict(first.environment)) == ("", {})
    os.kill(supervisor(config), signal.SIGKILL)
    until(lambda: running(config) is None, 10, "nobody tells addresses any more")
    second = up(config, LogNarrator(), s3=False)
    assert second == first
    assert len(brokers(place)) == 1, place.processes()
    (broker,) = brokers(place)
    os.kill(broker, signal.SIGKILL)
    until(lambda: broker not in brokers(place), 10, "it is gone")
    until(lambda: brokers(place), 15, "it is back")
    until(lambda: _answers(config), 15, "it answers")
    assert brokers_of(config) == first.brokers
    assert down(config) is True


def brokers(place: Place) -> list[int]:
    lines = [line for line in place.processes() if "noida-db start" in line]
    return [int(line.split()[0]) for line in lines if "guard.py" not in line]


def _answers(config: Config) -> bool:
    try:
        send(config, b"again")
    except Unavailable:
        return False
    return True


def test_a_start_that_fails_names_the_service_and_leaves_nothing(place: Place) -> None:
    config = config_of("root")
    objects = up_folder(config) / "s3" / "objects"
    objects.mkdir(parents=True)
    (objects / "filerldb2").write_text("no folder")
    with pytest.raises(Unavailable, match=r"SeaweedFS .* its log .*seaweedfs\.log ends with:\n.+"):
        up(config, LogNarrator())
    assert place.processes() == []
    assert not in_use(up_folder(config))
    assert running(config) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing_behind(place: Place, number: signal.Signals) -> None:
    root = place.folder / "root"
    starting = place.start([sys.executable, "-c", UP, str(root)], "up.out")
    until(lambda: any("noida-db" in p for p in place.processes()), 30, "the broker starts")
    starting.send_signal(number)
    assert starting.wait(30) != 0
    until(lambda: place.processes() == [], 10, "everything has gone")
    assert not in_use(up_folder(config_of(root)))


def test_two_at_once_become_one(place: Place) -> None:
    root = place.folder / "root"
    command = [sys.executable, "-c", UP, str(root)]
    both = [place.start(command, f"{i}.out") for i in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    supervisors = [p for p in place.processes() if "flts_ray.jobs.up --serve" in p]
    assert len(supervisors) == 1
    log = (up_folder(config_of(root)) / LOG).read_text()
    assert log.count("local_stack_up") == 1
    assert down(config_of(root)) is True


def test_a_command_has_the_same_data_for_its_own_length(place: Place) -> None:
    config = config_of("s3://loads/here")
    with local_stack(config) as own:
        assert os.environ["AWS_ENDPOINT_URL"] == own.s3
        Store.open(config.root).put("k", b"kept")
        send(config, b"one")
        with local_stack(config) as joined:
            assert joined == own
        send(config, b"two")
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert place.processes() == []
    up(config, LogNarrator())
    with local_stack(config):
        assert Store.open(config.root).get("k") == b"kept"
        assert read_all(config, 2) == [b"one", b"two"]
    assert running(config) is not None
    assert down(config) is True


def test_servers_whose_folder_was_deleted_end_by_themselves(place: Place) -> None:
    config = config_of("root")
    up(config, LogNarrator(), s3=False)
    shutil.rmtree("root")
    until(lambda: place.processes() == [], 15, "all processes have gone")
    assert down(config) is False
