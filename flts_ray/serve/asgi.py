"""One HTTP exchange in plain ASGI: what was asked, what is answered, how it is sent.

Design choices: routes of the service are functions from a `Call` to an `Answer`, because a
framework's request and response objects cost more than a small model; headers are read when
somebody wants one; the same security headers go on every answer; a streamed answer stops when
its reader has gone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, suppress
from secrets import token_hex
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import orjson
from msgspec import Struct

from flts_ray.errors import DataError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
_Made = TypeVar("_Made")

JSON = b"application/json"
MSGPACK = b"application/msgpack"
ARROW = b"application/vnd.apache.arrow.stream"
_MSGPACK_NAMES = (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack")
REQUEST_ID = b"x-request-id"
SECURITY: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
CLOSED: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
ALWAYS = (*SECURITY, CLOSED)
PAGE: Header = (
    b"content-security-policy",
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; frame-ancestors 'none'",
)
_ID = re.compile(rb"[\w.:\-]{1,128}", re.ASCII)


class Gone(Exception):
    """The caller closed the connection before it was answered."""


class BodyTooLarge(DataError):
    """The body is larger than the service takes: send it in parts."""

    status = 413


class Answer(Struct):
    """What is sent back; a body of many parts is streamed.

    `closed` is called once, when it was sent or could not be.
    """

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    media: bytes = JSON
    headers: tuple[Header, ...] = ()
    closed: Callable[[], None] | None = None


class Call:
    """One request. `id` is the caller's own where it sent a usable one.

    `arrived` is `time.perf_counter()`.
    """

    __slots__ = ("arrived", "headers", "id", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.arrived = time.perf_counter()
        self.scope = scope
        self.receive = receive
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        sent = self.headers.get(REQUEST_ID, b"")
        self.id = sent if _ID.fullmatch(sent) else token_hex(16).encode()

    @property
    def media(self) -> bytes:
        """The kind of the body: JSON unless it is said to be msgpack or Arrow."""
        return _kind(self.headers.get(b"content-type", b"")) or JSON

    @property
    def wanted(self) -> bytes:
        """The kind of the answer: as accepted, else as the body."""
        for part in self.headers.get(b"accept", b"").split(b","):
            if kind := _kind(part):
                return kind
        return self.media

    def query(self) -> dict[str, str]:
        """Fields of the query, the last of each name. Raises DataError for too many of them."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        try:
            return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=20))
        except ValueError as error:
            raise DataError(f"query: {error}", field="query") from None

    def flag(self, name: bytes) -> bool:
        """Raises DataError for a header that is neither true nor false."""
        value = self.headers.get(name, b"false")
        if value not in (b"true", b"false"):
            field = name.decode()
            raise DataError(f"{field}: must be true or false", field=field)
        return value == b"true"

    async def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be, Gone."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            raise _too_large(max_bytes)
        # Pieces that are kept to be joined at the end would take the memory twice, and fresh
        # memory for each takes longer than the network.
        whole = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            part: bytes = message.get("body", b"")
            if len(whole) + len(part) > max_bytes:
                raise _too_large(max_bytes)
            last = not message.get("more_body", False)
            if last and not whole:
                return part
            whole += part
            if last:
                return cast(bytes, whole)  # every decoder reads either


def _kind(value: bytes) -> bytes | None:
    if value == JSON:
        return JSON
    name = value.partition(b";")[0].strip().lower()
    if name == ARROW:
        return ARROW
    if name in _MSGPACK_NAMES:
        return MSGPACK
    return JSON if name == JSON else None


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"body: larger than {max_bytes} bytes; send fewer series or a shorter history", field="body"
    )


def json_answer(payload: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Answer:
    body = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer(body, status, JSON, headers)


async def reply(
    call: Call, answer: Answer, send: Send, always: tuple[Header, ...] = ALWAYS
) -> None:
    """Send an answer; `always`: headers that every answer has."""
    headers = [
        (b"content-type", answer.media),
        (REQUEST_ID, call.id),
        *always,
        *answer.headers,
    ]
    try:
        if isinstance(answer.body, bytes):
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if isinstance(answer.body, bytes):
            await send({"type": "http.response.body", "body": answer.body})
        else:
            await _stream(call, answer.body, send)
    finally:
        if answer.closed is not None:
            answer.closed()


async def _stream(call: Call, parts: AsyncIterator[bytes], send: Send) -> None:
    """Send parts as they come, until the last one or until the caller has gone."""
    sending = asyncio.create_task(_send_all(parts, send))
    leaving = asyncio.create_task(_gone(call.receive))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
    finally:
        for task in (sending, leaving):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await leaving


async def _send_all(parts: AsyncIterator[bytes], send: Send) -> None:
    async with aclosing(parts) as open_parts:  # type: ignore[type-var]
        async for part in open_parts:
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def unless_gone(call: Call, work: Coroutine[Any, Any, _Made]) -> _Made:
    """What the work returns or raises; Gone as soon as the caller has gone, and no work then.

    The body of the call has been read.
    """
    doing, leaving = asyncio.create_task(work), asyncio.create_task(_gone(call.receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Gone
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class PageSend:
    """`send` for pages of the framework: adds the headers of every answer, notes the status."""

    def __init__(self, send: Send, call: Call) -> None:
        self._send = send
        self._call = call
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more = [(REQUEST_ID, self._call.id), *SECURITY, PAGE]
            message["headers"] = [*message["headers"], *more]
        await self._send(message)
