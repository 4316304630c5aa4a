"""Dead letters sent to their topic again, each once.

Design choices: a letter is claimed in the store before it is sent and marked as done after the
broker has acknowledged it; the claim says where the topic ended, and every message says which
letter it repeats, so after a crash in between the topic itself tells whether the letter was sent.
Each letter is therefore sent once however often and wherever a run was killed, as long as the topic
still holds what came since; of runs at the same time one sends. Only a run that is frozen for
longer than a claim holds, and then goes on, may send a letter that another has sent meanwhile. A
letter that cannot be ingested again is a new letter; one that the broker does not take, such as one
that was as large as it may be without our header, is named, and keeps no other.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

from flts_ray.config import Config
from flts_ray.ingest.letter_topic import PREFIX, read_range
from flts_ray.ingest.letters import Letter, Which
from flts_ray.jobs.dlq import chosen
from flts_ray.store import Created, Store
from flts_ray.streams import connect
from flts_ray.streams.access import NotTaken
from flts_ray.streams.records import Consumer, Producer

REPLAY_OF = PREFIX + "replay-of"
CLAIM_S = 120.0
"""So long another run is taken to be at work on what it claimed."""
CHUNK = 500
_FLUSH_S = 30.0
_DONE = "done"


@dataclass(frozen=True)
class Replayed:
    """`sent` now; `skipped`: sent before; `waiting`: ids that another run has claimed lately.

    `refused`: ids of letters that the broker does not take, or that are not whole.
    """

    sent: int = 0
    skipped: int = 0
    waiting: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def __add__(self, other: Replayed) -> Replayed:
        return Replayed(
            self.sent + other.sent,
            self.skipped + other.skipped,
            self.waiting + other.waiting,
            self.refused + other.refused,
        )


class Claim(NamedTuple):
    """`number` of the claim; `at` seconds since 1970; `start`: where the topic's log ended then."""

    number: int
    at: float
    start: int


def replay(
    config: Config,
    brokers: str,
    which: Which,
    force: bool = False,
    clock: Callable[[], float] = time.time,
) -> Replayed:
    """Send what is chosen of the letters to the topic again: the original bytes, key, headers.

    A letter that was sent before is skipped, unless `force`. Raises Unavailable (the next run
    goes on), DataError where nothing was ever ingested.
    """
    stream, store = config.stream, Store.open(config.root)
    waiting = iter(chosen(config, which))
    total = Replayed()
    open_writer = partial(connect.producer, stream, brokers)
    with (
        closing(connect.consumer(stream, brokers, group=f"{stream.group}-replay")) as reader,
        closing(_Run(store, stream.topic, reader, open_writer, force, clock)) as run,
    ):
        while letters := list(islice(waiting, CHUNK)):
            total += run.replay([letter for letter in letters if letter.whole])
            cut = tuple(letter.id for letter in letters if not letter.whole)
            total += Replayed(refused=cut)
    return total


class _Run:
    """One run over the letters of one topic."""

    def __init__(
        self,
        store: Store,
        topic: str,
        reader: Consumer,
        open_writer: Callable[[], Producer],
        force: bool,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._topic = store, topic
        self._reader, self._open_writer = reader, open_writer
        self._writer: Producer | None = None
        self._force, self._clock = force, clock
        self._partitions = len(reader.partitions())

    def replay(self, letters: Sequence[Letter]) -> Replayed:
        ends = {p: end for p, (_, end) in self._reader.bounds(range(self._partitions)).items()}
        if self._force:
            refused = self._send(letters, ends)
            return Replayed(len(letters) - len(refused), refused=refused)
        claims = {letter: self._claims(letter) for letter in letters}
        begun = {letter: found for letter, found in claims.items() if found}
        sent = self._found(begun, ends)
        self._note_done(sent)
        done = sent | {letter for letter, found in claims.items() if found is None}
        open_ = [letter for letter in letters if letter not in done]
        mine = [letter for letter in open_ if self._claimed(letter, claims[letter] or [], ends)]
        refused = self._send(mine, ends)
        waiting = tuple(letter.id for letter in open_ if letter not in set(mine))
        return Replayed(len(mine) - len(refused), len(done), waiting, refused)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _claims(self, letter: Letter) -> list[Claim] | None:
        """Claims of a letter in their order; None: it is done."""
        keys = [item.key for item in self._store.list(_folder(letter))]
        if any(key.endswith(f"/{_DONE}") for key in keys):
            return None
        found = (json.loads(self._store.get(key)) for key in sorted(keys))
        return [Claim(number, one["at"], one["start"]) for number, one in enumerate(found)]

    def _claimed(self, letter: Letter, claims: Sequence[Claim], ends: Mapping[int, int]) -> bool:
        now = self._clock()
        if claims and now - claims[-1].at < CLAIM_S:
            return False
        said = {"at": now, "start": ends[self._place(letter)]}
        key = f"{_folder(letter)}/{len(claims):04d}"
        return isinstance(self._store.put_new(key, json.dumps(said).encode()), Created)

    def _found(
        self, begun: Mapping[Letter, Sequence[Claim]], ends: Mapping[int, int]
    ) -> set[Letter]:
        """Those of the letters that the topic holds again since they were claimed first."""
        by_place: defaultdict[int, dict[bytes, Letter]] = defaultdict(dict)
        for letter in begun:
            by_place[self._place(letter)][_name(letter)] = letter
        found = set()
        for place, names in by_place.items():
            start, _ = self._reader.bounds([place])[place]
            begin = max(start, min(begun[letter][0].start for letter in names.values()))
            for message in read_range(self._reader, place, begin, ends[place]):
                said = (value for name, value in message.headers if name == REPLAY_OF)
                found |= {names[name] for name in said if name in names}
        return found

    def _send(self, letters: Sequence[Letter], starts: Mapping[int, int]) -> tuple[str, ...]:
        """Send and mark as done; returns the ids of those that the broker does not take.

        `starts`: where the topic ended before, by partition.
        """
        try:
            self._post(letters)
        except NotTaken:
            self.close()  # a client may go on refusing what it refused once
            sent = self._arrived(letters, starts)
            left = [letter for letter in letters if letter not in sent]
            self._note_done(sent)
            if len(letters) == 1:
                return tuple(letter.id for letter in left)
            return tuple(name for letter in left for name in self._send([letter], starts))
        self._note_done(letters)
        return ()

    def _arrived(self, letters: Sequence[Letter], starts: Mapping[int, int]) -> set[Letter]:
        """Those of the letters that came to the topic since it ended at `starts`."""
        ends = {p: end for p, (_, end) in self._reader.bounds(range(self._partitions)).items()}
        since = {letter: [Claim(0, 0.0, starts[self._place(letter)])] for letter in letters}
        return self._found(since, ends)

    def _post(self, letters: Sequence[Letter]) -> None:
        if self._writer is None:
            self._writer = self._open_writer()
        for letter in letters:
            headers = [h for h in letter.headers if h[0] != REPLAY_OF]
            headers.append((REPLAY_OF, _name(letter)))
            place = self._place(letter)
            self._writer.send(self._topic, letter.raw, letter.key, place, headers)
        self._writer.flush(_FLUSH_S)

    def _note_done(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            self._store.put(f"{_folder(letter)}/{_DONE}", b"{}")

    def _place(self, letter: Letter) -> int:
        return letter.partition % self._partitions


def _name(letter: Letter) -> bytes:
    return f"{letter.epoch}/{letter.id}".encode()


def _folder(letter: Letter) -> str:
    return f"letters/{letter.topic}/{letter.epoch}/replayed/{letter.partition}-{letter.offset}"
