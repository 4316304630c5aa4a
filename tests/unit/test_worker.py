"""A worker over a topic in memory and a store in a folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flts_ray.config import Config, parse_config
from flts_ray.errors import Conflict, Unavailable
from flts_ray.ingest.chain import segments
from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.segment import Batch, read_table
from flts_ray.ingest.verify import verify_store
from flts_ray.ingest.worker import Decodes, Worker
from flts_ray.ingest.worker_status import COUNTS, Stuck, status_key
from flts_ray.store import Created, Exists, FolderStore, Store
from flts_ray.streams.records import Records
from tests.memory_broker import MemoryConsumer, MemoryTopic, sample

EPOCH = "e" * 16


def config_of(root: Path, **ingest: object) -> Config:
    settings = {"segment_rows": 40, "poll_records": 15, "status_s": 0.01, **ingest}
    return parse_config(
        {"name": "t", "root": str(root), "data": {"snapshot": "latest"}, "ingest": settings}
    )


class Site:
    """One topic, one store, and workers on them."""

    def __init__(self, root: Path, partitions: int = 1) -> None:
        self.root = root
        self.topic = MemoryTopic(partitions)
        self.store: Store = FolderStore(str(root))
        self.started = 0

    def worker(
        self,
        consumer: MemoryConsumer | None = None,
        decoder: Decodes | None = None,
        index: int = 0,
        of: int = 1,
        epoch_now: Callable[[], str] | None = None,
        **ingest: object,
    ) -> Worker:
        self.started += 1
        config = config_of(self.root, **ingest)
        return Worker(
            config,
            self.store,
            consumer or MemoryConsumer(self.topic),
            decoder or Decoder({}, max_message_bytes=1000),
            epoch=EPOCH,
            writer=f"t-{index}-{self.started}",
            index=index,
            of=of,
            epoch_now=epoch_now,
        )

    def ingest(self, worker: Worker | None = None) -> Worker:
        worker = worker or self.worker()
        worker.run(threading.Event(), until_end=True)
        return worker

    def loads(self, partition: int = 0) -> list[float]:
        """What is stored of a partition, in the order of the chain."""
        keys = segments(self.store, "load", EPOCH, partition)
        return [y for key in keys for y in read_table(self.store, key)["y"].to_pylist()]

    def problems(self) -> list[str]:
        committed = {p: offset for p, (offset, _) in self.topic.committed.items()}
        report = verify_store(self.store, "load", EPOCH, committed, deep=True)
        return [str(problem) for problem in report.problems]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class FlakyStore(FolderStore):
    """Each of `outcomes` is for one PUT: "fail", or "lose" (stored, told as failed)."""

    def __init__(self, root: str, outcomes: list[str]) -> None:
        super().__init__(root)
        self.outcomes = outcomes
        self.sent: list[bytes] = []

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        self.sent.append(data)
        outcome = self.outcomes.pop(0) if self.outcomes else ""
        if outcome == "fail":
            raise Unavailable("503")
        answer = super().put_new(key, data, metadata)
        if outcome == "lose":
            raise Unavailable("the answer got lost")
        return answer


class Doubtful:
    """A decoder whose claims are away at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.decoder = Decoder({}, max_message_bytes=1000)

    def decode(self, records: Records) -> Batch:
        self.failures -= 1
        if self.failures >= 0:
            raise Unavailable("the claimed object's store is away")
        return self.decoder.decode(records)


class Blocked:
    """A decoder for which one partition's messages from an offset on cannot be decoded."""

    def __init__(self, partition: int, offset: int = 0) -> None:
        self.partition, self.offset = partition, offset
        self.decoder = Decoder({}, max_message_bytes=1000)

    def decode(self, records: Records) -> Batch:
        if records.partition == self.partition and records.offsets[-1] >= self.offset:
            raise Unavailable("s3://elsewhere: refused")
        return self.decoder.decode(records)


class Modest:
    """A decoder that takes at most three messages at once."""

    def __init__(self) -> None:
        self.decoder = Decoder({}, max_message_bytes=1000)

    def decode(self, records: Records) -> Batch:
        return self.decoder.decode(records.part(0, 3))


class Distant(MemoryConsumer):
    """While the broker is away nothing can be asked of it and nothing comes."""

    def partitions(self) -> list[int]:
        self._reach()
        return super().partitions()

    def poll(self, timeout_s: float, max_records: int) -> list[Records]:
        if self.away:
            threading.Event().wait(0.002)
            return []
        return super().poll(timeout_s, max_records)


def waits(worker: Worker) -> bool:
    """Whether partition 0 waits for what it cannot decode."""
    partition = worker.snapshot().partitions.get(0)
    return partition is not None and partition.waits != ""


