from __future__ import annotations

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest

from flts_ray.errors import Conflict, Unavailable
from flts_ray.local import stack
from flts_ray.local.stack import Addresses, Plan, Stack, in_use, sole_user

PLAN = Plan({"load": 4, "DLQ-load": 4}, ("flts", "claims"))


class Server:
    """A stand-in that says what is done with it."""

    name = "server"
    done: ClassVar[list[str]] = []
    fails: ClassVar[set[str]] = set()

    def __init__(self, folder: Path, port: int | None) -> None:
        self.folder, self.port, self.alive = folder, port or 1000, False

    def start(self) -> None:
        if self.name in self.fails:
            raise Unavailable(f"{self.name} ended with exit code 1 while starting")
        self.done.append(f"start {self.name}")
        self.alive = True

    def stop(self) -> None:
        self.done.append(f"stop {self.name}")
        self.alive = False


class Broker(Server):
    name = "noida-db"

    @property
    def brokers(self) -> str:
        return f"127.0.0.1:{self.port}"


class S3(Server):
    name = "s3"

    def __init__(self, folder: Path, bucket: str, port: int | None) -> None:
        super().__init__(folder, port or 2000)
        self.bucket = bucket

    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.port}"
        return {"AWS_ENDPOINT_URL": url, "AWS_SECRET_ACCESS_KEY": "hidden"}


@pytest.fixture(autouse=True)
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the stand-ins of both servers."""
    seen: list[str] = []
    monkeypatch.setattr(Server, "done", seen)
    monkeypatch.setattr(Server, "fails", set())
    monkeypatch.setattr(stack, "NoidaBroker", Broker)
    monkeypatch.setattr(stack, "S3Server", S3)
    monkeypatch.setattr(stack, "free_port", lambda preferred=None: preferred or 1000)
    monkeypatch.setattr(stack, "make", lambda addresses, plan: seen.append(f"make {addresses!r}"))
    return seen


def test_both_start_then_topics_and_buckets_are_made(tmp_path: Path, done: list[str]) -> None:
    with Stack(tmp_path, PLAN) as running:
        assert running.addresses.brokers == "127.0.0.1:1000"
        assert running.addresses.s3 == "http://127.0.0.1:2000"
    assert [what.partition(" ")[0] for what in done] == ["start", "start", "make", "stop", "stop"]
    assert "hidden" not in "".join(done)


@pytest.mark.parametrize(
    ("plan", "started"),
    [(Plan({}, ("flts",)), ["start s3"]), (Plan({"load": 1}, ()), ["start noida-db"])],
)
def test_what_is_not_wanted_is_not_started(
    tmp_path: Path, done: list[str], plan: Plan, started: list[str]
) -> None:
    with Stack(tmp_path, plan) as running:
        assert [what for what in done if what.startswith("start")] == started
        assert bool(running.addresses.brokers) == bool(plan.topics)
        assert (
            bool(running.addresses.s3) == bool(plan.buckets) == bool(running.addresses.environment)
        )


def test_ports_are_those_of_the_last_time(tmp_path: Path) -> None:
    (tmp_path / stack.PORTS).write_text(json.dumps({"broker": 4001, "s3": 4002}))
    with Stack(tmp_path, Plan({"load": 1}, ())) as running:
        assert running.addresses.brokers == "127.0.0.1:4001"
    with Stack(tmp_path, PLAN) as running:
        assert running.addresses.s3 == "http://127.0.0.1:4002"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"s3": "x"}', '{"s3": null}'])
def test_a_damaged_memory_of_ports_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / stack.PORTS).write_text(text)
    with Stack(tmp_path, PLAN) as running:
        assert running.addresses.brokers == "127.0.0.1:1000"
    assert json.loads((tmp_path / stack.PORTS).read_text()) == {"broker": 1000, "s3": 2000}


def test_a_start_that_fails_stops_what_had_started(tmp_path: Path, done: list[str]) -> None:
    Server.fails.add("s3")
    with pytest.raises(Unavailable, match="s3 ended"), Stack(tmp_path, PLAN):
        pytest.fail("it never started")
    assert done == ["start noida-db", "stop s3", "stop noida-db"]


def test_a_server_that_died_is_started_again(tmp_path: Path, done: list[str]) -> None:
    with Stack(tmp_path, PLAN) as running:
        done.clear()
        assert running.tend() == []
        assert done == []
        assert running._s3 is not None
        running._s3.alive = False  # type: ignore[misc]
        assert running.tend() == ["s3"]
        assert done == ["stop s3", "start s3"]


def test_a_server_that_lost_its_port_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stack(tmp_path, PLAN) as running:
        assert running._s3 is not None
        running._s3.alive = False  # type: ignore[misc]
        monkeypatch.setattr(S3, "start", lambda self: setattr(self, "port", 2001))
        with pytest.raises(Unavailable, match="s3: the port was taken"):
            running.tend()


def test_a_folder_has_one_user_and_is_free_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert not in_use(folder)
    with sole_user(folder):
        assert in_use(folder)
        with pytest.raises(Conflict, match="`flts down`"), sole_user(folder):
            pytest.fail("two users")
    assert not in_use(folder)


@pytest.mark.parametrize("lock", ["broker/noida-db.lock", "s3/seaweedfs.lock"])
def test_a_folder_is_in_use_while_a_server_still_ends(tmp_path: Path, lock: str) -> None:
    import fcntl

    (tmp_path / lock).parent.mkdir()
    descriptor = os.open(tmp_path / lock, os.O_RDWR | os.O_CREAT)
    assert not in_use(tmp_path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert in_use(tmp_path)
    os.close(descriptor)
    assert not in_use(tmp_path)


def test_a_plan_travels_as_text_and_addresses_hide_the_keys() -> None:
    assert Plan.of_text(PLAN.text()) == PLAN
    shown = repr(Addresses("127.0.0.1:1", "http://x", {"AWS_SECRET_ACCESS_KEY": "hidden"}))
    assert "hidden" not in shown
