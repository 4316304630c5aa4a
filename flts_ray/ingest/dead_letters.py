"""Forwarding of dead letters to the topic `DLQ-<topic>`.

Design choices: letters are read from durable segments in the order of the chain, so forwarding has
nothing to do with reading the topic or storing it, and a broker that refuses it stops nothing; the
dead-letter topic itself is the cursor, so one forwarder that crashes anywhere neither loses nor
repeats a letter; two at once may repeat, and readers drop what they have seen by epoch and key, as
ours do; where a batch is refused its letters go one by one, so that one which no broker takes keeps
no other; a small object remembers how far segments were looked at, which saves looking again at
segments without letters and holds where the topic's messages have expired.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import structlog

from flts_ray.errors import FltsError
from flts_ray.ingest.chain import segments
from flts_ray.ingest.letter_topic import LARGE_BYTES, LetterTopic, Tail
from flts_ray.ingest.letters import Letter, hidden, letters_in
from flts_ray.ingest.segment import SegmentInfo, parse_key, read_info, segment_key
from flts_ray.store import NotFound, Store
from flts_ray.streams.access import NotTaken

CHUNK = 500
"""Most letters that wait for one acknowledgement."""
SEGMENTS_A_CALL = 200
_REMEMBER_S = 60.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


class Forwarder:
    """Sends the letters of one topic's segments; `connect` opens where they go, when needed."""

    def __init__(
        self,
        store: Store,
        topic: str,
        epoch: str,
        connect: Callable[[], LetterTopic],
        clock: Callable[[], float] = time.monotonic,
        chunk: int = CHUNK,
    ) -> None:
        self.forwarded = 0
        self._store = store
        self._topic = topic
        self._epoch = epoch
        self._connect = connect
        self._clock = clock
        self._chunk = chunk
        self._open: LetterTopic | None = None
        self._next: dict[int, int] = {}
        self._tails: dict[int, Tail] = {}
        self._noted: dict[int, tuple[float, int]] = {}

    def forward(self, partition: int, upto: int) -> bool:
        """Send letters of segments that begin below offset `upto`; True: none is left.

        One call looks at 200 segments at most. Raises Unavailable (the broker or the store is
        away); the next call goes on where the topic ends.
        """
        try:
            return self._forward(partition, upto)
        except Exception:
            # What became of the last batch only the topic knows.
            self._tails.clear()
            self.close()
            raise

    def close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def _forward(self, partition: int, upto: int) -> bool:
        first = self._next.get(partition)
        if first is None:
            first = self._next[partition] = self._recalled(partition)
        if first >= upto:
            return True
        self._note(partition, first)
        begins = [begin for begin in self._begins(partition, first) if begin < upto]
        for begin in begins[:SEGMENTS_A_CALL]:
            key = segment_key(self._topic, self._epoch, partition, begin)
            info = read_info(self._store, key)
            if info.bad_rows:
                self._send(key, info)
            self._next[partition] = info.end
        return len(begins) <= SEGMENTS_A_CALL

    def _send(self, key: str, info: SegmentInfo) -> None:
        alone = -1
        while (refused := self._sent(key, info, alone)) is not None:
            alone = refused
            self._tails.clear()
            self.close()

    def _sent(self, key: str, info: SegmentInfo, alone: int) -> int | None:
        """Send what is missing of a segment, up to offset `alone` one by one.

        Returns the last offset of a batch that was refused; None: all was taken.
        """
        for letters in chunks(self._missing(key, info), self._chunk, alone):
            try:
                self._target().send(letters, letters[0].offset)
            except NotTaken:
                if len(letters) == 1:
                    raise
                return letters[-1].offset
            self.forwarded += len(letters)
        return None

    def _missing(self, key: str, info: SegmentInfo) -> Iterator[Letter]:
        """Letters of a segment that are not in the topic."""
        tail = self._tail(info.partition)
        if info.end <= tail.complete:
            return
        away = hidden(self._store, self._topic, self._epoch, info.partition)
        for letter in letters_in(self._store, key, info):
            if (
                letter.offset >= tail.complete
                and letter.offset not in tail.seen
                and not away(letter)
            ):
                yield letter

    def _begins(self, partition: int, first: int) -> list[int]:
        after = segment_key(self._topic, self._epoch, partition, first - 1) if first else None
        keys = segments(self._store, self._topic, self._epoch, partition, after)
        return sorted(parse_key(key).begin for key in keys)

    def _tail(self, partition: int) -> Tail:
        if partition not in self._tails:
            stored = segments(self._store, self._topic, self._epoch, partition)
            end = max((read_info(self._store, key).end for key in sorted(stored)[-1:]), default=0)
            found = self._target().tail(partition, self._epoch, 2 * self._chunk, end)
            self._tails[partition] = found or Tail()
        return self._tails[partition]

    def _target(self) -> LetterTopic:
        if self._open is None:
            self._open = self._connect()
        return self._open

    def _recalled(self, partition: int) -> int:
        try:
            return int(json.loads(self._store.get(self._note_key(partition)))["segment"])
        except NotFound:
            return 0

    def _note(self, partition: int, segment: int) -> None:
        # Called before anything is sent: what was acknowledged just now may still be lost by a
        # broker that crashes.
        due, known = self._noted.get(partition, (0.0, 0))
        now = self._clock()
        if segment > known and now >= due:
            self._store.put(self._note_key(partition), json.dumps({"segment": segment}).encode())
            self._noted[partition] = (now + _REMEMBER_S, segment)

    def _note_key(self, partition: int) -> str:
        return f"letters/{self._topic}/{self._epoch}/forwarded/{partition}.json"