@contextmanager
def running(worker: Worker) -> Iterator[list[BaseException]]:
    """A worker in a thread of its own until the block ends; what it raises."""
    stop, raised = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            worker.run(stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        thread.join(20)


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "it never happens"
        time.sleep(0.005)


def test_everything_up_to_the_end_is_stored_once_and_committed(site: Site) -> None:
    site.topic.add(0, 100)
    worker = site.ingest()
    assert site.loads() == [float(n) for n in range(100)]
    assert site.problems() == []
    last = segments(site.store, "load", EPOCH, 0)[-1]
    assert site.topic.committed == {0: (100, str(int(last[-28:-8])))}
    assert worker.snapshot().totals["segments"] == 3


def test_a_second_run_reads_only_what_is_new(site: Site) -> None:
    site.topic.add(0, 50)
    site.ingest()
    site.topic.add(0, 30)
    consumer = MemoryConsumer(site.topic)
    worker = site.ingest(site.worker(consumer))
    assert consumer.seeks == [(0, 50)]
    assert worker.snapshot().totals["messages"] == 30
    assert site.loads() == [float(n) for n in range(80)]


@pytest.mark.parametrize("wrong", [(10, "0"), (500, "499"), (37, "x"), (0, "")])
def test_a_wrong_commit_does_no_harm(site: Site, wrong: tuple[int, str]) -> None:
    site.topic.add(0, 50)
    site.ingest()
    right = site.topic.committed[0]
    site.topic.committed[0] = wrong
    site.ingest()
    assert site.topic.committed[0] == right
    assert site.problems() == [] and len(site.loads()) == 50


def test_bad_messages_are_rows_of_the_same_segment(site: Site) -> None:
    site.topic.messages[0] = [sample(0), b"{", None, sample(3), b"x" * 2000]
    worker = site.ingest()
    key = segments(site.store, "load", EPOCH, 0)[0]
    errors = read_table(site.store, key)["error"].to_pylist()
    assert errors == [None, "not_json", "empty", None, "too_large"]
    totals = worker.snapshot().totals
    assert (totals["rows"], totals["bad_rows"], totals["messages"]) == (2, 3, 5)


def test_a_stop_drains_what_was_read(site: Site) -> None:
    site.topic.add(0, 10)
    worker = site.worker(segment_age_s=1000)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_for(lambda: worker.snapshot().totals["messages"] == 10)
    assert site.loads() == []
    stop.set()
    thread.join(20)
    assert len(site.loads()) == 10 and site.problems() == []


def test_an_idle_stream_closes_its_last_segment(site: Site) -> None:
    site.topic.add(0, 3)
    worker = site.worker(segment_age_s=0.05)
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_for(lambda: len(site.loads()) == 3)
    stop.set()
    thread.join(20)
    assert worker.snapshot().totals["segments"] == 1


def test_failed_and_lost_answers_are_repeated_with_the_same_bytes(site: Site) -> None:
    store = FlakyStore(str(site.root), ["fail", "lose"])
    site.store = store
    site.topic.add(0, 45)
    worker = site.ingest()
    assert store.sent[0] == store.sent[1] == store.sent[2]
    assert site.loads() == [float(n) for n in range(45)] and site.problems() == []
    totals = worker.snapshot().totals
    assert totals["put_failures"] == 2 and totals["conflicts"] == 0 and totals["segments"] == 1


def test_it_gives_up_when_the_store_stays_away(site: Site) -> None:
    site.store = FlakyStore(str(site.root), ["fail"] * 1000)
    site.topic.add(0, 45)
    with pytest.raises(Unavailable, match="store_patience_s"):
        site.ingest(site.worker(store_patience_s=0.3))


def test_claims_that_cannot_be_read_now_are_read_later(site: Site) -> None:
    site.topic.add(0, 20)
    site.ingest(site.worker(decoder=Doubtful(2)))
    assert site.loads() == [float(n) for n in range(20)]


def test_two_owners_of_everything_store_everything_once(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=2)
    for partition in (0, 1):
        site.topic.add(partition, 400)
    workers = [site.worker(segment_rows=size) for size in (30, 47)]
    threads = [threading.Thread(target=site.ingest, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(site.loads(p) == [float(n) for n in range(400)] for p in (0, 1))
    assert site.problems() == []
    stored = sum(worker.snapshot().totals["rows"] for worker in workers)
    assert stored == 800


def test_each_worker_takes_its_share_of_the_partitions(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=5)
    for partition in range(5):
        site.topic.add(partition, 3)
    shares = [site.ingest(site.worker(index=i, of=2)).snapshot().partitions for i in (0, 1)]
    assert [sorted(share) for share in shares] == [[0, 2, 4], [1, 3]]
    assert all(len(site.loads(p)) == 3 for p in range(5))


def test_a_worker_without_partitions_ends_at_once(site: Site) -> None:
    assert site.ingest(site.worker(index=1, of=2)).snapshot().partitions == {}


def test_partitions_that_are_added_are_read_too(site: Site) -> None:
    site.topic.add(0, 5)
    worker, stop = site.worker(segment_age_s=0.05), threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_for(lambda: len(site.loads()) == 5)
    with site.topic.lock:
        site.topic.messages.append([sample(0)])
        site.topic.starts.append(0)
        site.topic.add(0, 5)
    wait_for(lambda: len(site.loads(1)) == 1 and len(site.loads()) == 10)
    stop.set()
    thread.join(20)
    assert site.problems() == []


def test_retention_is_counted_and_told(site: Site) -> None:
    site.topic.add(0, 20)
    site.ingest()
    site.topic.add(0, 60)
    site.topic.starts[0] = 50
    with capture_logs() as logs:
        worker = site.ingest()
    assert worker.snapshot().totals["lost"] == 30
    told = [entry for entry in logs if entry["event"] == "offsets_lost"]
    assert [(e["begin"], e["end"], e["log_level"]) for e in told] == [(20, 50, "error")]
    assert site.loads() == [float(n) for n in (*range(20), *range(50, 80))]
    assert site.problems() == []


def test_a_topic_made_anew_under_the_same_name_is_refused(site: Site) -> None:
    site.topic.add(0, 50)
    site.ingest()
    site.topic.messages[0] = [sample(0)]
    with pytest.raises(Conflict, match="generation"):
        site.ingest()
    assert len(site.loads()) == 50


def test_a_topic_made_anew_while_it_is_read_asks_for_a_new_start(site: Site) -> None:
    site.topic.add(0, 50)
    site.ingest()
    site.topic.messages[0] = [sample(0)]
    worker = site.worker(epoch_now=lambda: "another")
    with pytest.raises(Unavailable, match="made anew"):
        site.ingest(worker)


def test_one_halted_partition_does_not_stop_the_others(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=2)
    site.topic.add(0, 50)
    site.ingest()
    site.topic.messages[0] = [sample(0)]
    site.topic.add(1, 20)
    worker = site.worker()
    with pytest.raises(Conflict, match="partition 0"):
        site.ingest(worker)
    assert len(site.loads(1)) == 20
    assert "generation" in worker.snapshot().partitions[0].halted


def test_a_damaged_segment_halts_its_partition(site: Site) -> None:
    site.topic.add(0, 50)
    site.ingest()
    site.store.put(segments(site.store, "load", EPOCH, 0)[-1], b"not parquet")
    with pytest.raises(Conflict, match="parquet"):
        site.ingest()


def test_a_broker_that_does_not_answer_is_asked_again(site: Site) -> None:
    site.topic.add(0, 5)
    consumer = MemoryConsumer(site.topic)
    consumer.away = True
    worker = site.worker(consumer)
    thread = threading.Thread(target=site.ingest, args=(worker,))
    thread.start()
    wait_for(lambda: bool(worker.snapshot().partitions))
    consumer.away = False
    thread.join(20)
    assert len(site.loads()) == 5


def test_a_group_gives_and_takes_partitions(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=2)
    site.topic.add(0, 10)
    site.topic.add(1, 10)
    consumer, stop = MemoryConsumer(site.topic), threading.Event()
    worker = site.worker(consumer, ownership="subscribe", segment_age_s=1000)
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_for(lambda: worker.snapshot().totals["messages"] == 20)
    consumer.revoke([1])
    wait_for(lambda: sorted(worker.snapshot().partitions) == [0])
    stop.set()
    thread.join(20)
    assert len(site.loads(0)) == 10 and site.loads(1) == []
    assert worker.snapshot().totals["rebalances"] == 2


def test_its_status_lies_in_the_store_as_plain_json(site: Site) -> None:
    site.topic.add(0, 50)
    worker = site.ingest()
    status = json.loads(site.store.get(status_key("load", EPOCH, 0)))
    assert set(status["totals"]) == set(COUNTS)
    assert status["totals"]["rows"] == 50 and status["totals"]["bytes"] > 1000
    partition = status["partitions"]["0"]
    assert (partition["position"], partition["frontier"], partition["lag"]) == (50, 50, 0)
    assert json.loads(worker.snapshot().as_json()) == status


def test_events_are_few_and_named(site: Site) -> None:
    site.topic.add(0, 200)
    with capture_logs() as logs:
        site.ingest(site.worker(segment_rows=100))
    assert {entry["event"] for entry in logs} == {
        "ingest_worker_started", "partition_recovered", "segment_stored", "ingest_draining",
        "ingest_worker_ended",
    }  # fmt: skip
    assert len(logs) <= 8


def test_what_cannot_be_decoded_keeps_no_other_partition_waiting(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=2)
    site.topic.add(0, 5)
    site.topic.add(1, 5)
    worker = site.worker(decoder=Blocked(0), store_patience_s=0.1, segment_age_s=0.05)
    with running(worker) as raised:
        wait_for(lambda: waits(worker))
        began = time.monotonic()
        wait_for(lambda: len(site.loads(1)) == 5 and time.monotonic() > began + 1.5)
        site.topic.add(1, 5)
        wait_for(lambda: len(site.loads(1)) == 10)
        assert "refused" in worker.snapshot().partitions[0].waits
        assert raised == []
    assert raised == [] and site.loads(0) == []


def test_a_run_to_the_end_names_what_it_could_not_decode(tmp_path: Path) -> None:
    site = Site(tmp_path, partitions=2)
    site.topic.add(0, 20)
    site.topic.add(1, 50)
    worker = site.worker(decoder=Blocked(0, 18), store_patience_s=0.5, poll_records=7)
    with pytest.raises(Stuck, match=r"partition 0.*offset 14.*patience_s \(0.5 s\): .*refused"):
        site.ingest(worker)
    assert site.loads(0) == [float(n) for n in range(14)]
    assert len(site.loads(1)) == 50
    assert site.problems() == []


def test_messages_that_a_batch_leaves_over_are_read_again(site: Site) -> None:
    site.topic.add(0, 100)
    consumer = MemoryConsumer(site.topic)
    worker = site.ingest(site.worker(consumer, decoder=Modest()))
    assert site.loads() == [float(n) for n in range(100)] and site.problems() == []
    assert consumer.seeks[:3] == [(0, 0), (0, 3), (0, 6)]
    totals = worker.snapshot().totals
    assert totals["messages"] == totals["rows"] == 100
    assert totals["bytes"] == sum(len(value or b"") for value in site.topic.messages[0])
    assert totals["lost"] == totals["conflicts"] == 0


def test_a_broker_that_goes_away_for_a_while_ends_nothing(site: Site) -> None:
    site.topic.add(0, 5)
    consumer = Distant(site.topic)
    worker = site.worker(consumer, segment_age_s=0.05)
    with running(worker) as raised:
        wait_for(lambda: len(site.loads()) == 5)
        for known in (False, True):
            consumer.away = True
            consumer.away_since = 1.0 if known else None
            told = worker.snapshot().updated_at
            wait_for(lambda told=told: worker.snapshot().updated_at > told)  # type: ignore[misc]
            time.sleep(0.1)
            assert raised == []
            consumer.away, consumer.away_since = False, None
        site.topic.add(0, 5)
        wait_for(lambda: len(site.loads()) == 10)
    assert raised == [] and site.problems() == []


@pytest.mark.parametrize("away_since", [1.0, None])
def test_a_topic_made_anew_during_an_outage_is_noticed_before_it_is_read(
    site: Site, away_since: float | None
) -> None:
    site.topic.add(0, 5)
    consumer, epoch = Distant(site.topic), [EPOCH]

    def epoch_now() -> str:
        if consumer.away:
            raise Unavailable("the broker does not answer")
        return epoch[0]

    worker = site.worker(consumer, epoch_now=epoch_now, segment_rows=5, segment_age_s=0.05)
    with running(worker) as raised:
        wait_for(lambda: len(site.loads()) == 5)
        consumer.away, consumer.away_since = True, away_since
        for _ in range(3):
            told = worker.snapshot().updated_at
            wait_for(lambda told=told: worker.snapshot().updated_at > told)  # type: ignore[misc]
        epoch[0] = "another"
        site.topic.messages[0] = [sample(1000 + n) for n in range(25)]
        consumer.away, consumer.away_since = False, None
        wait_for(lambda: bool(raised))
    assert isinstance(raised[0], Unavailable) and "made anew" in str(raised[0])
    assert site.loads() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_topic_whose_identity_nobody_tells_after_an_outage_is_read_later(site: Site) -> None:
    consumer, silent = Distant(site.topic), [True]

    def epoch_now() -> str:
        if silent[0]:
            raise Unavailable("the broker does not say")
        return EPOCH

    worker = site.worker(consumer, epoch_now=epoch_now, segment_age_s=0.05)
    with running(worker) as raised:
        wait_for(lambda: 0 in worker.snapshot().partitions)
        consumer.away, consumer.away_since = True, 1.0
        time.sleep(0.1)
        site.topic.add(0, 5)
        consumer.away, consumer.away_since = False, None
        wait_for(lambda: waits(worker))
        assert site.loads() == []
        silent[0] = False
        wait_for(lambda: len(site.loads()) == 5)
    assert raised == []
