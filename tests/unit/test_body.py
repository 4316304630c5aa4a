from __future__ import annotations

import asyncio

import pytest

from flts_ray.serve.asgi import BodyTooLarge, Call, Gone, Message


def call_of(*messages: Message, declared: int | None = None) -> Call:
    coming = iter(messages)

    async def receive() -> Message:
        return next(coming)

    headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
    return Call({"type": "http", "path": "/", "headers": headers}, receive)


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "messages",
    [
        [piece(b"abcdef", more=False)],
        [piece(b"abc"), piece(b"def", more=False)],
        [piece(b""), piece(b"abcd"), piece(b"ef"), {"type": "http.request"}],
    ],
)
def test_pieces_become_one_body(messages: list[Message]) -> None:
    call = call_of(*messages, {"type": "http.disconnect"})
    assert asyncio.run(call.body(6)) == b"abcdef"
    assert asyncio.run(call.receive()) == {"type": "http.disconnect"}  # type: ignore[arg-type]


def test_a_body_that_grows_too_large_is_not_read_to_its_end() -> None:
    call = call_of(piece(b"abc"), piece(b"def"), piece(b"never"))
    with pytest.raises(BodyTooLarge):
        asyncio.run(call.body(5))
    assert asyncio.run(call.receive())["body"] == b"never"  # type: ignore[arg-type]


def test_a_declared_size_is_refused_unread() -> None:
    call = call_of(piece(b"abc"), declared=9)
    with pytest.raises(BodyTooLarge):
        asyncio.run(call.body(5))
    assert asyncio.run(call.receive())["body"] == b"abc"  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [[], [piece(b"abc")]])
def test_a_caller_who_has_gone_is_noticed(before: list[Message]) -> None:
    with pytest.raises(Gone):
        asyncio.run(call_of(*before, {"type": "http.disconnect"}).body(10))
