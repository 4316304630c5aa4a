"""A handler that reads the body and says nothing: what the ingress alone costs."""

from __future__ import annotations

from typing import Any

from ray import serve


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


@serve.ingress()
class Empty:
    """The deployment."""

    async def __serve_build_asgi_app__(self) -> Any:
        return nothing
