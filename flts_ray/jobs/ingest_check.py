"""Looks at what ingestion stored, and makes a table of it.

Design choices: the store alone can be checked and compacted without a broker; where one answers,
its commits are checked too, and its topic's present life is the one that is compacted; compaction
that repeats by itself also sweeps, since otherwise each adds files that nobody ever removes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from flts_ray.config import Config
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.faults import Faults
from flts_ray.ingest.segment import ROOT, epoch_folder
from flts_ray.ingest.verify import VerifyReport, verify_store
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.jobs.stream_status import stream_status
from flts_ray.jobs.up import adopt_local, brokers_of
from flts_ray.prepare.run import AUTO_LOCAL_BYTES
from flts_ray.prepare.steps import Progress, Run, in_turn, silent
from flts_ray.store import Store
from flts_ray.streams.connect import consumer


@dataclass(frozen=True)
class Verified:
    """A report for each life of the topic; `commits`: "checked", or why they were not."""

    epochs: Mapping[str, VerifyReport]
    commits: str

    @property
    def ok(self) -> bool:
        return all(report.ok for report in self.epochs.values())


def verify_stream(
    config: Config,
    *,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Check all that was stored of the topic; `progress` (done, total) while bytes are read.

    Raises DataError where nothing was stored, Unavailable without the store.
    """
    adopt_local(config)
    store, topic = Store.open(config.root), config.stream.topic
    epochs = epochs_in(store, topic)
    if not epochs:
        raise DataError(
            f"{store.uri(f'{ROOT}/{topic}')}: no segment is stored; `flts ingest run` writes them"
        )
    # Commits follow segments, so those are asked for first.
    try:
        current, committed = _commits(config)
        told = "checked"
    except Unavailable as error:
        current, committed, told = "", {}, f"not checked: {error}"
    reports = {
        epoch: verify_store(
            store, topic, epoch, committed if epoch == current else {}, deep, progress
        )
        for epoch in epochs
    }
    return Verified(reports, told)


def epochs_in(store: Store, topic: str) -> list[str]:
    """Lives of the topic of which something is stored."""
    keys = (item.key.split("/") for item in store.list(f"{ROOT}/{topic}"))
    return sorted({parts[2] for parts in keys if len(parts) > 3})


def compact_stream(config: Config, progress: Progress = silent, sweep: bool = False) -> str:
    """Add what is stored since the last time to the table. Returns what there is now, in a line.

    `sweep`: then remove files that no reader needs any more, as `ingest.sweep` does by default.
    Raises DataError where nothing was stored, Unavailable without the store.
    """
    adopt_local(config)
    store, topic = Store.open(config.root), config.stream.topic
    epoch = _present(config, store)
    if epoch is None:
        raise DataError(
            f"{store.uri(f'{ROOT}/{topic}')}: no segment is stored; `flts ingest run` writes them"
        )
    said = _compacted(config, store, epoch, progress)
    return f"{said}{_swept(config, store, epoch)}" if sweep else said


def compact_told(config: Config, brokers: str) -> str:
    """The same, swept, for a topic's present life at these brokers; runs in a task of a cluster."""
    store, epoch = Store.open(config.root), epoch_at(config, brokers)
    return f"{_compacted(config, store, epoch)}{_swept(config, store, epoch)}"


def _compacted(config: Config, store: Store, epoch: str, progress: Progress = silent) -> str:
    from flts_ray.ingest.compact import compact

    topic = config.stream.topic
    run = _runner(config, sum(item.size for item in store.list(epoch_folder(topic, epoch))))
    entry = compact(store, topic, epoch, run=run, faults=_faults(), progress=progress)
    return f"snapshot {entry.number}: {entry.rows:,} rows in {len(entry.files)} files"


def _swept(config: Config, store: Store, epoch: str) -> str:
    from flts_ray.ingest.sweep import sweep

    gone = sweep(store, config.stream.topic, epoch, datetime.now(UTC))
    return f"; {len(gone):,} old files removed" if gone else ""


def _faults() -> Faults:
    return Faults.from_environment(os.environ)


def _runner(config: Config, size: int) -> Run:
    """As `prepare.engine` says; by itself Ray Data where it is worth its start."""
    wanted = config.prepare.engine
    if wanted == "local" or (wanted == "auto" and size < AUTO_LOCAL_BYTES):
        return in_turn
    from flts_ray.ingest.compact_ray import on_ray

    return on_ray(config.ray)


def _present(config: Config, store: Store) -> str | None:
    try:
        return epoch_at(config, brokers_of(config))
    except Unavailable:
        found = stream_status(config, store, datetime.now(UTC))
        return found.epoch or None if found else None


def _commits(config: Config) -> tuple[str, dict[int, int]]:
    brokers = brokers_of(config)
    epoch = epoch_at(config, brokers)
    with closing(consumer(config.stream, brokers, group=config.stream.group)) as reader:
        found = reader.committed(reader.partitions())
    return epoch, {partition: one[0] for partition, one in found.items() if one is not None}