class BackgroundForwarder:
    """Forwards in a thread of its own; failures are logged and counted, then tried again.

    `forward` returns at once, whatever the broker does.
    """

    def __init__(self, forwarder: Forwarder) -> None:
        self.failures = 0
        self._forwarder = forwarder
        self._wanted: dict[int, int] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="dead-letters", daemon=True)
        self._thread.start()

    @property
    def forwarded(self) -> int:
        return self._forwarder.forwarded

    @property
    def waiting(self) -> int:
        """Partitions that are not forwarded as far as was asked."""
        with self._changed:
            return len(self._wanted)

    def forward(self, partition: int, upto: int) -> None:
        """Have the letters below offset `upto` forwarded."""
        with self._changed:
            self._wanted[partition] = max(upto, self._wanted.get(partition, 0))
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> bool:
        """Finish what was asked for, not longer than `timeout_s`; True: all of it was sent.

        What is left is sent by the next forwarder.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self.waiting == 0

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while (task := self._next()) is not None:
            try:
                done = self._forwarder.forward(*task)
            except Exception as error:  # noqa: BLE001 -- no failure may end the thread
                self.failures += 1
                structlog.get_logger().warning(
                    "dead_letters_wait",
                    partition=task[0],
                    again_in_s=wait_s,
                    error=str(error) or type(error).__name__,
                    exc_info=not isinstance(error, FltsError),
                )
                self._took(*task, done=False)
                with self._changed:
                    if self._closing:
                        break
                    self._changed.wait_for(lambda: self._closing, wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            wait_s = _FIRST_WAIT_S
            self._took(*task, done)
        self._forwarder.close()

    def _next(self) -> tuple[int, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._wanted))
            return next(iter(self._wanted.items()), None)

    def _took(self, partition: int, upto: int, done: bool) -> None:
        """What is left of a partition waits behind the others."""
        with self._changed:
            wanted = self._wanted.pop(partition)
            if wanted > upto or not done:
                self._wanted[partition] = wanted


def chunks(letters: Iterable[Letter], most: int, alone: int = -1) -> Iterator[list[Letter]]:
    """Letters in batches of at most `most`; a large one, and any up to offset `alone`, is alone."""
    batch: list[Letter] = []
    held = 0
    for letter in letters:
        full = len(batch) == most or held + letter.nbytes > LARGE_BYTES
        if batch and (full or batch[-1].offset <= alone):
            yield batch
            batch, held = [], 0
        batch.append(letter)
        held += letter.nbytes
    if batch:
        yield batch
