"""What a worker asks of the store, on one background thread, so that reading goes on meanwhile.

Design choices: one thread and answers in the order of the questions; Arrow, zstd and the store's
client let go of the interpreter, so a second thread costs the reader little; the bytes of a segment
are kept until the store has answered for them, so that a repetition sends the same ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from flts_ray.errors import ArtifactError, FltsError, Unavailable
from flts_ray.ingest.chain import Frontier, frontier
from flts_ray.ingest.faults import Faults
from flts_ray.ingest.segment import (
    Batch,
    SegmentInfo,
    encode,
    metadata_of,
    read_info,
)
from flts_ray.ingest.sink_actions import Put, Recover
from flts_ray.ingest.sink_events import Broken, PutCreated, PutExists, PutFailed, RecoverFailed
from flts_ray.store import Created, NotFound, Store


@dataclass(frozen=True)
class Place:
    """Which chains are written, and by whom."""

    topic: str
    epoch: str
    writer: str


@dataclass(frozen=True)
class Followed:
    """The chain's end. `committed`: the offset that was taken as the hint."""

    partition: int
    token: int
    found: Frontier
    committed: int | None


@dataclass(frozen=True)
class Stored:
    """A segment is in the store: ours, or (`taken`) somebody else's under the same key."""

    event: PutCreated | PutExists
    info: SegmentInfo

    @property
    def partition(self) -> int:
        return self.event.partition


Answer = Followed | Stored | PutFailed | RecoverFailed | Broken


class Errands:
    """Questions to the store and their answers. Unforeseen errors come out of `answers`."""

    def __init__(self, store: Store, place: Place, faults: Faults) -> None:
        self._store = store
        self._place = place
        self._faults = faults
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="errands")
        self._asked: deque[Future[Answer | None]] = deque()
        self._encoded: dict[int, tuple[int, bytes, SegmentInfo]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def put(self, action: Put) -> None:
        """Encode a segment and store it under its key if nobody has."""
        self._ask(lambda: self._put(action))

    def recover(self, action: Recover, hint: tuple[int, str] | None) -> None:
        """Follow a partition's chain from the hint (end and begin of a segment)."""
        self._ask(lambda: self._recover(action, hint))

    def overwrite(self, key: str, data: bytes, failed: Callable[[FltsError], None]) -> None:
        """Store a small object that nothing depends on."""

        def write() -> None:
            try:
                self._store.put(key, data)
            except FltsError as error:
                failed(error)

        self._ask(write)

    def forget(self, partition: int) -> None:
        """No answer for this partition is waited for any more."""

        def drop() -> None:
            self._encoded.pop(partition, None)

        self._ask(drop)

    def answers(self) -> list[Answer]:
        """What has been answered since the last call, in the order it was asked."""
        found = []
        while self._asked and self._asked[0].done():
            answer = self._asked.popleft().result()
            if answer is not None:
                found.append(answer)
        return found

    def finish(self) -> None:
        """Do what was asked, and nothing after that."""
        self._thread.shutdown(wait=True)

    def close(self) -> None:
        """Forget what was not begun, and wait for what was."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _ask(self, errand: Callable[[], Answer | None]) -> None:
        self._asked.append(self._thread.submit(errand))

    def _put(self, action: Put) -> Answer:
        try:
            data, info = self._bytes(action)
            self._faults.at("encoded")
            answer = self._store.put_new(info.key, data, metadata_of(info))
            self._faults.at("put_sent")
            if isinstance(answer, Created):
                event = PutCreated(action.partition, action.token, info.checksum)
                stored = Stored(event, info)
            else:
                stored = self._taken(action, info)
        except (Unavailable, NotFound) as error:
            return PutFailed(action.partition, action.token, str(error))
        except ArtifactError as error:
            return Broken(action.partition, str(error))
        self._encoded.pop(action.partition, None)
        return stored

    def _taken(self, action: Put, sent: SegmentInfo) -> Stored:
        found = read_info(self._store, sent.key)
        event = PutExists(
            action.partition, action.token, found.end, found.writer, found.checksum, sent.checksum
        )
        return Stored(event, found)

    def _bytes(self, action: Put) -> tuple[bytes, SegmentInfo]:
        token, data, info = self._encoded.get(action.partition, (0, b"", None))
        if token != action.token or info is None:
            place = self._place
            data, info = encode(
                cast("tuple[Batch, ...]", action.batches), action.begin, action.end,
                topic=place.topic, epoch=place.epoch, partition=action.partition,
                writer=place.writer, lost=action.lost,
            )  # fmt: skip
            self._encoded[action.partition] = (action.token, data, info)
        return data, info

    def _recover(self, action: Recover, hint: tuple[int, str] | None) -> Answer:
        topic, epoch = self._place.topic, self._place.epoch
        try:
            # Every chain begins at 0, whatever the log still has: two owners that saw different
            # beginnings must meet at the same first key.
            found = frontier(self._store, topic, epoch, action.partition, hint, 0)
        except (Unavailable, NotFound) as error:
            return RecoverFailed(action.partition, action.token, str(error))
        except ArtifactError as error:
            return Broken(action.partition, str(error))
        return Followed(action.partition, action.token, found, hint[0] if hint else None)
