"""Does the store hold each offset once? A check of the segments, from a listing alone.

Design choices: pure over what was listed, so that every kind of damage can be tested without a
store; it never stops at the first problem; reading the bytes is an option, since it costs the
whole store's traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from flts_ray.errors import ArtifactError
from flts_ray.ingest.chain import linked
from flts_ray.ingest.segment import (
    SegmentInfo,
    decode_info,
    decode_table,
    epoch_folder,
    parse_key,
    read_info,
    segment_key,
)
from flts_ray.ingest.segment_faults import RowCode, faults, used_offsets
from flts_ray.store import NotFound, Store

_AT_ONCE = 8
Code = (
    Literal["foreign", "unreadable", "misplaced", "gap", "beyond_gap", "overlap", "commit_beyond"]
    | RowCode
)
Listed = tuple[str, SegmentInfo | ArtifactError]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the object's key, and the offsets [begin, end) it is about."""

    code: Code
    partition: int
    key: str
    begin: int
    end: int
    message: str


@dataclass(frozen=True)
class Checked:
    """One partition: its segments, the offsets [0, frontier) they hold, and sums.

    `unused` counts offsets without any row that are not counted as lost either (the broker gave
    none there: transaction marks, compaction); None unless bytes were read.
    """

    segments: int
    frontier: int
    rows: int
    bad_rows: int
    lost: int
    size: int
    committed: int | None
    unused: int | None = None


@dataclass(frozen=True)
class VerifyReport:
    """Problems in order of partitions and offsets, and what each partition holds."""

    problems: tuple[Problem, ...]
    partitions: Mapping[int, Checked]
    deep: bool

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    @property
    def segments(self) -> int:
        """Segments of all partitions."""
        return sum(part.segments for part in self.partitions.values())

    @property
    def rows(self) -> int:
        """Good rows of all partitions."""
        return sum(part.rows for part in self.partitions.values())

    @property
    def bad_rows(self) -> int:
        """Error rows of all partitions."""
        return sum(part.bad_rows for part in self.partitions.values())

    @property
    def lost(self) -> int:
        """Offsets that the broker no longer had, of all partitions."""
        return sum(part.lost for part in self.partitions.values())


def verify(
    listing: Sequence[Listed],
    committed: Mapping[int, int],
    read: Callable[[str], bytes] | None = None,
) -> VerifyReport:
    """Check all segments of one epoch of a topic.

    `listing` pairs each key with its facts, or with the error of reading them; `committed` are the
    offsets committed for the partitions. Each chain begins at offset 0. `read` gives an object's
    bytes: then counts, checksum, times, order and range of the rows are checked too, one segment
    in memory at a time.
    """
    problems: list[Problem] = []
    good: list[SegmentInfo] = []
    for key, info in listing:
        problem = _misfit(key, info)
        if problem:
            problems.append(problem)
        elif isinstance(info, SegmentInfo):
            good.append(info)
    good.sort(key=lambda info: (info.partition, info.begin))
    partitions: dict[int, Checked] = {}
    for partition, found in groupby(good, key=lambda info: info.partition):
        chain = list(found)
        partitions[partition] = _sums(chain, committed.get(partition))
        problems += _broken_links(chain)
        if read is not None:
            inside, unused = _bytes_of(chain, read)
            problems += inside
            partitions[partition] = replace(partitions[partition], unused=unused)
    problems += _commits(partitions, committed)
    problems.sort(key=lambda p: (p.partition, p.begin, p.key))
    return VerifyReport(tuple(problems), partitions, read is not None)


