"""The supervisor's threads, without a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from flts_ray.config import Config, RayConfig, parse_config
from flts_ray.ingest import compact_ray, supervisor
from flts_ray.ingest.fleet import Fleet
from flts_ray.ingest.supervisor import Supervisor, compacted
from flts_ray.prepare.steps import Report, Step
from tests.running import until

SECRET = "AWS_SECRET_ACCESS_KEY"


def seen(config: Config, brokers: str) -> str:
    """Stands for a compaction: what its process knows."""
    return f"{config.name} {brokers} {os.environ.get(SECRET)}"


def nobody(*_: object) -> Any:
    raise AssertionError("no worker is opened here")


def fleet(compact_every_s: float | None = None) -> Fleet:
    raw = {"name": "demo", "data": {"snapshot": "latest"}, "ingest": {"actors": 2}}
    return Fleet(
        parse_config(raw),
        "b:1",
        nobody,
        compact_every_s=compact_every_s,
        compact=seen,
        environment={SECRET: "hidden"},
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What making an actor gives, one after the other; exceptions are raised, then all is well."""
    outcomes: list[object] = []

    def make(fleet: Fleet, index: int) -> object:
        outcome = outcomes.pop(0) if outcomes else index
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(supervisor, "_actor", make)
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)
    return outcomes


def test_actors_are_looked_after_whatever_went_wrong_once(script: list[object]) -> None:
    script += [0, 1, ValueError("being removed"), RuntimeError("the cluster is busy"), 0]
    with capture_logs() as logs:
        one = Supervisor(fleet())
        until(lambda: not script, 10, "further looks")
    one._stopped.set()
    told = [log["error"] for log in logs if log["event"] == "ingest_not_looked_after"]
    assert len(told) == 2 and "being removed" in told[0] and "busy" in told[1]


def test_compaction_goes_on_whatever_went_wrong_once(
    script: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Exception | str] = [ValueError("odd"), "snapshot 1"]

    def elsewhere(fleet: Fleet, compact: object) -> str:
        assert compact is seen
        outcome = outcomes.pop(0) if outcomes else "snapshot 2"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(supervisor, "_compacted_elsewhere", elsewhere)
    with capture_logs() as logs:
        one = Supervisor(fleet(compact_every_s=0.01))
        until(lambda: one._chores.get("compaction") == "snapshot 2", 10, "a second one")
    one._stopped.set()
    assert [log["error"] for log in logs if log["event"] == "compaction_failed"] == ["failed: odd"]


def test_compaction_elsewhere_has_the_keys_of_the_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    what = fleet()
    asked: list[tuple[Any, ...]] = []

    class Task:
        def __init__(self, **options: object) -> None:
            assert options == {"num_cpus": 0, "max_retries": 0}

        def __call__(self, function: Any) -> Task:
            self.function = function
            return self

        def remote(self, *arguments: Any) -> Any:
            asked.append(arguments)
            return self.function(*arguments)

    monkeypatch.setattr("flts_ray.ingest.supervisor.ray.remote", Task)
    monkeypatch.setattr("flts_ray.ingest.supervisor.ray.get", lambda answer: answer)
    assert supervisor._compacted_elsewhere(what, seen) == "demo b:1 hidden"
    assert asked == [(seen, what.config, "b:1", what.environment)]
    assert compacted(seen, what.config, "b:1", {}) == "demo b:1 None"


def test_steps_on_other_nodes_have_the_keys_of_the_process_that_sent_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Step] = []

    def other_node(step: Step, count: int, config: RayConfig) -> Iterator[Report]:
        sent.append(step)
        monkeypatch.delenv(SECRET)
        yield from (step(index) for index in range(count))

    monkeypatch.setattr(compact_ray, "run_on_ray", other_node)
    monkeypatch.setenv(SECRET, "hidden")
    run = compact_ray.on_ray(RayConfig())
    reports = list(run(lambda index: {"index": index, "key": os.environ.get(SECRET)}, 2))
    assert reports == [{"index": 0, "key": "hidden"}, {"index": 1, "key": "hidden"}]
    assert SECRET not in os.environ
    assert "hidden" not in repr(sent)
