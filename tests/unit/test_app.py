from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flts_ray.config_serve import ServeConfig
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot, ServedModel
from tests.served import KnownSet, Transparent, history, known_set, plain_contract, served
from tests.served import transparent as make

LIMITS = ServeConfig(max_body_bytes=20_000, max_series=5)


@asynccontextmanager
async def client(
    model: ServedModel | None, limits: ServeConfig = LIMITS
) -> AsyncIterator[tuple[httpx.AsyncClient, ModelSlot]]:
    slot = ModelSlot("demo", limits)
    if model is not None:
        slot.install(model)
    app = build_app(slot)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        yield http, slot
    slot.close()


def call(
    work: Callable[[httpx.AsyncClient], Awaitable[Any]],
    model: ServedModel | None = None,
    limits: ServeConfig = LIMITS,
) -> Any:
    async def run() -> Any:
        async with client(model, limits) as (http, _):
            return await work(http)

    return asyncio.run(run())


def plain() -> ServedModel:
    return served(make(plain_contract()), version="7")


def test_a_crowd_is_refused_before_its_bodies_are_read() -> None:
    limits = ServeConfig(max_ongoing_requests=1, max_queued_requests=1)

    async def crowd() -> tuple[list[httpx.Response], httpx.Response, int]:
        async with client(plain(), limits) as (http, slot):
            slot.load.ongoing = 2
            posts = [await http.post(path, json={}) for path in ("/v1/forecast", "/predict")]
            health = await http.get("/healthz")
            slot.load.ongoing = 1
            posts.append(await http.post("/v1/forecast", json={}))
            return posts, health, slot.load.ongoing

    (first, second, let_in), health, ongoing = asyncio.run(crowd())
    for refused in (first, second):
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "repeat a little later" in error_of(refused)["message"]
    assert health.status_code == 200
    assert let_in.status_code == 422
    assert ongoing == 1


@pytest.mark.parametrize(
    ("trusted", "ago_s", "waited"),
    [(True, 30.0, 30.0), (True, -5.0, 0.0), (True, 9e6, 60.0), (False, 30.0, 0.0)],
)
def test_a_request_was_in_the_system_since_the_proxy_took_it(
    trusted: bool, ago_s: float, waited: float
) -> None:
    async def work() -> float:
        slot = ModelSlot("demo", ServeConfig())
        app = build_app(slot)
        app.behind_proxy = trusted
        transport = httpx.ASGITransport(app=app)
        started = {"x-flts-started-us": str(int(1e6 * (time.time() - ago_s)))}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await http.post("/v1/forecast", json={}, headers=started)
            await http.post("/v1/forecast", json={}, headers={"x-flts-started-us": "-1"})
            await http.get("/healthz", headers={"x-flts-started-us": "0"})
        slot.close()
        return slot.load.reading().p95_ms / 1e3

    assert asyncio.run(work()) == pytest.approx(waited, abs=1.0)


def test_nothing_is_forecast_for_callers_who_left_a_long_queue() -> None:
    seen: list[Windows] = []
    model = served(make(plain_contract(), seen=seen))
    body = json.dumps(history()).encode()

    async def work() -> list[int]:
        slot = ModelSlot("demo", ServeConfig())
        slot.install(model)
        app = build_app(slot)
        engine, gate = slot.require(), threading.Event()
        busy = asyncio.get_running_loop().run_in_executor(slot._thread, gate.wait, 10)
        engine._batcher._batch_s = 1.0  # what waits has been slow of late
        sent: list[int] = []

        async def ask(stays: bool) -> None:
            parts = iter([{"type": "http.request", "body": body}])

            async def receive() -> Any:
                if (part := next(parts, None)) is not None:
                    return part
                if stays:
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    sent.append(message["status"])

            scope = {"type": "http", "method": "POST", "path": "/v1/forecast", "headers": []}
            await app(scope, receive, send)

        stays = [asyncio.create_task(ask(True)) for _ in range(2)]
        while engine._batcher._worker is None or engine.queued:
            await asyncio.sleep(0.001)  # until theirs is in flight
        await asyncio.gather(*(ask(False) for _ in range(3)))
        gate.set()
        await busy
        await asyncio.gather(*stays)
        slot.close()
        return sorted(sent)

    assert asyncio.run(work()) == [200, 200, 499, 499, 499]
    assert sum(len(windows) for windows in seen) == 2


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message", "field"}
    error: dict[str, Any] = body["error"]
    return error


