"""Callers of a forecast API, as light as Python allows: what they got, second by second.

Design choices: requests are bytes that were made before, written to plain sockets, because an HTTP
client costs more than the server; a caller whose connection breaks repeats the request once on a
new one, as any client may that asks for a forecast, and both counts are kept: `broken` answers
and requests that had `failed` even so; callers run in a process of their own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
_VERSION = re.compile(rb"(?i)\r\nx-flts-model-version: (\S+)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_IN_BODY = re.compile(rb'"version":\s*"([^"]+)"')


@dataclass
class Seen:
    """Answers by status, broken connections, requests that failed after one repeat.

    `slow_s`: latencies in seconds. `versions`: answers by the model version that made them;
    `mixed`: answers whose header and body name different ones.
    """

    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    failed: int = 0
    mixed: int = 0
    slow_s: list[float] = field(default_factory=list)
    versions: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, other: Seen) -> None:
        """Take in what another one saw."""
        self.requests += other.requests
        self.answers += other.answers
        self.broken += other.broken
        self.failed += other.failed
        self.mixed += other.mixed
        self.slow_s += other.slow_s
        for version, (first, last) in other.versions.items():
            known = self.versions.get(version, (first, last))
            self.versions[version] = (min(first, known[0]), max(last, known[1]))

    def percentile_ms(self, share: float) -> float:
        """Latency that this share of the answers kept below."""
        ordered = sorted(self.slow_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0


def request_bytes(url: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One POST of JSON to `/v1/forecast`."""
    told = {"host": urlsplit(url).netloc, "content-type": "application/json", **(headers or {})}
    told["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST /v1/forecast HTTP/1.1\r\n{lines}\r\n".encode() + body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


class _Caller:
    """One connection that asks, one request after the other."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 80
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body. Raises OSError or EOFError where the connection breaks."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._stream is None:
                    self._stream = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._stream
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await (reader.readexactly(int(length[1])) if length else _chunks(reader))
        except (OSError, EOFError, TimeoutError):
            self.close()
            raise
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return int(head[9:12]), head, body

    def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


async def _call(caller: _Caller, request: bytes) -> Seen:
    """What one request met; added up at its end, so that none is half in a report."""
    seen, begin = Seen(requests=1), time.time()
    for attempt in (1, 2):
        try:
            status, head, body = await caller.ask(request)
        except (OSError, EOFError, TimeoutError) as error:
            seen.broken += 1
            seen.answers[type(error).__name__] += 1
            seen.failed += attempt == 2
            continue
        seen.answers[str(status)] += 1
        seen.failed += status >= 500
        if status == 200:
            _note_version(seen, head, body, begin)
        break
    seen.slow_s.append(time.time() - begin)
    return seen


def _note_version(seen: Seen, head: bytes, body: bytes, begin: float) -> None:
    told = _VERSION.search(head)
    if told is None:
        return
    within = _IN_BODY.search(body)
    seen.mixed += within is not None and within[1] != told[1]
    version, now = told[1].decode(), time.time()
    first, last = seen.versions.get(version, (now, begin))
    seen.versions[version] = (min(first, now), max(last, begin))


async def _run(url: str, request: bytes, wanted: Synchronized[int], report: Queue[Any]) -> None:
    seen = Seen()

    async def work(number: int) -> None:
        caller = _Caller(url)
        while number < wanted.value:
            one = await _call(caller, request)
            seen.add(one)
        caller.close()

    async def staff() -> None:
        working: dict[int, asyncio.Task[None]] = {}
        while wanted.value >= 0:
            for number in range(wanted.value):
                if number not in working or working[number].done():
                    working[number] = asyncio.create_task(work(number))
            await asyncio.sleep(0.05)
        await asyncio.gather(*working.values())

    async def tell() -> None:
        nonlocal seen
        while wanted.value >= 0:
            await asyncio.sleep(0.25)
            told, seen = seen, Seen()
            report.put(told)

    await asyncio.gather(tell(), staff())
    report.put(seen)
    report.put(None)


def _main(url: str, request: bytes, wanted: Synchronized[int], report: Queue[Any]) -> None:
    asyncio.run(_run(url, request, wanted, report))


class Load:
    """Callers that go on until the block ends; `callers` may be changed meanwhile."""

    def __init__(self, wanted: Synchronized[int], report: Queue[Any]) -> None:
        self._wanted = wanted
        self._report = report
        self.total = Seen()
        self._since = Seen()
        self._fresh: set[str] = set()

    def callers(self, count: int) -> None:
        """So many at once from now on."""
        self._wanted.value = count

    def look(self) -> Seen:
        """What was seen since `part` was called last, so far."""
        while not self._report.empty():
            told = self._report.get()
            if told is not None:
                self.total.add(told)
                self._since.add(told)
                self._fresh |= set(told.versions)
        return self._since

    def part_versions(self) -> set[str]:
        """Versions that answered since the last call of this."""
        self.look()
        found, self._fresh = self._fresh, set()
        return found

    def part(self) -> Seen:
        """What was seen since the last call."""
        seen = self.look()
        self._since = Seen()
        return seen


@contextmanager
def load(url: str, request: bytes, callers: int) -> Iterator[Load]:
    """Constant callers in a process of their own."""
    context = multiprocessing.get_context("spawn")
    wanted: Any = context.Value("i", callers)
    report: Any = context.Queue()
    process = context.Process(target=_main, args=(url, request, wanted, report), daemon=True)
    process.start()
    made = Load(wanted, report)
    try:
        yield made
    finally:
        wanted.value = -1
        end = time.monotonic() + 90
        while process.is_alive() and time.monotonic() < end:
            made.look()
            process.join(0.1)
        made.look()
        process.terminate()
