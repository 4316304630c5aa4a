"""Actors on a real cluster, a real broker, a folder as the store, and processes that are killed."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, Conflict
from flts_ray.ingest.chain import segments
from flts_ray.ingest.progress import IngestView
from flts_ray.ingest.segment import good_rows, read_table
from flts_ray.jobs import ingest
from flts_ray.jobs.ingest_check import epochs_in, verify_stream
from flts_ray.jobs.session import ray_cluster
from flts_ray.jobs.stream_status import stream_status
from flts_ray.local.broker import NoidaBroker
from flts_ray.narrate import LogNarrator
from flts_ray.store import Store
from flts_ray.streams.connect import producer
from tests.running import FLTS, Place, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SAYS = LogNarrator()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with NoidaBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running.brokers


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster that stays while the tests run."""
    import ray

    small = {"num_cpus": 2, "object_store_mb": 100, "dashboard_port": 0}
    config = parse_config({"name": "x", "data": {"snapshot": "latest"}, "ray": small})
    with ray_cluster(config):
        yield ray.get_runtime_context().gcs_address


def config_of(root: Path, broker: str, name: str, actors: int, **sections: Any) -> Config:
    return parse_config(
        {
            "name": name,
            "root": str(root),
            "data": {"snapshot": "latest"},
            "stream": {"brokers": broker, "topic": name, "partitions": 3},
            "ingest": {
                "actors": actors, "cpus_per_actor": 0.1, "segment_rows": 2000,
                "segment_age_s": 0.5, "status_s": 0.5,
            },
            **sections,
        }
    )  # fmt: skip


def send(config: Config, numbers: range, bad: bool = True) -> None:
    """One sample a number, and after every thousandth a message that is none."""
    assert config.stream.brokers is not None
    with closing(producer(config.stream, config.stream.brokers)) as out:
        for n in numbers:
            sample = b'{"unique_id":"s%d","ds":%d,"y":%d}' % (n % 7, 1_700_000_000 + n, n)
            out.send(config.stream.topic, sample, partition=n % 3)
            if bad and n % 1000 == 0:
                out.send(config.stream.topic, b"{nope", partition=n % 3)
        out.flush(30)


def stored(config: Config) -> list[int]:
    """The numbers that are stored, sorted, as often as they are."""
    store, topic = Store.open(config.root), config.stream.topic
    found: list[int] = []
    for epoch in epochs_in(store, topic):
        for key in segments(store, topic, epoch):
            rows: pa.Table = good_rows(read_table(store, key))
            found += [int(y) for y in rows.column("y").to_pylist()]
    return sorted(found)


def lag(config: Config) -> int | None:
    status = stream_status(config, Store.open(config.root), datetime.now(UTC))
    return status.lag if status else None


def table(config: Config) -> int | None:
    status = stream_status(config, Store.open(config.root), datetime.now(UTC))
    return status.table if status else None