def test_a_forecast_over_http() -> None:
    answer = call(lambda http: http.post("/v1/forecast", json=history(horizon=2)), plain())
    assert answer.status_code == 200
    assert answer.headers["x-flts-model-version"] == "7"
    body = answer.json()
    assert re.fullmatch("[0-9a-f]{32}", body["forecast_id"])
    assert body["forecasts"][0]["mean"] == [29.0, 29.0]


def test_the_older_body_over_http() -> None:
    body = {"data": {"ts": history()["ds"], "y": [1.0] * 30}, "inference_length": 6}
    answer = call(lambda http: http.post("/predict", json=body), plain())
    assert answer.json()["status"] == "SUCCESS"
    assert [row["y"] for row in answer.json()["predictions"]] == [1.0] * 6


def test_a_series_known_by_name_over_http() -> None:
    data = known_set()
    model = served(make(data.contract, data.ids), known=KnownSet(data))
    body = {"unique_id": "s1", "known_future": {"event": [0.0] * 6}}
    answer = call(lambda http: http.post("/v1/forecast", json=body), model)
    assert answer.json()["forecasts"][0]["mean"] == [data.take([1]).y[-1]] * 6


def test_health_and_readiness_with_a_champion() -> None:
    async def work(http: httpx.AsyncClient) -> list[Any]:
        return [(await http.get(path)).json() for path in ("/healthz", "/readyz", "/v1/model")]

    alive, ready, model = call(work, plain())
    assert alive == {"status": "ok"}
    assert ready["ready"] is True
    assert model["version"] == "7"
    assert model["horizon"] == 6


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/readyz"), ("GET", "/v1/model"), ("POST", "/v1/forecast"), ("POST", "/predict")],
)
def test_without_a_champion_the_command_that_makes_one_is_told(method: str, path: str) -> None:
    answer = call(lambda http: http.request(method, path))
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "unavailable"
    assert "flts train --config" in error_of(answer)["message"]


def test_without_a_champion_the_process_is_alive() -> None:
    assert call(lambda http: http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (json.dumps({"series": [history(), history(5)]}).encode(), "series[1].y"),
        (json.dumps(history(quantiles=[0.999])).encode(), "quantiles[0]"),
    ],
)
def test_a_bad_request_is_422_and_names_the_field(body: bytes, field: str) -> None:
    answer = call(lambda http: http.post("/v1/forecast", content=body), plain())
    assert answer.status_code == 422
    assert error_of(answer)["field"] == field
    assert error_of(answer)["code"] == "bad_request"


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(30):
        yield b" " * 1000


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_413(declared: bool) -> None:
    content = b" " * 30_000 if declared else _chunks()
    answer = call(lambda http: http.post("/v1/forecast", content=content), plain())
    assert answer.status_code == 413
    assert "20000 bytes" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("GET", "/predict", 405)]
)
def test_unknown_paths_and_methods_have_the_same_shape(method: str, path: str, status: int) -> None:
    answer = call(lambda http: http.request(method, path), plain())
    assert answer.status_code == status
    assert path in error_of(answer)["message"]


def test_an_unexpected_error_is_logged_and_not_shown() -> None:
    class Broken(Transparent):
        def forecast(self, windows: Windows) -> Forecast:
            raise ZeroDivisionError("secret")

    fitted = make(plain_contract())
    model = served(Broken(fitted.spec, fitted.stats))
    with capture_logs() as logs:
        answer = call(lambda http: http.post("/v1/forecast", json=history()), model)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert [entry["event"] for entry in logs] == ["request_failed"]


