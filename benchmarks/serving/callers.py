"""Callers of a server: closed loop (each asks again when it was answered) and open loop.

Design choices: requests are bytes made beforehand, written to plain sockets by a few processes,
because an HTTP client costs more than the servers under test; in the open loop requests arrive at
random times (Poisson) whatever the server does, and latency counts from the arrival, so that a
server that stalls is not asked less; what is not answered in the end is an error.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import uvloop

GRACE_S = 5.0
"""Most time that outstanding answers are waited for at the end."""
MOST_CONNECTIONS = 128
"""Of one process in the open loop; more requests wait here, and their time counts."""
AGAIN_S = 0.01
"""Pause before a new connection in place of one that failed."""
TICK_S = 0.002
"""What a timer is late by itself, which is no latency."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True)
class Job:
    """What one process of callers does. `begin` as of `time.time()`.

    clients: connections of the closed loop, or 0; rate: arrivals a second of the open loop.
    Answers count from `lead_s` after `begin` until `seconds` later.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    clients: int
    rate: float
    begin: float
    lead_s: float
    seconds: float
    seed: int


@dataclass
class Seen:
    """`latency_s` of answers with status 200; `errors` by what happened instead."""

    latency_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0


def call(job: Job) -> Seen:
    """Do the job in this process."""
    begin = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(_Crowd(job).run())
    seen.cpu_s = time.process_time() - begin
    return seen


class _Crowd:
    """All callers of one process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seen = Seen()
        self._random = random.Random(job.seed)
        self._loop: asyncio.AbstractEventLoop
        self._first = self._last = 0.0
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening = 0
        self._arrived: deque[float] = deque()
        self._turn = job.seed

    async def run(self) -> Seen:
        job = self.job
        self._loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, job.begin - time.time()))
        self._first = time.monotonic() + job.lead_s
        self._last = self._first + job.seconds
        for _ in range(job.clients):
            self._open()
        if job.rate:
            self._loop.call_soon(self._arrive, time.monotonic())
        await asyncio.sleep(self._last - time.monotonic())
        until = self._last + GRACE_S
        while self._outstanding() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._give_up()
        return self.seen

    def request(self) -> bytes:
        """The next body in turn."""
        self._turn += 1
        return self.job.requests[self._turn % len(self.job.requests)]

    def answered(self, connection: _Connection, asked: float, status: int) -> None:
        """An answer came on a connection."""
        if status != 200:
            self._count(asked, str(status))
        elif self._counts(asked):
            self.seen.latency_s.append(time.monotonic() - asked)
        if connection.usable:
            self.free(connection)

    def lost(self, connection: _Connection, what: str) -> None:
        """A connection ended; a request on it is lost."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.asked is not None:
            self._count(connection.asked, what)
            connection.asked = None
        self._again()

    def free(self, connection: _Connection) -> None:
        """A connection can be used."""
        now = time.monotonic()
        if self.job.rate:
            if self._arrived:
                connection.ask(self._arrived.popleft())
            else:
                self._idle.append(connection)
        elif now < self._last:
            connection.ask(now)

    def opened(self, connection: _Connection) -> None:
        self._opening -= 1
        self._all.add(connection)

    def _arrive(self, at: float) -> None:
        if at >= self._last:
            return
        now = time.monotonic()
        self._arrived.append(at if now - at > TICK_S else now)
        if self._idle:
            self._idle.pop().ask(self._arrived.popleft())
        elif len(self._all) + self._opening < MOST_CONNECTIONS:
            self._open()
        following = at + self._random.expovariate(self.job.rate)
        self._loop.call_at(following, self._arrive, following)

    def _open(self) -> None:
        self._opening += 1
        self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        job, made = self.job, _Connection(self)
        try:
            await self._loop.create_connection(lambda: made, job.host, job.port)
        except OSError as error:
            self._opening -= 1
            self._count(time.monotonic(), type(error).__name__)
            self._again()

    def _again(self) -> None:
        if time.monotonic() < self._last and (self._arrived or not self.job.rate):
            self._loop.call_later(AGAIN_S, self._open)

    def _counts(self, asked: float) -> bool:
        """Open loop: by the arrival; closed loop: by the answer."""
        counted = asked if self.job.rate else time.monotonic()
        return self._first <= counted < self._last

    def _count(self, asked: float, what: str) -> None:
        if self._counts(asked):
            self.seen.errors[what] += 1

    def _outstanding(self) -> bool:
        return bool(self._arrived) or any(one.asked is not None for one in self._all)

    def _give_up(self) -> None:
        left = [one.asked for one in self._all if one.asked is not None]
        lost = [asked for asked in (*left, *self._arrived) if asked < self._last]
        counted = sum(asked >= self._first for asked in lost)
        if counted:
            self.seen.errors["unanswered"] += counted
        for one in [*self._all]:
            one.close()
        self._all.clear()


class _Connection(asyncio.Protocol):
    """One connection; `asked` is since when an answer is waited for."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._got = b""
        self.asked: float | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._crowd.opened(self)
        self._crowd.free(self)

    def ask(self, asked: float) -> None:
        """Send the next request, whose latency counts from `asked`."""
        self.asked = asked
        self._transport.write(self._crowd.request())

    def data_received(self, data: bytes) -> None:
        self._got = self._got + data if self._got else data
        told = complete(self._got)
        if told is None or self.asked is None:
            return
        status, keeps = told
        asked, self.asked, self._got = self.asked, None, b""
        self.usable = keeps
        self._crowd.answered(self, asked, status)
        if not keeps:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._crowd.lost(self, "closed" if error is None else type(error).__name__)

    def close(self) -> None:
        """Ask no more."""
        self.asked = None
        self._transport.abort()


def complete(got: bytes) -> tuple[int, bool] | None:
    """Status of a whole answer, and whether its connection stays; None for a part of one."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = got[: end + 2]
    length = _LENGTH.search(head)
    if length is not None:
        if len(got) < end + 4 + int(length[1]):
            return None
    elif not got.endswith(b"0\r\n\r\n"):
        return None
    return int(got[9:12]), b"\r\nconnection: close" not in head.lower()


def jobs(
    place: tuple[str, int],
    requests: Sequence[bytes],
    clients: int,
    rate: float,
    spans: tuple[float, float],
    processes: int,
) -> Iterator[Job]:
    """The same load shared by processes; spans: seconds of lead and of counting."""
    begin = time.time() + 0.1
    used = min(processes, clients) if clients else processes
    for i in range(used):
        share = clients // used + (i < clients % used)
        yield Job(*place, requests, share, rate / used, begin, *spans, seed=17 * i)