def verify_store(
    store: Store,
    topic: str,
    epoch: str,
    committed: Mapping[int, int],
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """List and check what the store holds; `deep` reads every segment.

    Take `committed` before the call: ingestion may go on during it, and commits follow segments.
    `progress` is told how many segments of how many were read. Raises Unavailable.
    """
    keys = [item.key for item in store.list(epoch_folder(topic, epoch))]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        listing = list(zip(keys, pool.map(lambda key: _facts(store, key), keys), strict=True))
    listing += _missed(store, topic, epoch, listing)
    read = _counted(store, len(listing), progress) if deep else None
    return verify(listing, committed, read)


def _missed(store: Store, topic: str, epoch: str, listing: Sequence[Listed]) -> list[Listed]:
    """Segments that were stored while the listing had passed their place already."""
    good = [info for key, info in listing if not _misfit(key, info)]
    infos = [info for info in good if isinstance(info, SegmentInfo)]
    infos.sort(key=lambda info: (info.partition, info.begin))
    listed = {key for key, _ in listing}
    found: list[Listed] = []
    for partition, chain in groupby(infos, key=lambda info: info.partition):

        def at(begin: int, partition: int = partition) -> SegmentInfo | None:
            key = segment_key(topic, epoch, partition, begin)
            info = None if key in listed else _facts(store, key)
            return info if isinstance(info, SegmentInfo) else None

        whole = linked(list(chain), 0, at)
        found += [(info.key, info) for info in whole if info.key not in listed]
    return found


def _facts(store: Store, key: str) -> SegmentInfo | ArtifactError:
    try:
        return read_info(store, key)
    except ArtifactError as error:
        return error
    except NotFound as error:
        return ArtifactError(str(error))


def _counted(
    store: Store, total: int, progress: Callable[[int, int], None] | None
) -> Callable[[str], bytes]:
    done = 0

    def read(key: str) -> bytes:
        nonlocal done
        data = store.get(key)
        done += 1
        if progress is not None:
            progress(done, total)
        return data

    return read


def _misfit(key: str, info: SegmentInfo | ArtifactError) -> Problem | None:
    try:
        place = parse_key(key)
    except ArtifactError as error:
        return Problem("foreign", -1, key, 0, 0, str(error))
    if isinstance(info, ArtifactError):
        return Problem("unreadable", place.partition, key, place.begin, place.begin, str(info))
    if info.key != key:
        message = f"{key}: it says that it is {info.key}"
        return Problem("misplaced", place.partition, key, info.begin, info.end, message)
    return None


def _sums(chain: Sequence[SegmentInfo], committed: int | None) -> Checked:
    return Checked(
        segments=len(chain),
        frontier=_frontier(chain),
        rows=sum(info.rows for info in chain),
        bad_rows=sum(info.bad_rows for info in chain),
        lost=sum(info.lost for info in chain),
        size=sum(info.size for info in chain),
        committed=committed,
    )


def _frontier(chain: Sequence[SegmentInfo]) -> int:
    reached = 0
    for info in chain:
        if info.begin > reached:
            break
        reached = max(reached, info.end)
    return reached


def _broken_links(chain: Sequence[SegmentInfo]) -> Iterator[Problem]:
    reached, gap = 0, False
    for info in chain:
        if info.begin > reached:
            yield Problem(
                "gap", info.partition, info.key, reached, info.begin,
                f"{info.key}: the offsets [{reached}, {info.begin}) before it are not stored",
            )  # fmt: skip
            gap = True
        if info.begin < reached:
            until = min(reached, info.end)
            yield Problem(
                "overlap", info.partition, info.key, info.begin, until,
                f"{info.key}: the offsets [{info.begin}, {until}) are in another segment too",
            )  # fmt: skip
        if gap:
            yield Problem(
                "beyond_gap", info.partition, info.key, info.begin, info.end,
                f"{info.key}: it lies beyond a gap, where nothing should be",
            )  # fmt: skip
        reached = max(reached, info.end)


def _commits(partitions: Mapping[int, Checked], committed: Mapping[int, int]) -> Iterator[Problem]:
    for partition, offset in committed.items():
        reached = partitions[partition].frontier if partition in partitions else 0
        if offset > reached:
            yield Problem(
                "commit_beyond", partition, "", reached, offset,
                f"partition {partition}: offset {offset} is committed but the chain ends at "
                f"{reached}; the next start of ingestion goes back by itself",
            )  # fmt: skip


def _bytes_of(
    chain: Sequence[SegmentInfo], read: Callable[[str], bytes]
) -> tuple[list[Problem], int]:
    problems: list[Problem] = []
    unused = 0
    for info in chain:
        try:
            data = read(info.key)
            table, footer = decode_table(data, info.key), decode_info(data, info.key)
            problems += [_about(info, *fault) for fault in faults(table, info, footer)]
            unused += info.end - info.begin - info.lost - used_offsets(table)
        except (ArtifactError, NotFound) as error:
            problems.append(_about(info, "unreadable", str(error)))
    return problems, unused


def _about(info: SegmentInfo, code: Code, message: str) -> Problem:
    return Problem(code, info.partition, info.key, info.begin, info.end, f"{info.key}: {message}")
