from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.serve.asgi import Answer, Call, Gone, Message, reply, unless_gone
from flts_ray.serve.observe import Made
from tests.calling import call
from tests.served import history, plain_contract, served, stamps, transparent

MODEL = served(transparent(plain_contract()), version="7")


@pytest.mark.parametrize("path", ["/healthz", "/v1/model", "/nothing", "/docs", "/openapi.json"])
def test_every_answer_has_the_security_headers(path: str) -> None:
    headers = call(lambda http: http.get(path), MODEL).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert len(headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("my-id:1.2_3", True), ("a b", False), ("x" * 129, False), ("<b>", False), ("", False)],
)
def test_a_usable_request_id_is_sent_back(sent: str, kept: bool) -> None:
    headers = {"x-request-id": sent}
    answer = call(lambda http: http.post("/v1/forecast", json={}, headers=headers), MODEL)
    assert (answer.headers["x-request-id"] == sent) is kept


def test_a_server_error_names_the_request_id_alone() -> None:
    class Broken(type(MODEL.fitted)):  # type: ignore[misc]
        def forecast(self, windows: Any) -> Any:
            raise ZeroDivisionError("secret")

    model = served(Broken(MODEL.fitted.spec, MODEL.fitted.stats))
    headers = {"x-request-id": "mine"}
    answer = call(lambda http: http.post("/v1/forecast", json=history(), headers=headers), model)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].endswith("under request id mine")
    assert "secret" not in answer.text


