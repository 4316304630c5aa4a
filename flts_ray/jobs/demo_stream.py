"""The demo's way from a file to a snapshot: through the broker, the actors and the table.

Design choices: the same functions as behind `flts replay`, `flts ingest run --until-end`, `verify`
and `compact`, one line told of each; what was done before is not done again, so that a second demo
only looks; what is sent follows from the file alone, so a broker that was killed and lost its last
second is sent the same messages for the same offsets, and the store, which holds those offsets,
takes none of them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from flts_ray.config import Config
from flts_ray.errors import DataError
from flts_ray.ingest.progress import IngestView
from flts_ray.ingest.verify import VerifyReport, verify_store
from flts_ray.jobs.folder import local_folder
from flts_ray.jobs.ingest import run as run_actors
from flts_ray.jobs.ingest_check import compact_stream
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.jobs.replay import replay
from flts_ray.jobs.up import brokers_of, local_stack
from flts_ray.report_stream import problem_lines
from flts_ray.s3_clients import endpoint
from flts_ray.services import Narrator
from flts_ray.sources.snapshot import find_snapshot
from flts_ray.store import Store
from flts_ray.streams import connect
from flts_ray.tune.progress import StudyView


def input_file(config: Config) -> Path:
    """Where the file lies that is sent to the topic."""
    return local_folder(config) / "input" / f"{config.stream.topic}.csv"


@contextmanager
def stream_servers(config: Config, narrator: Narrator) -> Iterator[None]:
    """Broker and S3 server for the length of the block; those of `flts up` where they run.

    What the configuration (broker) or the environment (S3) names is not started. Raises
    Unavailable if one does not start, Conflict if another command works in the folder.
    """
    begin = time.monotonic()
    s3 = config.root.startswith("s3://") and endpoint() is None
    if config.stream.brokers is not None and not s3:
        yield
        return
    with local_stack(config, s3=s3) as found:
        told = (("broker", found.brokers), ("S3", found.s3))
        named = ", ".join(f"{name} at {address}" for name, address in told if address)
        narrator.step("Servers", f"{named}{_took(begin)}")
        yield


def send(config: Config, narrator: Narrator, path: Path, rows: int) -> None:
    """Send the `rows` rows of the file to the topic, unless it holds as many messages.

    Raises DataError if it holds something else instead, Unavailable without the broker.
    """
    begin, topic = time.monotonic(), config.stream.topic
    there = sum(log_ends(config).values())
    if there >= rows:
        narrator.step("Stream", f"{there:,} samples are in topic {topic} already")
        return
    done = replay(
        config,
        brokers_of(config),
        str(path),
        progress=lambda sent, total: narrator.stage("samples", sent, total),
    )
    narrator.step("Stream", f"{done.sent:,} samples to topic {topic}{_took(begin)}")


def take_in(config: Config, narrator: Narrator) -> None:
    """From the topic into the store, by actors on this process's Ray cluster; then verify.

    Starts no actor where everything is stored. Raises DataError for a store that does not hold
    each offset once or holds more than the broker has, and what `jobs.ingest.run` raises.
    """
    begin = time.monotonic()
    ends, report = log_ends(config), _verified(config)
    waiting = not_stored(config, ends, report)
    if not waiting:
        narrator.step("Ingest", f"{_held(report)}; nothing new")
        return
    narrator.stage("stored", 0, waiting)

    def watch(view: IngestView) -> None:
        narrator.stage("stored", min(view.totals["messages"], waiting), waiting)

    try:
        run_actors(config, _Silent(), until_end=True, watch=watch)
    except KeyboardInterrupt:  # what the drain came to is no news here: the next demo goes on
        raise KeyboardInterrupt from None
    narrator.step("Ingest", f"{_held(_verified(config))}{_took(begin)}")


def tabulate(config: Config, narrator: Narrator) -> None:
    """Add what was stored to the table; its newest snapshot is what preparation reads."""
    begin = time.monotonic()
    compact_stream(config, narrator.stage)
    entry = find_snapshot(Store.open(config.root), config.stream.topic, "latest")
    narrator.step(
        "Snapshot", f"{entry.number}: {entry.rows:,} rows, {len(entry.files)} dates{_took(begin)}"
    )


def log_ends(config: Config) -> dict[int, int]:
    """Where the log of each partition ends; makes the topic where it is missing."""
    stream, brokers = config.stream, brokers_of(config)
    with closing(connect.admin(stream, brokers)) as clerk:
        clerk.create_topic(stream.topic, stream.partitions)
    with closing(connect.consumer(stream, brokers, group=f"{stream.group}-demo")) as reader:
        bounds = reader.bounds(reader.partitions())
    return {partition: end for partition, (_, end) in bounds.items()}


def not_stored(config: Config, ends: Mapping[int, int], report: VerifyReport) -> int:
    """Messages that are in the logs and not in the store.

    Raises DataError where a log ends before what is stored of it.
    """
    held = {partition: one.frontier for partition, one in report.partitions.items()}
    for partition, frontier in held.items():
        end = ends.get(partition, 0)
        if end < frontier:
            raise DataError(
                f"partition {partition} of topic {config.stream.topic} ends at {end}, but "
                f"{frontier} of its messages are stored: the broker lost what it was sent before "
                f"it was killed; begin anew: rm -r {local_folder(config)}, then the demo again"
            )
    return sum(end - held.get(partition, 0) for partition, end in ends.items())


def _verified(config: Config) -> VerifyReport:
    """The check of every stored byte. Raises DataError if there is a problem."""
    epoch = epoch_at(config, brokers_of(config))
    report = verify_store(Store.open(config.root), config.stream.topic, epoch, {}, deep=True)
    if not report.ok:
        problems = problem_lines(report)
        raise DataError(f"{len(report.problems)} problem(s) in what is stored", problems=problems)
    return report


def _held(report: VerifyReport) -> str:
    """What is stored, in a few words."""
    letters = f", {report.bad_rows:,} dead letters" if report.bad_rows else ""
    pieces = "segment" if report.segments == 1 else "segments"
    return f"{report.rows:,} rows in {report.segments:,} {pieces}{letters}, every byte verified"


def _took(begin: float) -> str:
    return f" ({time.monotonic() - begin:.1f} s)"


class _Silent:
    """A narrator of steps that are told in other words."""

    def step(self, title: str, detail: str = "") -> None:
        return

    def stage(self, name: str, done: int, total: int) -> None:
        return

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        return nullcontext(lambda view: None)
