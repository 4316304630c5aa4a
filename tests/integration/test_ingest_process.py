"""Real processes on a real broker, killed wherever it hurts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flts_ray.ingest.faults import POINTS
from flts_ray.local.broker import NoidaBroker
from flts_ray.local.s3 import S3Server
from tests.ingesting import SMALL, Ingesting, expected, freeze, wait_until, wake

pytestmark = pytest.mark.integration

MESSAGES = 4000
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoidaBroker]:
    with NoidaBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@dataclass(frozen=True)
class Left:
    """What a run leaves: the rows of each partition's segments, and the table made of them."""

    rows: list[pa.Table]
    table: list[tuple[str, str]]


@pytest.fixture(scope="module")
def undisturbed(broker: NoidaBroker, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a run without faults leaves of the same messages."""
    site = Ingesting(tmp_path_factory.mktemp("undisturbed"), broker.brokers, "undisturbed")
    site.create()
    site.produce(0, MESSAGES)
    assert site.run() == 0, site.log()
    tables = site.tables()
    for partition, table in enumerate(tables):
        good = table.filter(pc.is_null(table["error"]))
        rows = list(zip(good["offset"].to_pylist(), good["y"].to_pylist(), strict=True))
        assert rows == expected(0, MESSAGES, site.partitions, partition)
    return Left(tables, site.compacted())


def site_with_messages(folder: Path, broker: NoidaBroker, topic: str) -> Ingesting:
    site = Ingesting(folder, broker.brokers, topic)
    site.create()
    site.produce(0, MESSAGES)
    return site


def assert_same(site: Ingesting, undisturbed: Left) -> None:
    report = site.verified()
    assert report.ok, report.problems
    assert report.lost == 0
    for stored, wanted in zip(site.tables(), undisturbed.rows, strict=True):
        assert stored.equals(wanted)
    assert site.compacted() == undisturbed.table


@pytest.mark.parametrize("point", [point for point in POINTS if point != "compacting"])
def test_a_process_killed_anywhere_loses_and_repeats_nothing(
    point: str, broker: NoidaBroker, undisturbed: Left, tmp_path: Path
) -> None:
    site = site_with_messages(tmp_path, broker, f"crash-{point}")
    assert site.run(crash=f"{point}:2") == KILLED
    assert site.run() == 0, site.log()
    assert_same(site, undisturbed)


def test_two_owners_of_every_partition(
    broker: NoidaBroker, undisturbed: Left, tmp_path: Path
) -> None:
    site = site_with_messages(tmp_path, broker, "two-owners")
    owners = [site.start(log=f"{who}.log") for who in range(2)]
    assert [owner.wait(60) for owner in owners] == [0, 0]
    assert_same(site, undisturbed)


def test_a_zombie_that_wakes_up_behind_its_successor(
    broker: NoidaBroker, undisturbed: Left, tmp_path: Path
) -> None:
    site = site_with_messages(tmp_path, broker, "zombie")
    zombie = site.start(log="zombie.log")
    try:
        wait_until(lambda: site.stored() >= 1, what="a segment")
        freeze(zombie)
        assert site.run() == 0, site.log()
    finally:
        wake(zombie)
    assert zombie.wait(60) == 0, site.log("zombie.log")
    assert_same(site, undisturbed)


def test_a_terminated_process_stores_what_it_has_read(
    broker: NoidaBroker, undisturbed: Left, tmp_path: Path
) -> None:
    site = site_with_messages(tmp_path, broker, "drained")
    patient = Ingesting(tmp_path, broker.brokers, "drained", ingest={**SMALL, "segment_age_s": 600})
    process = patient.start(until_end=False)
    wait_until(lambda: site.stored() >= 4, what="four segments")
    process.terminate()
    assert process.wait(60) == 0, site.log()
    assert patient.events()[-1]["event"] == "ingest_worker_ended"
    assert site.run() == 0
    assert_same(site, undisturbed)


def test_a_bucket_is_as_good_as_a_folder(
    broker: NoidaBroker,
    undisturbed: Left,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with S3Server(tmp_path / "s3", bucket="ingest") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        site = Ingesting(
            tmp_path, broker.brokers, "bucket", root="s3://ingest/t",
            environment=server.environment(),
        )  # fmt: skip
        site.create()
        site.produce(0, MESSAGES)
        assert site.run(crash="put_sent:2") == KILLED
        owners = [site.start(log=f"{who}.log") for who in range(2)]
        assert [owner.wait(60) for owner in owners] == [0, 0]
        assert_same(site, undisturbed)
