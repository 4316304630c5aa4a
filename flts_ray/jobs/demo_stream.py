"""The demo's way from a file to a snapshot: through the broker, the actors and the table.

Design choices: the same functions as behind `flts replay`, `flts ingest run --until-end`, `verify`
and `compact`, one line told of each; what was done before is not done again, so that a second demo
only looks; what is sent follows from the file alone, so a broker that was killed and lost its last
second is sent the same messages for the same offsets, and the store never takes them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
    """Broker and S3 server for the length of the block, unless others are configured or run."""
    begin = time.monotonic()
    wants_s3 = config.root.startswith("s3://") and endpoint() is None
    if config.stream.brokers is not None and not wants_s3:
        yield
        return
    with local_stack(config, s3=wants_s3) as found:
        told = [("broker", found.brokers), ("S3", found.s3)]
        named = ", ".join(f"{name} {address}" for name, address in told if address)
        narrator.step("Servers", f"{named}{_took(begin)}")
        yield


def send(config: Config, narrator: Narrator, path: Path) -> None:
    """Send the rows of the file to the topic, those that are not there yet.

    Raises DataError if the topic holds something else, Unavailable without the broker.
    """
    begin, topic = time.monotonic(), config.stream.topic
    done = replay(
        config,
        brokers_of(config),
        str(path),
        progress=lambda sent, total: narrator.stage("samples", sent, total),
    )
    if done.sent:
        narrator.step("Stream", f"{done.sent:,} samples sent to topic {topic}{_took(begin)}")
    else:
        narrator.step("Stream", f"{done.already:,} samples are in topic {topic} already")


def take_in(config: Config, narrator: Narrator) -> None:
    """From the topic into the store, by actors on the Ray cluster of this process, and verified.

    Starts none where everything is stored. Raises DataError for a store that does not hold each
    offset once, or holds offsets that the broker lost, and like `jobs.ingest.run`.
    """
    begin = time.monotonic()
    total = sum(_log_ends(config).values())
    report = _verified(config)
    if _stored(report) == total:
        narrator.step("Ingest", f"{_held(report)}, stored already")
        return
    with _bar(narrator, total) as watch:
        run_actors(config, _Silent(), until_end=True, watch=watch)
    narrator.step("Ingest", f"{_held(_verified(config))}{_took(begin)}")


def tabulate(config: Config, narrator: Narrator) -> None:
    """Add what was stored to the table, of which the newest snapshot is read."""
    begin = time.monotonic()
    compact_stream(config, narrator.stage)
    entry = find_snapshot(Store.open(config.root), config.stream.topic, "latest")
    narrator.step("Snapshot", f"{entry.number}: {entry.rows:,} rows of {len(entry.files)} dates"
    f"{_took(begin)}")
