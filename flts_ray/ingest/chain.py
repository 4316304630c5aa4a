"""The chain of segments: how far a partition has come, told by the store alone.

Design choices: each segment begins where the one before it ends, so the frontier is the end of the
last; the committed offset is a hint that saves listing everything and is believed only if a stored
segment says the same; a listing that runs while segments are stored may miss one and show the next,
so whatever it misses is asked for by its key, which the one before it tells; what does not continue
the chain then is an error with a remedy, since whoever wrote behind it would bury a gap or repeat
rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from flts_ray.errors import ArtifactError
from flts_ray.ingest.segment import (
    SegmentInfo,
    epoch_folder,
    parse_key,
    partition_folder,
    read_info,
    segment_key,
)
from flts_ray.store import NotFound, Store

_AT_ONCE = 8
_BEGIN = re.compile("[0-9]{1,19}")


@dataclass(frozen=True)
class Frontier:
    """Where a partition's chain ends.

    `offset` is the next one to store; `last_begin` where the last segment begins (None: there is
    none yet). `hint_was_wrong`: the committed offset said something that the store does not hold.
    """

    offset: int
    last_begin: int | None
    hint_was_wrong: bool = False


def segments(
    store: Store,
    topic: str,
    epoch: str,
    partition: int | None = None,
    after: str | None = None,
) -> list[str]:
    """Keys of the segments, by partition and offset; `after`: only keys that sort behind this one.

    Raises ArtifactError for an object there that is no segment.
    """
    folder = epoch_folder(topic, epoch)
    if partition is not None:
        folder = partition_folder(topic, epoch, partition)
    found = [parse_key(item.key) for item in store.list(folder, after)]
    return [segment_key(*parts) for parts in sorted(found)]


def read_infos(store: Store, keys: Sequence[str]) -> list[SegmentInfo]:
    """Facts of many segments, in the order of the keys, several requests at once."""
    if len(keys) < 2:
        return [read_info(store, key) for key in keys]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda key: read_info(store, key), keys))


def linked(
    infos: Sequence[SegmentInfo],
    reached: int,
    at: Callable[[int], SegmentInfo | None],
) -> list[SegmentInfo]:
    """One partition's segments with those between them that a listing missed, by offset.

    infos: by offset, behind `reached`; at: what is stored now of the segment that begins there.
    """
    whole: list[SegmentInfo] = []
    for info in infos:
        while reached < info.begin and (missed := at(reached)) is not None:
            whole.append(missed)
            reached = missed.end
        whole.append(info)
        reached = max(reached, info.end)
    return whole


def frontier(
    store: Store,
    topic: str,
    epoch: str,
    partition: int,
    hint: tuple[int, str] | None,
    start: int,
) -> Frontier:
    """Where to go on: follow the chain from the hint, or from its first segment.

    `hint` is the committed offset and its metadata, the begin of the segment that ends there;
    `start` is where a new chain begins (an older one may begin before it). The usual restart is
    one request for the segment of the hint and one listing of what follows it; without the
    metadata the segment is looked for in the listing. Raises ArtifactError for an object that is
    damaged, foreign or does not continue the chain.
    """
    known = _named(store, topic, epoch, partition, hint)
    keys = segments(store, topic, epoch, partition, known.key if known else None)
    if known is None and hint is not None:
        known = _ending(store, keys, hint[0])
        keys = [key for key in keys if known is None or key > known.key]
    newer = read_infos(store, keys)
    first = newer[0].begin if newer else start
    reached = known.end if known else min(start, first)
    newer = linked(newer, reached, partial(segment_at, store, topic, epoch, partition))
    _check_links(store, newer, reached)
    last = newer[-1] if newer else known
    offset = last.end if last else start
    wrong = hint is not None and known is None and hint[0] != offset
    return Frontier(offset, last.begin if last else None, wrong)


def segment_at(
    store: Store, topic: str, epoch: str, partition: int, begin: int
) -> SegmentInfo | None:
    """The segment that begins at an offset, if there is one. Raises ArtifactError (damaged)."""
    try:
        return read_info(store, segment_key(topic, epoch, partition, begin))
    except NotFound:
        return None


def _named(
    store: Store, topic: str, epoch: str, partition: int, hint: tuple[int, str] | None
) -> SegmentInfo | None:
    """The segment that the commit's metadata names, if it ends at the committed offset."""
    if hint is None or not _BEGIN.fullmatch(hint[1]):
        return None
    found = segment_at(store, topic, epoch, partition, int(hint[1]))
    return found if found and found.end == hint[0] else None


def _ending(store: Store, keys: Sequence[str], offset: int) -> SegmentInfo | None:
    """The segment that ends at an offset, if there is one: the last that begins before it."""
    before = [key for key in keys if parse_key(key).begin < offset]
    found = read_info(store, before[-1]) if before else None
    return found if found and found.end == offset else None


def _check_links(store: Store, newer: Sequence[SegmentInfo], reached: int) -> None:
    for info in newer:
        place = store.uri(info.key)
        if info.begin > reached:
            raise ArtifactError(
                f"{place}: the offsets [{reached}, {info.begin}) before it are not stored; "
                "restore the missing segments, or move this one and those behind it away and "
                "ingest again (flts ingest verify lists them)"
            )
        if info.begin < reached:
            raise ArtifactError(
                f"{place}: its offsets below {reached} are also in the segment before it; move "
                "the one that does not belong away (flts ingest verify compares them)"
            )
        reached = info.end
