"""Head and body of an answer go out together, whatever else is written."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.local.process import free_port
from flts_ray.serve.one_write import Joined, in_one_write


class Wire:
    """Notes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


@given(st.lists(st.binary(max_size=5)))
def test_the_bytes_stay_the_same_and_the_first_two_writes_are_one(parts: list[bytes]) -> None:
    wire = Wire()
    joined = Joined(wire)
    for part in [b"head", *parts]:
        joined.write(part)
    joined.close()
    assert b"".join(wire.written) == b"".join([b"head", *parts])
    assert len(wire.written) == max(len(parts), 1)
    assert wire.closed


def test_what_has_no_connection_is_left_alone() -> None:
    async def send(message: Any) -> None:
        raise AssertionError(message)

    in_one_write({"method": "POST"}, send)


def test_an_answer_to_head_is_not_held_back() -> None:
    class Cycle(SimpleNamespace):
        async def send(self, message: Any) -> None: ...

    wire = Wire()
    cycle = Cycle(transport=wire)
    in_one_write({"method": "HEAD"}, cycle.send)
    assert cycle.transport is wire
    in_one_write({"method": "GET"}, cycle.send)
    assert isinstance(cycle.transport, Joined)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    in_one_write(scope, send)
    head = {"type": "http.response.start", "status": 200}
    if scope["path"] == "/stream":
        await send(head)
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
    elif scope["path"] == "/broken":
        await send(head | {"headers": [(b"content-length", b"9")]})
        raise RuntimeError("in the middle")
    else:
        body = b"" if scope["path"] == "/empty" else b"hello"
        length = str(len(body)).encode()
        await send(head | {"headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


async def _answers(paths: list[str]) -> list[bytes]:
    """What a connection says to requests for these paths, one after the other, until it ends."""
    port = free_port()
    config = uvicorn.Config(_app, port=port, log_config=None, lifespan="off", http="httptools")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for path in paths:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        end = b"0\r\n\r\n" if path == "/stream" else b"hello" if path == "/" else b"\r\n\r\n"
        with contextlib.suppress(asyncio.IncompleteReadError):
            found.append(await asyncio.wait_for(reader.readuntil(end), 10))
    writer.close()
    server.should_exit = True
    await task
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_server_says_the_same_as_ever() -> None:
    plain, empty, stream, again = asyncio.run(_answers(["/", "/empty", "/stream", "/"]))
    assert plain.startswith(b"HTTP/1.1 200 OK\r\n")
    assert plain.endswith(b"\r\n\r\nhello")
    assert empty.endswith(b"\r\n\r\n")
    assert stream.endswith(b"\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    assert again == plain


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_answer_that_breaks_ends_the_connection() -> None:
    found = asyncio.run(_answers(["/broken"]))
    assert found == [] or found[0].startswith(b"HTTP/1.1 200 OK\r\n")
