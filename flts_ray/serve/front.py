"""A request's way from the replica's HTTP server straight to its app.

Design choices: Ray Serve's own steps around a request (a context, a record, a semaphore, metrics
of its own) cost more than reading the request, and the app does what matters of them itself: it
counts what is in flight for scaling, refuses what is too much, and measures; so a middleware of
Serve's hook for them hands requests to the app, and everything else, health checks above all, goes
the usual way; a process that is no replica, or a replica that runs its app in another event loop,
never leaves the usual way. A replica that stops still finishes its requests, because its HTTP
server waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware

from flts_ray.serve.app import Api
from flts_ray.serve.asgi import Receive, Scope, Send
from flts_ray.serve.one_write import in_one_write

OWN_OF_SERVE = "/-/"
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Front:
    """Asks the app of this replica, or `usual` where there is none."""

    def __init__(self, app: App) -> None:
        self._usual = app
        self._direct: Api | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OWN_OF_SERVE):
            await self._usual(scope, receive, send)
            return
        if self._direct is None:
            self._direct = app_of_this_replica()
            if self._direct is not None:
                self._direct.behind_proxy = True
        if self._direct is None:
            await self._usual(scope, receive, send)
            return
        in_one_write(scope, send)
        await self._direct(scope, receive, send)


def app_of_this_replica() -> Api | None:
    """The started app of the replica that this process is, if it runs in this event loop."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        replica = serve.get_replica_context().servable_object
    except RayServeException:
        return None
    app = getattr(replica, "app", None)
    here = isinstance(app, Api) and app.loop is asyncio.get_running_loop()
    return app if here else None


def middlewares() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Front)]