def metrics() -> dict[str, float]:
    """Sums of ingestion's metrics on the node's export port, by name."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line[:1] not in ("#", "")]
    found: dict[str, float] = {}
    for line in lines:
        name = line.split("{")[0].removeprefix("ray_")
        if name.startswith("flts_ingest_"):
            found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def test_killed_actors_and_a_killed_supervisor_store_each_message_once(
    tmp_path: Path, broker: str, cluster: str
) -> None:
    import ray

    from flts_ray.ingest.fleet import NAMESPACE
    from flts_ray.ingest.supervisor import find

    config = config_of(tmp_path, broker, "kills", 2, ray={"address": cluster})
    actors = ingest.start(config, SAYS, compact_every_s=1.0)
    assert {one["of"] for one in actors} == {2}
    names = {one["name"] for one in ray.util.list_named_actors(all_namespaces=True)}
    assert {"flts-ingest-kills", "flts-ingest-kills-0", "flts-ingest-kills-1"} <= names
    with pytest.raises(Conflict, match="runs on this cluster already"):
        ingest.run(config, SAYS, until_end=True)

    supervisor = find("flts-ingest-kills")
    assert supervisor is not None
    worker = ray.get_actor("flts-ingest-kills-0", namespace=NAMESPACE)
    send(config, range(6000))
    victim = ray.get(worker.ping.remote())
    os.kill(victim, signal.SIGKILL)
    send(config, range(6000, 9000))
    os.kill(ray.get(supervisor.pid.remote()), signal.SIGKILL)
    send(config, range(9000, 12000))
    until(lambda: len(stored(config)) >= 12000, 60, "all of it in the store")

    until(lambda: table(config), 30, "a snapshot of the table")
    again = ingest.start(config, SAYS, compact_every_s=1.0)
    assert len(again) == 2  # the supervisor is back, and nothing is replaced
    reborn = ray.get(worker.ping.remote())
    assert reborn != victim
    until(lambda: metrics().get("flts_ingest_rows_total", 0) > 0, 30, "metrics of Ray")
    seen = metrics()
    assert seen["flts_ingest_segments_total"] > 0
    assert seen["flts_ingest_bad_rows_total"] > 0
    assert "flts_ingest_lag" in seen

    fewer = config.model_copy(update={"ingest": config.ingest.model_copy(update={"actors": 1})})
    assert [one["of"] for one in ingest.start(fewer, SAYS)] == [1]
    send(config, range(12000, 13000))
    until(lambda: len(stored(config)) >= 13000, 60, "what came after the change")
    assert [one["state"] for one in ingest.stop(config, SAYS)] == ["done"]
    assert ingest.stop(config, SAYS) == []
    left = {one["name"] for one in ray.util.list_named_actors(all_namespaces=True)}
    assert not [name for name in left if name.startswith("flts-ingest-kills")]

    assert stored(config) == list(range(13000))
    found = verify_stream(config, deep=True)
    assert (found.ok, found.commits) == (True, "checked")
    assert sum(report.bad_rows for report in found.epochs.values()) == 13
    assert lag(config) == 0


def test_a_run_to_the_end_leaves_when_all_is_stored(
    tmp_path: Path, broker: str, cluster: str
) -> None:
    config = config_of(tmp_path, broker, "whole", 2, ray={"address": cluster})
    ingest.fleet_of(config)  # makes the topic
    send(config, range(5000))
    views: list[IngestView] = []
    view = ingest.run(config, SAYS, until_end=True, watch=views.append)
    assert (view.totals["rows"], view.totals["bad_rows"], view.lag) == (5000, 5, 0)
    assert views[-1].done
    assert stored(config) == list(range(5000))


def test_an_interrupt_drains_and_leaves_nothing_behind(tmp_path: Path, broker: str) -> None:
    place = Place(tmp_path)
    config = config_of(tmp_path / "root", broker, "stopped", 1)
    (tmp_path / "flts.yaml").write_text(
        f"name: stopped\nroot: {tmp_path / 'root'}\ndata: {{snapshot: latest}}\n"
        f"stream: {{brokers: '{broker}', topic: stopped, partitions: 3}}\n"
        "ingest: {segment_age_s: 3600, status_s: 0.5}\n"
        "ray: {num_cpus: 1, object_store_mb: 100, dashboard_port: 0}\n"
    )
    ingest.fleet_of(config)
    send(config, range(500), bad=False)
    running = place.start([*FLTS, "ingest", "run"], "log")
    log = tmp_path / "log"
    until(lambda: lag(config) == 500, 90, "messages that wait for their segment")
    assert stored(config) == []
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert "stopped after a drain: 500 rows" in log.read_text()
    assert stored(config) == list(range(500))
    until(lambda: not place.processes(), 20, "the end of everything that was started")


def test_actors_that_stay_need_a_cluster_that_stays(
    tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = config_of(tmp_path, broker, "alone", 1)
    with pytest.raises(ConfigError, match="flts ingest run"):
        ingest.start(config, SAYS)
