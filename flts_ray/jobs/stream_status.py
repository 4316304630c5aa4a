"""How far ingestion is, read from the store alone: no broker, no Ray, no process is asked.

Design choices: what is durable is told by the segments, what is not by the status that every worker
leaves; both are read as they are, and how old the second is, is told with it; of a topic that was
created again the life somebody works on is shown; dead letters are summed from the segments' own
facts, unless there are so many that the sum would keep people waiting.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flts_ray.config import Config
from flts_ray.errors import ArtifactError
from flts_ray.ingest.chain import read_infos
from flts_ray.ingest.restarts import WINDOW_S
from flts_ray.ingest.segment import ROOT, SegmentInfo, SegmentKey, parse_key, segment_key
from flts_ray.store import NotFound, Store

SUMMED = 2000
"""Most segments whose facts are read."""
PATIENCE = 3.0
"""A status is old when this many intervals have passed without a new one."""


@dataclass(frozen=True)
class PartitionLine:
    """One partition. `frontier`: next offset to store; None: not known (`lag`: to its worker)."""

    partition: int
    segments: int
    frontier: int | None
    lag: int | None
    rows: int | None
    dead_letters: int | None
    halted: str = ""
    waits: str = ""


@dataclass(frozen=True)
class WorkerLine:
    """What one worker said of itself `age_s` seconds ago. `old`: it should have said more since."""

    index: int
    of: int
    age_s: float
    old: bool


@dataclass(frozen=True)
class StreamStatus:
    """One life of a topic. `troubles`: actors that were started again lately, and why."""

    topic: str
    epoch: str
    partitions: tuple[PartitionLine, ...]
    workers: tuple[WorkerLine, ...]
    table: int | None
    troubles: tuple[str, ...]

    @property
    def lag(self) -> int | None:
        """Messages of all partitions that are not stored yet; None: nobody knows of all."""
        known = [line.lag for line in self.partitions if line.lag is not None]
        return sum(known) if known and len(known) == len(self.partitions) else None


def stream_status(config: Config, store: Store, now: datetime) -> StreamStatus | None:
    """Look around; None where nothing was ever ingested from the topic.

    Raises Unavailable if the store cannot be used.
    """
    topic = config.stream.topic
    chains = _chains(store, topic)
    told, troubles = _told(store, topic, now)
    epoch = _current(chains, told)
    if epoch is None:
        return None if not troubles else StreamStatus(topic, "", (), (), None, troubles)
    statuses = told.get(epoch, ())
    return StreamStatus(
        topic=topic,
        epoch=epoch,
        partitions=_lines(store, chains.get(epoch, {}), statuses),
        workers=tuple(_worker(one, now, config.ingest.status_s) for one in statuses),
        table=_newest_table(store, topic, epoch),
        troubles=troubles,
    )


def _chains(store: Store, topic: str) -> dict[str, dict[int, list[SegmentKey]]]:
    """Segments by epoch and partition, in order."""
    found: dict[str, dict[int, list[SegmentKey]]] = defaultdict(lambda: defaultdict(list))
    for item in store.list(f"{ROOT}/{topic}"):
        try:
            key = parse_key(item.key)
        except ArtifactError:
            continue  # `flts ingest verify` names it
        found[key.epoch][key.partition].append(key)
    return found


def _told(
    store: Store, topic: str, now: datetime
) -> tuple[dict[str, list[dict[str, Any]]], tuple[str, ...]]:
    """Statuses by epoch, and troubles."""
    statuses: dict[str, list[dict[str, Any]]] = defaultdict(list)
    troubles: list[str] = []
    for item in store.list(f"ingest/{topic}"):
        parts = item.key.split("/")[2:]
        content = _json(store, item.key) if item.key.endswith(".json") else None
        if content is None:
            continue
        if parts[0] == "starts":
            troubles += _trouble(parts[-1].removesuffix(".json"), content, now)
        elif len(parts) == 3 and parts[1] == "status" and "partitions" in content:
            statuses[parts[0]].append(content)
    return statuses, tuple(troubles)


def _json(store: Store, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.get(key))
    except (NotFound, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _trouble(name: str, starts: Mapping[str, Any], now: datetime) -> list[str]:
    recent = [at for at in starts.get("at", ()) if now.timestamp() - at < WINDOW_S]
    if len(recent) < 2:
        return []
    why = starts.get("error") or "its process was killed"
    return [f"{name} was started {len(recent)} times in the last {WINDOW_S / 60:.0f} min: {why}"]


def _current(
    chains: Mapping[str, Mapping[int, Sequence[SegmentKey]]],
    told: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str | None:
    """The epoch somebody worked on last; without any status the one with the most segments."""
    if told:
        return max(told, key=lambda epoch: max(one["updated_at"] for one in told[epoch]))
    sizes = {epoch: sum(map(len, parts.values())) for epoch, parts in chains.items()}
    return max(sizes, key=lambda epoch: (sizes[epoch], epoch), default=None)


def _lines(
    store: Store,
    chains: Mapping[int, Sequence[SegmentKey]],
    statuses: Sequence[Mapping[str, Any]],
) -> tuple[PartitionLine, ...]:
    said: dict[int, Mapping[str, Any]] = {}
    for status in sorted(statuses, key=lambda one: str(one["updated_at"])):
        said |= {int(partition): one for partition, one in status["partitions"].items()}
    count = sum(map(len, chains.values()))
    return tuple(
        _line(store, partition, chains.get(partition, ()), said.get(partition), count <= SUMMED)
        for partition in sorted({*chains, *said})
    )


def _line(
    store: Store,
    partition: int,
    chain: Sequence[SegmentKey],
    said: Mapping[str, Any] | None,
    sum_all: bool,
) -> PartitionLine:
    wanted = chain if sum_all else chain[-1:]
    infos = _infos(store, wanted)
    complete = sum_all and len(infos) == len(chain)
    frontier = infos[-1].end if infos else None if chain else 0
    end = said["end"] if said else None
    return PartitionLine(
        partition=partition,
        segments=len(chain),
        frontier=frontier,
        # The store may be ahead of a worker's last status, never the other way round.
        lag=None if end is None or frontier is None else max(0, end - frontier),
        rows=sum(info.rows for info in infos) if complete else None,
        dead_letters=sum(info.bad_rows for info in infos) if complete else None,
        halted=str(said.get("halted", "")) if said else "",
        waits=str(said.get("waits", "")) if said else "",
    )


def _infos(store: Store, chain: Sequence[SegmentKey]) -> list[SegmentInfo]:
    try:
        return read_infos(store, [segment_key(*key) for key in chain])
    except (ArtifactError, NotFound):
        return []  # `flts ingest verify` names it


def _worker(status: Mapping[str, Any], now: datetime, status_s: float) -> WorkerLine:
    updated = datetime.fromisoformat(status["updated_at"])
    age_s = max(0.0, (now - updated.astimezone(UTC)).total_seconds())
    silent = age_s > PATIENCE * status_s and not status.get("ended", False)
    return WorkerLine(status["index"], status["of"], age_s, silent)


def _newest_table(store: Store, topic: str, epoch: str) -> int | None:
    entries = [item.key for item in store.list(f"table/{topic}/{epoch}/log")]
    name = entries[-1].rpartition("/")[2].removesuffix(".json") if entries else ""
    return int(name) if name.isdecimal() else None
