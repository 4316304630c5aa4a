"""A large body as it comes in, in one piece of memory.

Design choices: each piece is added to the whole at once, because pieces that are kept to be joined
at the end take the memory twice, and fresh memory for each takes longer than the network.
"""

from __future__ import annotations

from flts_ray.serve.asgi import Call, Message, Receive


async def whole_body(call: Call, max_bytes: int) -> bytes:
    """What `Call.body` returns and raises; a body of several pieces is a bytearray."""
    receive = call.receive
    call.receive = _at_once(receive, max_bytes)
    try:
        return await call.body(max_bytes)
    finally:
        call.receive = receive


def _at_once(receive: Receive, max_bytes: int) -> Receive:
    """Gives the whole body as one message, or as much of it as shows that it is too large."""

    async def whole() -> Message:
        message = await receive()
        if not message.get("more_body", False):
            return message
        body = bytearray(message.get("body", b""))
        while len(body) <= max_bytes:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return {"type": "http.request", "body": body, "more_body": False}

    return whole
