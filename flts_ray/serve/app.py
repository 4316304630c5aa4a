"""The HTTP API of one process, thin over `core`.

Design choices: the same app serves in a replica, in plain uvicorn and in the parity check; its
routes are looked up in a table and answered in plain ASGI, because a framework's routing costs as
much as a small model, and only the API page goes through Starlette; who may call is asked before
anything is read; which model answers is settled once a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from flts_ray.errors import FltsError, Overloaded
from flts_ray.serve import docs
from flts_ray.serve.asgi import ALWAYS, Answer, Call, Gone, PageSend, Receive, Scope, Send, reply
from flts_ray.serve.core import Core
from flts_ray.serve.door import Door
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.observe import Observer
from flts_ray.serve.problems import (
    CODES,
    NotAllowed,
    answer_to,
    log_failure,
    problem,
)
from flts_ray.serve.routes_bulk import BulkRoute
from flts_ray.serve.routes_forecast import ForecastRoutes
from flts_ray.serve.routes_kserve import TimeSeriesRoutes, answer_to_kserve
from flts_ray.serve.routes_state import StateRoutes


@dataclass(frozen=True)
class Served:
    """A route: what answers a call, in which shape it is refused, and whether it takes long."""

    method: str
    handle: Callable[[Call], Awaitable[Answer]]
    refuse: Callable[[FltsError], Answer] = answer_to
    long: bool = False


OTHER = "other"
RETRY_AFTER_S = 1.0
STARTED = b"x-flts-started-us"
"""Header by which our proxy tells when it took a request, in microseconds since 1970."""
MOST_WAITED_S = 60.0
Background = Callable[[], Awaitable[None]]


class Api(Starlette):
    """The routes of the service before those of the page."""

    def __init__(
        self,
        slot: ModelSlot,
        background: Background | None = None,
        door: Door | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.core = Core(slot, observer)
        self._observer = observer
        self._door = door
        self._background = background
        self._served = _table(self.core, door)
        self._most = slot.limits.max_in_work
        self._load = slot.load
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the app while it runs."""
        self.behind_proxy = False
        """Whether requests come through our proxy alone, whose word on them counts."""
        title = f"{slot.name} forecasts"
        document = orjson.dumps(docs.openapi(title, door is not None))

        async def openapi(_: Request) -> Response:
            return Response(document, media_type="application/json")

        async def page(_: Request) -> Response:
            return Response(docs.page(title), media_type="text/html")

        assets = StaticFiles(packages=[("fastapi_swagger", "resources")])
        super().__init__(
            routes=[
                Route("/openapi.json", openapi, methods=["GET"]),
                Route("/docs", page, methods=["GET"]),
                Mount("/docs/assets", assets),
            ],
            exception_handlers={HTTPException: _on_http_error},
            lifespan=_lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        call = Call(scope, receive)
        served = self._served.get(call.path)
        status = 500
        work = served if served is not None and served.method == "POST" else None
        if work is not None:
            self._load.began()
        try:
            refused = self._refused(call, work is not None)
            if refused is None and served is None:
                status = await self._page(call, send)
                return
            answer = refused or await self._answer(call, served)
            status = answer.status
            # Our proxy adds what every answer has, to its own answers too.
            await reply(call, answer, send, () if self.behind_proxy else ALWAYS)
        except Exception:
            log_failure(call)  # in the middle of an answer: nothing can be said any more
            raise
        finally:
            seconds = time.perf_counter() - call.arrived
            if work is not None:
                self._load.ended(self._waited(call, seconds) + seconds, long=work.long)
            if self._observer is not None:
                route = OTHER if served is None else call.path
                self._observer.request(route, status, seconds)

    def _refused(self, call: Call, work: bool) -> Answer | None:
        """The answer to a call that is not let in."""
        try:
            if self._door is not None:
                self._door.admit(call.path, call.headers.get(b"authorization"))
            if work:
                self._check_crowd()
        except FltsError as error:
            return answer_to(error)
        return None

    def _waited(self, call: Call, seconds: float) -> float:
        """Seconds that a request waited before it was read, as far as that is known."""
        if not self.behind_proxy or STARTED not in call.headers:
            return 0.0
        sent_us = call.headers[STARTED]
        if not sent_us.isdigit():
            return 0.0
        return min(max(time.time() - seconds - int(sent_us[:20]) / 1e6, 0.0), MOST_WAITED_S)

    def _check_crowd(self) -> None:
        ongoing = self._load.ongoing
        if ongoing > self._most:
            told = f"{ongoing} requests are already in work here; repeat a little later"
            raise Overloaded(told, RETRY_AFTER_S)

    async def _answer(self, call: Call, served: Served | None) -> Answer:
        assert served is not None  # pages are answered elsewhere
        try:
            if call.scope["method"] != served.method:
                told = f"{call.scope['method'][:20]} {call.path}: Method Not Allowed"
                raise NotAllowed(told, (served.method,))
            return await served.handle(call)
        except FltsError as error:
            return served.refuse(error)
        except Gone:
            return Answer(b"", 499)  # nginx's code for a caller that closed the connection
        except Exception:  # noqa: BLE001 -- the last line before the caller
            return problem(500, "internal", log_failure(call), None)

    async def _page(self, call: Call, send: Send) -> int:
        """Returns the status that was sent."""
        sending = PageSend(send, call)
        try:
            await super().__call__(call.scope, call.receive, sending)
        except Exception:  # noqa: BLE001 -- the last line before the caller
            log_failure(call)
        return sending.status


def build_app(
    slot: ModelSlot,
    background: Background | None = None,
    door: Door | None = None,
    observer: Observer | None = None,
) -> Api:
    """The API over the model in `slot`; `background` runs while the app does.

    door: who may call; None: everybody who reaches the port. observer: is told of every answer.
    """
    return Api(slot, background, door, observer)


def _table(core: Core, door: Door | None) -> dict[str, Served]:
    state, single, series = StateRoutes(core, door), ForecastRoutes(core), TimeSeriesRoutes(core)
    return {
        "/healthz": Served("GET", state.healthz),
        "/readyz": Served("GET", state.readyz),
        "/v1/model": Served("GET", state.model),
        "/v1/forecast": Served("POST", single.forecast),
        "/v1/forecast:batch": Served("POST", BulkRoute(core).batch, long=True),
        "/v1/timeseries/forecast": Served("POST", series.forecast, answer_to_kserve),
        "/v1/timeseries/models": Served("GET", series.models, answer_to_kserve),
        "/predict": Served("POST", single.predict),
        "/v1/admin/state": Served("GET", state.state),
    }


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    assert isinstance(app, Api)  # nothing else is built with this lifespan
    app.loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(app._background()) if app._background else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        app.core.close()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown path or method."""
    assert isinstance(error, HTTPException)  # it is registered for this type alone
    told = f"{request.method[:20]} {request.url.path[:200]}: {error.detail}"
    answer = problem(error.status_code, CODES.get(error.status_code, "error"), told, None)
    headers = dict(error.headers or {})
    return Response(answer.body, error.status_code, headers, "application/json")
