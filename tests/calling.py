"""Calls of the app without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx

from flts_ray.config_serve import ServeConfig
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot, ServedModel

Made = TypeVar("Made")


@asynccontextmanager
async def client(
    model: ServedModel | None,
    limits: ServeConfig | None = None,
    challenger: ServedModel | None = None,
    **about: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the app over these models; `about` goes to `build_app`."""
    slot = ModelSlot("demo", limits or ServeConfig())
    if model is not None:
        slot.install(model)
    slot.install_challenger(challenger)
    app = build_app(slot, **about)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        yield http
    slot.close()


def call(
    work: Callable[[httpx.AsyncClient], Awaitable[Made]],
    model: ServedModel | None = None,
    limits: ServeConfig | None = None,
    **about: Any,
) -> Made:
    """What `work` returns, in an event loop of its own."""

    async def run() -> Made:
        async with client(model, limits, **about) as http:
            return await work(http)

    return asyncio.run(run())
