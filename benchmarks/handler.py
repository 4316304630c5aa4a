"""What one request costs in the handler: the ASGI app in this process, by part; no HTTP, no Ray.

python -m benchmarks.handler [FOLDER]       # FOLDER: from `python -m benchmarks.serving.export`

Design choices: CPU time of the whole process, because the model runs in a thread of its own; the
fastest of several rounds, because whatever else runs on the machine only adds; the request is that
of `benchmarks.serve`, one known series with the first stamp and a window of points as JSON;
`without model` answers every request with one forecast made beforehand.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from flts_ray.config_serve import ServeConfig
from flts_ray.models.base import Fitted, Forecast, Task, fit_fully
from flts_ray.models.lean import load_lean
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.app import Api, build_app
from flts_ray.serve.asgi import Answer, Call, Message, reply
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.history import stamps_text
from flts_ray.serve.laying import windows_of
from flts_ray.serve.metrics import Meter
from flts_ray.serve.predictor import answer_of, asked_of, wanted_levels
from flts_ray.serve.routes_forecast import _written
from flts_ray.serve.schemas import ForecastRequest, parse_body

ROUNDS, TIMES = 15, 300
SCOPE = {"type": "http", "method": "POST", "path": "/v1/forecast", "root_path": ""}
Lone = Callable[[], Awaitable[Any]]


class Canned:
    """A model that says the same to every request."""

    def __init__(self, fitted: Fitted, forecast: Forecast) -> None:
        self.spec, self.stats, self.state = fitted.spec, fitted.stats, fitted.state
        self._forecast = forecast

    def forecast(self, windows: Windows) -> Forecast:
        return self._forecast


class Exchange:
    """One request after the other to an app."""

    def __init__(self, app: Api, body: bytes) -> None:
        self._app, self._body = app, body
        length = str(len(body)).encode()
        self.headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def __call__(self) -> None:
        self.sent.clear()
        await self._app({**SCOPE, "headers": self.headers}, self.receive, self.send)
        assert self.sent[0]["status"] == 200, self.sent


def a_model(folder: Path | None) -> tuple[Fitted, bytes]:
    """A fitted model, and a request for one of its series."""
    if folder is not None:
        fitted = load_lean(folder / "store" / "lean")
        return fitted, json.dumps(
            json.loads((folder / "golden.json").read_text())[0]["body"]
        ).encode()
    from benchmarks.serving.export import HORIZON, LEVELS, daily_set

    data = daily_set()
    fitted = fit_fully("seasonal_naive", data, Task(HORIZON, LEVELS))
    y = data.y[data.rows(0)][:336].round(2).tolist()
    start = stamps_text(steps_after(data.start_us[:1], np.array([0]), data.contract))[0]
    return fitted, json.dumps({"unique_id": data.ids[0], "start": start, "y": y}).encode()


async def cheapest(work: Lone) -> float:
    """CPU microseconds of one call, in the fastest round."""
    found = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(TIMES):
            await work()
        found.append((time.process_time() - begin) / TIMES * 1e6)
    return min(found)


def parts(model: ServedModel, body: bytes) -> dict[str, Lone]:
    """What a request consists of, each by itself."""
    limits = ServeConfig()
    spec = model.fitted.spec
    asked = asked_of(parse_body(ForecastRequest, body), limits)
    windows = windows_of(asked, model)
    made = model.fitted.forecast(windows)
    levels, horizon = wanted_levels(None, model, "quantiles"), spec.task.horizon
    exchange = Exchange(build_app(ModelSlot("bench", limits)), body)
    call = Call({**SCOPE, "headers": exchange.headers}, exchange.receive)
    ready: Answer = _written(made, horizon, levels, model, "0" * 32, None, call.wanted)

    async def read() -> None:
        asked_of(parse_body(ForecastRequest, body), limits)

    async def lay() -> None:
        windows_of(asked, model)

    async def cut() -> None:
        answer_of(made, horizon, levels, model, "0" * 32)

    async def write() -> None:
        _written(made, horizon, levels, model, "0" * 32, None, call.wanted)

    async def send() -> None:
        await reply(call, ready, exchange.send)

    async def forecast() -> None:
        model.fitted.forecast(windows)

    each: dict[str, Lone] = {"read": read, "lay": lay, "model": forecast, "cut": cut}
    return {**each, "cut and write": write, "send": send}


async def measured(fitted: Fitted, body: bytes) -> dict[str, float]:
    model = ServedModel("bench", "1", "digest", fitted)
    found = {name: await cheapest(work) for name, work in parts(model, body).items()}
    limits = ServeConfig()
    made = fitted.forecast(windows_of(asked_of(parse_body(ForecastRequest, body), limits), model))
    for name, one in {"whole": fitted, "without model": Canned(fitted, made)}.items():
        slot = ModelSlot("bench", limits)
        slot.install(ServedModel("bench", "1", "digest", one))
        found[name] = await cheapest(Exchange(build_app(slot, observer=Meter()), body))
        slot.close()
    return found


def main(folder: Path | None) -> None:
    fitted, body = a_model(folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measured(fitted, body))
    for name, cost in found.items():
        print(f"{name:14} {cost:8.1f} us")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
