from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, Conflict, Unavailable
from flts_ray.events import NoEvents
from flts_ray.jobs import session
from flts_ray.jobs import up as job
from flts_ray.jobs.announce import announce
from flts_ray.jobs.up import (
    adopt_local,
    brokers_of,
    down,
    local_stack,
    plan_of,
    running,
    up,
    up_folder,
)
from flts_ray.local.stack import Addresses, sole_user
from flts_ray.narrate import LogNarrator

KEYS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:2000",
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
}
SUPERVISED, IN_A_COMMAND = "flts up", "a command"


def config_of(root: object, **sections: Any) -> Config:
    return parse_config({"name": "demo", "root": str(root), "data": {"path": "x.csv"}, **sections})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without S3, in a folder without anything."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.chdir(tmp_path)


@contextmanager
def told(config: Config, owner: str = SUPERVISED, **changes: str) -> Iterator[None]:
    """Another process works in the folder, or so it seems."""
    record = {"owner": owner, "process": "1", "brokers": "127.0.0.1:1000", **KEYS, **changes}
    folder = up_folder(config)
    with sole_user(folder), announce(folder, job.NAME, record):
        yield


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Plans for which topics and buckets were made."""
    seen: list[Any] = []
    monkeypatch.setattr(job, "make", lambda addresses, plan: seen.append(plan))
    return seen


def test_topics_and_buckets_follow_the_configuration(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, stream={"topic": "raw", "partitions": 3}))
    assert plan.topics == {
        "raw": 3, "DLQ-raw": 3, "training-data": 1, "model-training": 1, "model-selected": 1,
    }  # fmt: skip
    assert plan.buckets == ("flts",)
    claims = {"a": "s3://claims/x", "b": str(tmp_path), "c": "s3://loads"}
    plan = plan_of(config_of("s3://loads/here", stream={"claims": claims}))
    assert plan.buckets == ("loads", "claims")
    assert plan_of(config_of("s3://loads/here"), s3=False).buckets == ()


def test_a_broker_of_ones_own_is_not_started_beside(tmp_path: Path) -> None:
    config = config_of(tmp_path, stream={"brokers": "kafka:9092", "security": "SSL"})
    assert plan_of(config).topics == {}
    assert brokers_of(config) == "kafka:9092"
    with pytest.raises(ConfigError, match="nothing to start"):
        up(config, LogNarrator(), s3=False)


def test_the_local_broker_cannot_be_secured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.security: SSL needs stream\.brokers"):
        plan_of(config_of(tmp_path, stream={"security": "SSL"}))


def test_the_folder_lies_in_the_root_or_beside_a_bucket(tmp_path: Path) -> None:
    assert up_folder(config_of(tmp_path)) == tmp_path / "up"
    assert up_folder(config_of("s3://loads/here")) == tmp_path / ".flts" / "demo" / "up"


def test_the_broker_that_runs_here_is_found(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for changes in (None, {"brokers": ""}):
        with pytest.raises(Unavailable, match="`flts up`"):
            if changes is None:
                brokers_of(config)
            else:
                with told(config, **changes):
                    brokers_of(config)
    with told(config):
        assert brokers_of(config) == "127.0.0.1:1000"
        assert running(config) == Addresses("127.0.0.1:1000", KEYS["AWS_ENDPOINT_URL"], KEYS)
    assert running(config) is None


@pytest.mark.parametrize(
    ("root", "claims", "adopted"),
    [("s3://loads/x", {}, True), ("here", {"b": "s3://claims"}, True), ("here", {}, False)],
)
def test_the_local_s3_server_is_used_where_an_address_needs_one(
    root: str, claims: dict[str, str], adopted: bool
) -> None:
    config = config_of(root, stream={"claims": claims})
    os.environ["AWS_SESSION_TOKEN"] = "of other keys"
    with told(config):
        adopt_local(config)
    assert (os.environ.items() >= KEYS.items()) == adopted
    assert ("AWS_SESSION_TOKEN" in os.environ) != adopted


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_of_the_environment_is_left_alone(name: str) -> None:
    config = config_of("s3://loads/x")
    os.environ[name] = "http://elsewhere"
    before = dict(os.environ)
    with told(config):
        adopt_local(config)
    assert os.environ == before


def test_without_a_server_the_environment_stays() -> None:
    before = dict(os.environ)
    adopt_local(config_of("s3://loads/x"))
    with told(config_of("s3://loads/x"), AWS_ENDPOINT_URL=""):
        adopt_local(config_of("s3://loads/x"))
    assert os.environ == before


def test_a_second_up_finds_the_first_and_makes_what_it_needs(
    tmp_path: Path, made: list[Any]
) -> None:
    config = config_of(tmp_path, stream={"topic": "other"})
    with told(config):
        assert up(config, LogNarrator()).brokers == "127.0.0.1:1000"
    assert [plan.topics["other"] for plan in made] == [4]


@pytest.mark.parametrize(
    ("owner", "changes", "message"),
    [
        (IN_A_COMMAND, {}, "a command runs broker and S3 server for its own length"),
        (SUPERVISED, {"brokers": ""}, "has no broker; `flts down`, then `flts up`"),
        (SUPERVISED, {"AWS_ENDPOINT_URL": ""}, "has no S3 server"),
    ],
)
def test_what_runs_must_be_what_is_wanted(
    tmp_path: Path, made: list[Any], owner: str, changes: dict[str, str], message: str
) -> None:
    config = config_of(tmp_path)
    with told(config, owner, **changes), pytest.raises(Conflict, match=message):
        up(config, LogNarrator())
    assert made == []


def test_down_without_up_does_nothing(tmp_path: Path) -> None:
    assert down(config_of(tmp_path / "never")) is False
    assert not (tmp_path / "never").exists()


def test_down_leaves_a_command_its_servers(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with told(config, IN_A_COMMAND), pytest.raises(Conflict, match="end that"):
        down(config)


def test_what_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "STOP_S", 0.1)
    config = config_of(tmp_path)
    message = r"does not stop; its log is .*up\.log"
    with sole_user(up_folder(config)), pytest.raises(Unavailable, match=message):
        down(config)


def test_a_command_joins_what_runs_and_gives_the_environment_back(
    tmp_path: Path, made: list[Any]
) -> None:
    config = config_of(tmp_path)
    os.environ["AWS_ACCESS_KEY_ID"] = "mine"
    before = dict(os.environ)
    with told(config), local_stack(config) as found:
        assert found.brokers == "127.0.0.1:1000"
        assert os.environ.items() >= KEYS.items()
    assert os.environ == before
    assert len(made) == 1
    os.environ["AWS_ENDPOINT_URL"] = "http://elsewhere"
    with told(config), local_stack(config):
        assert os.environ["AWS_ENDPOINT_URL"] == "http://elsewhere"
        assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"


def test_events_are_off_where_no_broker_is_known(tmp_path: Path) -> None:
    on = {"events": {"enabled": True}}
    for config in (config_of(tmp_path), config_of(tmp_path, **on)):
        with session._events(config) as events:
            assert isinstance(events, NoEvents)
    with told(config_of(tmp_path)), session._events(config_of(tmp_path, **on)) as events:
        assert not isinstance(events, NoEvents)


@pytest.mark.parametrize("settings", [{"root": "s3://My_Loads"}, {"claims": {"b": "s3://ab/x"}}])
def test_a_bucket_name_is_checked_before_anything_starts(settings: dict[str, Any]) -> None:
    stream = {"claims": settings["claims"]} if "claims" in settings else {}
    with pytest.raises(ConfigError, match="choose another name"):
        plan_of(config_of(settings.get("root", "here"), stream=stream))


def test_a_root_that_is_kept_here_is_never_looked_for_elsewhere() -> None:
    config = config_of("s3://loads/x")
    adopt_local(config)
    (up_folder(config) / "s3").mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"s3://loads/x is kept .*`flts up -c`"):
        adopt_local(config)
    with told(config):
        adopt_local(config)
    assert os.environ["AWS_ACCESS_KEY_ID"] == KEYS["AWS_ACCESS_KEY_ID"]
    adopt_local(config)
