"""Which segments lie behind the offsets that a table holds already.

Design choices: only what is new is listed, whatever the age of the stream; each partition goes up
to the end of its chain, as far as it reached when it was looked at; a listing that runs while
segments are stored may miss one and show the next, so what is missing is asked for by its key
before it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pyarrow import fs

from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.ingest.chain import linked, read_infos, segment_at, segments
from flts_ray.ingest.segment import SegmentInfo, epoch_folder, segment_key
from flts_ray.store import Store


def new_segments(
    store: Store, topic: str, epoch: str, ranges: Mapping[int, tuple[int, int]]
) -> list[SegmentInfo]:
    """Segments that continue the ranges, by partition and offset; partitions begin at 0.

    Raises ArtifactError for a gap, an overlap, or an object that is no segment.
    """
    found: list[SegmentInfo] = []
    for partition in sorted({*ranges, *_partitions(store, topic, epoch)}):
        reached = ranges[partition][1] if partition in ranges else 0
        chain = _behind(store, topic, epoch, partition, reached)
        if misfit := _misfit(chain, reached):
            raise ArtifactError(
                f"{store.uri(misfit.key)}: begins at offset {misfit.begin}, which is not where the "
                "segments before it end, so nothing was compacted; `flts ingest verify` says what "
                "is missing or twice there"
            )
        found += chain
    return found


def _behind(
    store: Store, topic: str, epoch: str, partition: int, reached: int
) -> list[SegmentInfo]:
    after = segment_key(topic, epoch, partition, reached - 1) if reached else None
    listed = read_infos(store, segments(store, topic, epoch, partition, after))
    return linked(listed, reached, partial(segment_at, store, topic, epoch, partition))


def _misfit(chain: Sequence[SegmentInfo], reached: int) -> SegmentInfo | None:
    """The first segment that does not begin where the one before it ends."""
    for info in chain:
        if info.begin != reached:
            return info
        reached = info.end
    return None


def _partitions(store: Store, topic: str, epoch: str) -> list[int]:
    filesystem, base = store.filesystem()
    folder = f"{base}/{epoch_folder(topic, epoch)}"
    try:
        entries = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except OSError as error:
        raise Unavailable(
            f"{store.uri(epoch_folder(topic, epoch))}: cannot be listed: {error}; check the store"
        ) from None
    names = (entry.base_name for entry in entries if entry.type == fs.FileType.Directory)
    found = (name.removeprefix("p=") for name in names if name.startswith("p="))
    return [int(number) for number in found if number.isascii() and number.isdecimal()]