@dataclass
class Slow(Transparent):
    """Waits for `gate`, and tells through `started` that it does."""

    gate: threading.Event | None = None
    started: threading.Event | None = None

    def forecast(self, windows: Windows) -> Forecast:
        assert self.gate is not None
        assert self.started is not None
        self.started.set()
        assert self.gate.wait(30)
        return super().forecast(windows)


def slow(shift: float = 0.0) -> Slow:
    fitted = make(plain_contract())
    gate, started = threading.Event(), threading.Event()
    return Slow(fitted.spec, fitted.stats, shift, gate=gate, started=started)


def test_health_answers_while_the_model_works() -> None:
    fitted = slow()

    async def work(http: httpx.AsyncClient) -> int:
        forecast = asyncio.create_task(http.post("/v1/forecast", json=history()))
        assert fitted.started is not None
        assert fitted.gate is not None
        await asyncio.to_thread(fitted.started.wait, 30)
        alive = await http.get("/healthz")
        assert not forecast.done()
        fitted.gate.set()
        assert (await forecast).status_code == 200
        return alive.status_code

    assert call(work, served(fitted)) == 200


def test_a_request_in_flight_is_answered_by_the_model_it_met() -> None:
    old, new = slow(shift=1.0), make(plain_contract(), shift=2.0)

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with client(served(old, "1")) as (http, slot):
            first = asyncio.create_task(http.post("/v1/forecast", json=history()))
            assert old.started is not None
            assert old.gate is not None
            await asyncio.to_thread(old.started.wait, 30)
            slot.install(served(new, "2"))
            second = asyncio.create_task(http.post("/v1/forecast", json=history()))
            await asyncio.sleep(0)
            old.gate.set()
            return await first, await second

    for answer, version in zip(asyncio.run(run()), "12", strict=True):
        assert answer.headers["x-flts-model-version"] == version
        assert answer.json()["model"]["version"] == version
        assert answer.json()["forecasts"][0]["mean"][0] == 29.0 + int(version)


def test_the_background_task_lives_as_long_as_the_app() -> None:
    seen: list[str] = []

    async def background() -> None:
        seen.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("stopped")

    async def run() -> None:
        app = build_app(ModelSlot("demo", LIMITS), background)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
            assert seen == ["started"]

    asyncio.run(run())
    assert seen == ["started", "stopped"]


def test_the_api_page_needs_nothing_from_outside() -> None:
    async def work(http: httpx.AsyncClient) -> tuple[str, list[httpx.Response]]:
        page = (await http.get("/docs")).text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        return page, [await http.get(f"/{link}") for link in [*links, "openapi.json"]]

    page, assets = call(work, plain())
    assert "://" not in page
    assert len(assets) == 4
    assert all(asset.status_code == 200 for asset in assets)


def test_the_schema_describes_bodies_and_answers() -> None:
    schema = call(lambda http: http.get("/openapi.json"), plain()).json()
    body = schema["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ForecastRequest"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert references <= set(schema["components"]["schemas"])
    assert {"ForecastRequest", "SeriesRequest", "PredictRequest", "ErrorAnswer"} <= references


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "s0", "2024-01-01", "9999-12-31", "1677-01-01T00:00Z"]),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=30,
)
FIELDS = [
    "unique_id", "ds", "start", "y", "observed", "origin", "known_future", "past", "static",
    "series", "horizon", "quantiles", "index_col", "data", "inference_length",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.booleans())
def test_no_body_makes_a_server_error(changes: dict[str, Any], valid_base: bool) -> None:
    data = known_set(covariates=False)
    model = served(make(data.contract, data.ids), known=KnownSet(data))
    body = {**(history() if valid_base else {}), **changes}

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        content = json.dumps(body).encode()
        return [await http.post(path, content=content) for path in ("/v1/forecast", "/predict")]

    for answer in call(work, model):
        assert answer.status_code in (200, 413, 422)
        assert "error" in answer.json() or "model" in answer.json() or "run_id" in answer.json()
