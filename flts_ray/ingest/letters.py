"""Dead letters: messages that could not become rows, read from the segments that hold them.

Design choices: the error rows of the segments are the truth, so a letter exists exactly once and
can be read without a broker; segments never change, so purging writes an entry that hides letters
and reading asks these entries; an entry hides only what had been ingested when it was written,
because nobody can have looked at the rest.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from flts_ray.errors import DataError
from flts_ray.ingest.chain import read_infos, segments
from flts_ray.ingest.decode_table import CUT
from flts_ray.ingest.segment import SegmentInfo, bad_rows, parse_key, read_info, read_table
from flts_ray.store import Exists, Store

COLUMNS = ("offset", "error", "detail", "raw", "key", "timestamp_ms", "headers")
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_SLICE = 1000
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Letter:
    """One message as it came, and why it was refused. `timestamp_ms` is the broker's."""

    topic: str
    epoch: str
    partition: int
    offset: int
    code: str
    detail: str
    raw: bytes | None
    key: bytes | None = None
    timestamp_ms: int = -1
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def id(self) -> str:
        """What names it on the command line."""
        return f"{self.partition}/{self.offset}"

    @property
    def whole(self) -> bool:
        """False where the message was too large even to be kept, so that its start is left."""
        return not (self.code == "too_large" and CUT in self.detail)

    @property
    def nbytes(self) -> int:
        """Bytes of value, key and headers."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.raw or b"") + len(self.key or b"") + headers

    @property
    def arrived(self) -> datetime | None:
        """The broker's time, UTC; None where the number is no time: writers choose it freely."""
        if self.timestamp_ms < 0:
            return None
        try:
            return _FIRST + timedelta(milliseconds=self.timestamp_ms)
        except OverflowError:
            return None


@dataclass(frozen=True)
class Which:
    """A choice of letters; what is left out does not matter. `ids`: partition/offset."""

    code: str | None = None
    partition: int | None = None
    since_ms: int | None = None
    before_ms: int | None = None
    ids: tuple[str, ...] = ()

    def takes(self, letter: Letter) -> bool:
        return (
            self.code in (None, letter.code)
            and self.partition in (None, letter.partition)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.before_ms is None or letter.timestamp_ms < self.before_ms)
            and (not self.ids or letter.id in self.ids)
        )


@dataclass(frozen=True)
class Purge:
    """An entry that hides letters. `upto`: partition to the offset from which it hides nothing."""

    which: Which
    upto: Mapping[int, int]
    at: str

    def hides(self, letter: Letter) -> bool:
        return letter.offset < self.upto.get(letter.partition, 0) and self.which.takes(letter)

    def to_json(self) -> bytes:
        return json.dumps({"which": asdict(self.which), "upto": self.upto, "at": self.at}).encode()

    @staticmethod
    def from_json(data: bytes) -> Purge:
        raw = json.loads(data)
        which = Which(**{**raw["which"], "ids": tuple(raw["which"]["ids"])})
        return Purge(which, {int(p): end for p, end in raw["upto"].items()}, raw["at"])


def parse_id(text: str) -> tuple[int, int]:
    """Partition and offset of `partition/offset`. Raises DataError."""
    partition, slash, offset = text.partition("/")
    if not (slash and partition.isascii() and partition.isdigit() and offset.isdigit()):
        raise DataError(f"{text!r} names no dead letter; write partition/offset, such as 0/1042")
    return int(partition), int(offset)


def letters_in(store: Store, key: str, info: SegmentInfo) -> Iterator[Letter]:
    """The letters of one segment, by offset."""
    if not info.bad_rows:
        return
    table: pa.Table = bad_rows(read_table(store, key, columns=list(COLUMNS)))
    for start in range(0, table.num_rows, _SLICE):
        for row in table.slice(start, _SLICE).to_pylist():
            yield Letter(
                info.topic, info.epoch, info.partition, row["offset"], row["error"],
                row["detail"] or "", row["raw"], row["key"], row["timestamp_ms"],
                tuple((name, value or b"") for name, value in row["headers"] or ()),
            )  # fmt: skip


def letters(
    store: Store, topic: str, epoch: str, which: Which, *, purged: bool = False
) -> Iterator[Letter]:
    """The chosen letters by partition and offset; those that were purged only on request."""
    for partition, keys in _keys(store, topic, epoch, which).items():
        away = hidden(store, topic, epoch, partition) if not purged else _nothing
        for key, info in infos(store, keys):
            for letter in letters_in(store, key, info):
                if which.takes(letter) and not away(letter):
                    yield letter


def counts(store: Store, topic: str, epoch: str) -> dict[int, int]:
    """Partition to its number of letters, purged ones included, without reading any segment."""
    found: Counter[int] = Counter()
    for _, info in infos(store, segments(store, topic, epoch)):
        found[info.partition] += info.bad_rows
    return dict(sorted(found.items()))


def infos(store: Store, keys: Sequence[str]) -> Iterator[tuple[str, SegmentInfo]]:
    """What segments say of themselves, in the order of the keys; asked as they are wanted."""
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        yield from zip(part, read_infos(store, part), strict=True)


def purge(store: Store, topic: str, epoch: str, which: Which, at: str) -> Purge:
    """Hide what is chosen of the letters that are there now; the entry is never changed."""
    upto: dict[int, int] = {}
    for partition, keys in _by_partition(segments(store, topic, epoch)).items():
        upto[partition] = read_info(store, keys[-1]).end
    entry = Purge(which, upto, at)
    number = len(store.list(_purges(topic, epoch)))
    while isinstance(
        store.put_new(f"{_purges(topic, epoch)}/{number:08d}.json", entry.to_json()), Exists
    ):
        number += 1
    return entry


def hidden(
    store: Store, topic: str, epoch: str, partition: int | None = None
) -> Callable[[Letter], bool]:
    """Whether a letter was purged, by the entries there are now."""
    found = store.list(_purges(topic, epoch))
    entries = [Purge.from_json(store.get(item.key)) for item in found]
    mine = [e for e in entries if e.which.partition in (None, partition) or partition is None]
    return lambda letter: any(entry.hides(letter) for entry in mine)


def _nothing(letter: Letter) -> bool:
    return False


def _purges(topic: str, epoch: str) -> str:
    return f"letters/{topic}/{epoch}/purged"


def _keys(store: Store, topic: str, epoch: str, which: Which) -> dict[int, list[str]]:
    """Keys of the segments that may hold what is chosen."""
    if not which.ids:
        return _by_partition(segments(store, topic, epoch, which.partition))
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for partition, offset in map(parse_id, which.ids):
        wanted[partition].add(offset)
    found = {}
    for partition, offsets in sorted(wanted.items()):
        keys = segments(store, topic, epoch, partition)
        begins = [parse_key(key).begin for key in keys]
        places = {bisect_right(begins, offset) - 1 for offset in offsets}
        found[partition] = [keys[place] for place in sorted(places) if place >= 0]
    return found


def _by_partition(keys: Sequence[str]) -> dict[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    for key in keys:
        found[parse_key(key).partition].append(key)
    return {partition: sorted(found[partition]) for partition in sorted(found)}
