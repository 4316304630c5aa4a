"""Requests reach the app of a replica directly, everything else takes Serve's own way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from flts_ray.config_serve import ServeConfig
from flts_ray.local.ray_environment import HAPROXY
from flts_ray.serve.app import Api, build_app
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.front import Front, middlewares


class Usual:
    """Serve's own way."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope.get("path", scope["type"]))


async def asked(front: Front, path: str, kind: str = "http") -> list[int]:
    """The status that was sent, if one was."""
    sent: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    scope = {"type": kind, "method": "GET", "path": path, "root_path": "", "headers": []}
    await front(scope, receive, send)
    return sent


def an_app() -> Api:
    return build_app(ModelSlot("demo", ServeConfig()))


def in_replica(monkeypatch: pytest.MonkeyPatch, replica: Callable[[], Any]) -> None:
    monkeypatch.setattr(
        serve, "get_replica_context", lambda: SimpleNamespace(servable_object=replica())
    )


def test_requests_go_to_the_app_and_health_checks_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> tuple[list[int], list[int], list[str]]:
        app, usual = an_app(), Usual()
        in_replica(monkeypatch, lambda: SimpleNamespace(app=app))
        front = Front(usual)
        async with app.router.lifespan_context(app):
            direct = await asked(front, "/healthz")
            await asked(front, "/-/healthz")
            await asked(front, "/v1/forecast", kind="websocket")
            missing = await asked(front, "/nowhere")
        return direct, missing, usual.paths

    direct, missing, usual = asyncio.run(work())
    assert (direct, missing) == ([200], [404])
    assert usual == ["/-/healthz", "/v1/forecast"]


def test_a_replica_that_is_not_there_yet_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> tuple[list[int], list[int], list[str]]:
        app, usual = an_app(), Usual()
        found: list[Any] = [None]
        in_replica(monkeypatch, lambda: found[0])
        front = Front(usual)
        async with app.router.lifespan_context(app):
            early = await asked(front, "/healthz")
            found[0] = SimpleNamespace(app=app)
            return early, await asked(front, "/healthz"), usual.paths

    assert asyncio.run(work()) == ([], [200], ["/healthz"])


def test_an_app_that_has_not_started_in_this_loop_is_left_to_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, usual = an_app(), Usual()
    in_replica(monkeypatch, lambda: SimpleNamespace(app=app))
    assert asyncio.run(asked(Front(usual), "/healthz")) == []
    assert usual.paths == ["/healthz"]


def test_a_process_that_is_no_replica_takes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Any:
        raise RayServeException("not in a replica")

    monkeypatch.setattr(serve, "get_replica_context", nowhere)
    usual = Usual()
    asyncio.run(asked(Front(usual), "/v1/forecast"))
    assert usual.paths == ["/v1/forecast"]


def test_serve_finds_the_hook_under_the_name_that_it_is_told() -> None:
    from ray._common.utils import import_attr

    path = HAPROXY["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert import_attr(path) is middlewares
    assert [one.cls for one in middlewares()] == [Front]
