"""The HTTP API of one process, thin over `predictor`.

Design choices: the same app serves in a replica, in plain uvicorn and in the parity check; the
event loop only moves bytes, requests are read and models called in threads, so that health
checks always answer; which model answers is settled once a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from flts_ray import __version__
from flts_ray.serve.docs import add_docs, body_of
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.older import older_answer, older_question
from flts_ray.serve.predictor import answer_of, describe, model_of, question_of
from flts_ray.serve.problems import ProblemRoute, json_response, on_http_error, read_body
from flts_ray.serve.schemas import (
    ErrorAnswer,
    ForecastAnswer,
    ForecastRequest,
    PredictAnswer,
    PredictRequest,
    parse_body,
)

VERSION_HEADER = "x-flts-model-version"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    422: {"model": ErrorAnswer, "description": "The request cannot be used; `field` says where"},
    503: {"model": ErrorAnswer, "description": "No champion is loaded, or too many requests wait"},
}
_Made = TypeVar("_Made")


def build_app(slot: ModelSlot, background: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """The API over the model in `slot`; `background` runs while the app does."""
    intake = ThreadPoolExecutor(2, thread_name_prefix="intake")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.ensure_future(background()) if background else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            intake.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title=f"{slot.name} forecasts",
        version=__version__,
        description="Forecasts with quantiles from the champion of the model registry.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: on_http_error},
    )
    app.router.route_class = ProblemRoute
    _add_health(app, slot)
    _add_forecasts(app, slot, intake)
    add_docs(app)
    return app


def _add_health(app: FastAPI, slot: ModelSlot) -> None:
    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get("/readyz", summary="A champion is loaded", responses={503: _REFUSALS[503]})
    async def readyz() -> Response:
        model = slot.require().model
        return _answer(model, {"ready": True, "model": model_of(model)})

    @app.get("/v1/model", summary="The champion and its contract", responses={503: _REFUSALS[503]})
    async def model() -> Response:
        champion = slot.require().model
        return _answer(champion, describe(champion))


def _add_forecasts(app: FastAPI, slot: ModelSlot, intake: ThreadPoolExecutor) -> None:
    limits = slot.limits

    async def offload(work: Callable[[], _Made]) -> _Made:
        return await asyncio.get_running_loop().run_in_executor(intake, work)

    @app.post(
        "/v1/forecast",
        summary="Forecast one or many series",
        responses={200: {"model": ForecastAnswer}, **_REFUSALS},
        openapi_extra=body_of(ForecastRequest),
    )
    async def forecast(request: Request) -> Response:
        engine = slot.require()
        body = await read_body(request, limits.max_body_bytes)
        question = await offload(
            lambda: question_of(parse_body(ForecastRequest, body), engine.model, limits),
        )
        made = await engine.forecast(question.windows)
        return await offload(
            lambda: _answer(engine.model, answer_of(question, made, engine.model, uuid4().hex)),
        )

    @app.post(
        "/predict",
        summary="Forecast the target columns of a table (older body)",
        responses={200: {"model": PredictAnswer}, **_REFUSALS},
        openapi_extra=body_of(PredictRequest),
    )
    async def predict(request: Request) -> Response:
        engine = slot.require()
        body = await read_body(request, limits.max_body_bytes)
        question, columns = await offload(
            lambda: older_question(
                parse_body(PredictRequest, body), engine.model, limits.max_points
            ),
        )
        made = await engine.forecast(question.windows)
        return _answer(
            engine.model, older_answer(question, columns, made, engine.model, uuid4().hex)
        )


def _answer(model: ServedModel, payload: dict[str, Any]) -> Response:
    return json_response(payload, headers={VERSION_HEADER: model.version})