def test_a_wrong_method_is_told_the_right_one() -> None:
    answer = call(lambda http: http.delete("/v1/forecast"), MODEL)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_a_single_request_may_be_msgpack() -> None:
    y = np.arange(30.0)
    bodies = [
        {"start": stamps(1)[0], "y": y.tobytes(), "horizon": 2},
        {"series": [{"ds": stamps(30), "y": y.astype("<f4").tobytes(), "dtype": "float32"}]},
        {"series": [{"ds": stamps(30), "y": y.tolist()}]},
    ]

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        headers = {"content-type": "application/msgpack"}
        return [
            await http.post("/v1/forecast", content=msgspec.msgpack.encode(body), headers=headers)
            for body in bodies
        ]

    for answer in call(work, MODEL):
        assert answer.headers["content-type"] == "application/msgpack"
        assert msgspec.msgpack.decode(answer.content)["forecasts"][0]["mean"][:2] == [29.0, 29.0]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"y": b"123"}, "y"),
        ({"series": [{"y": b"123"}]}, "series[0].y"),
        ({"series": [{}] * 4}, "series"),
        ({"series": 1}, "series"),
        ({"series": [{"y": "a"}]}, "series[0].y"),
        ({"series": [{}], "y": [1.0]}, "y"),
        ({"extra": 1}, "extra"),
        ([], "body"),
    ],
)
def test_msgpack_that_cannot_be_used_names_the_field(body: Any, field: str) -> None:
    headers = {"content-type": "application/msgpack"}
    content = msgspec.msgpack.encode(body)
    answer = call(
        lambda http: http.post("/v1/forecast", content=content, headers=headers),
        MODEL,
        ServeConfig(max_series=3),
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_arrow_belongs_to_the_bulk_route() -> None:
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = call(lambda http: http.post("/v1/forecast", content=b"", headers=headers), MODEL)
    assert answer.status_code == 415


def test_large_bodies_are_read_in_a_thread_alike() -> None:
    body = {"series": [history(500, unique_id=f"s{i}") for i in range(30)]}
    answer = call(lambda http: http.post("/v1/forecast", json=body), MODEL)
    assert [one["mean"][0] for one in answer.json()["forecasts"]][2:] == [499.0] * 28


@dataclass
class Seen:
    requests: list[tuple[str, int]] = field(default_factory=list)
    forecasts: list[Made] = field(default_factory=list)

    def request(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((route, status))

    def forecast(self, made: Made) -> None:
        self.forecasts.append(made)


def test_an_observer_is_told_of_every_answer_and_forecast() -> None:
    seen = Seen()

    async def work(http: httpx.AsyncClient) -> list[dict[str, Any]]:
        one = await http.post("/v1/forecast", json=history(horizon=2))
        many = [history(unique_id=f"s{i}", count=30 if i else 2) for i in range(4)]
        bulk = await http.post("/v1/forecast:batch", json={"series": many})
        await http.post("/v1/forecast", json={})
        await http.get("/healthz")
        await http.get("/else/where")
        return [one.json(), bulk.json()]

    one, bulk = call(work, MODEL, ServeConfig(max_batch=2), observer=seen)
    assert seen.requests == [
        ("/v1/forecast", 200), ("/v1/forecast:batch", 200), ("/v1/forecast", 422),
        ("/healthz", 200), ("other", 404),
    ]  # fmt: skip
    single, *parts = seen.forecasts
    assert single.forecast_id == one["forecast_id"]
    assert single.horizon == 2
    assert (single.name, single.version, single.role) == ("demo", "7", "champion")
    assert not single.degraded
    assert [made.windows.ids for made in parts] == [("s1",), ("s2", "s3")]
    assert [made.forecast.ids for made in parts] == [("s1",), ("s2", "s3")]
    assert {made.forecast_id for made in parts} == {bulk["forecast_id"]}


def test_a_stream_whose_reader_has_gone_is_not_made_to_its_end() -> None:
    async def run() -> tuple[int, list[str]]:
        made, notes = 0, []

        async def parts() -> AsyncIterator[bytes]:
            nonlocal made
            try:
                for _ in range(100):
                    made += 1
                    yield b"x"
                    await asyncio.sleep(0.001)
            finally:
                notes.append("closed")

        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and made == 3:
                gone.set()

        scope = {"type": "http", "path": "/", "headers": []}
        answer = Answer(parts(), closed=lambda: notes.append("told"))
        await reply(Call(scope, receive), answer, send)
        return made, notes

    made, notes = asyncio.run(run())
    assert made < 50
    assert notes == ["closed", "told"]


def test_a_prefix_is_left_out_of_the_path() -> None:
    async def receive() -> Message:
        return {}

    scope = {"type": "http", "path": "/api/healthz", "root_path": "/api", "headers": []}
    assert Call(scope, receive).path == "/healthz"


def test_an_app_may_be_started_again() -> None:
    from flts_ray.serve.app import build_app
    from flts_ray.serve.engine import ModelSlot

    slot = ModelSlot("demo", ServeConfig())
    slot.install(MODEL)
    app = build_app(slot)

    async def work() -> int:
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            answer = await http.post("/v1/forecast:batch", json={"series": [history()]})
            return answer.status_code

    assert [asyncio.run(work()), asyncio.run(work())] == [200, 200]


def _leaving(after: asyncio.Event) -> Call:
    """A call whose caller goes away then."""

    async def receive() -> Message:
        await after.wait()
        return {"type": "http.disconnect"}

    return Call({"path": "/", "headers": []}, receive)


def test_work_goes_on_while_its_caller_waits() -> None:
    async def work() -> int:
        async def five() -> int:
            await asyncio.sleep(0)
            return 5

        return await unless_gone(_leaving(asyncio.Event()), five())

    assert asyncio.run(work()) == 5


def test_work_for_a_caller_who_left_is_given_up() -> None:
    async def work() -> bool:
        left, given_up = asyncio.Event(), asyncio.Event()

        async def endless() -> None:
            left.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()

        with pytest.raises(Gone):
            await unless_gone(_leaving(left), endless())
        await asyncio.wait_for(given_up.wait(), 10)
        return True

    assert asyncio.run(work())


def test_a_failure_is_the_callers() -> None:
    async def work() -> None:
        async def broken() -> None:
            raise ValueError("broken")

        await unless_gone(_leaving(asyncio.Event()), broken())

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(work())
