"""The head of an answer and the begin of its body in one write.

uvicorn writes each by itself, and a write is a system call that wakes whoever reads: for a small
answer two of them cost more than making it. Design choices: what uvicorn writes to is put behind
a stand-in that keeps the head until something follows; where there is no such thing, as under
another server, nothing changes.
"""

from __future__ import annotations

from typing import Any, Protocol

from flts_ray.serve.asgi import Scope, Send


class Transport(Protocol):
    """What uvicorn uses of a connection."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Joined:
    """A connection on which the first two writes are one."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        elif self._head:
            joined, self._head = self._head + data, b""
            self._transport.write(joined)
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def in_one_write(scope: Scope, send: Send) -> None:
    """Let the answer to this request begin with one write. The answer to HEAD has no body."""
    cycle: Any = getattr(send, "__self__", None)
    if scope["method"] != "HEAD" and hasattr(cycle, "transport"):
        cycle.transport = Joined(cycle.transport)
