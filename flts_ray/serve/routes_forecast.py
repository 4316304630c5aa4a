"""`POST /v1/forecast` and the older `/predict`: thin codecs over the one core call."""

from __future__ import annotations

from functools import partial

import msgspec

from flts_ray.errors import Unavailable
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.asgi import ARROW, JSON, MSGPACK, Answer, Call, json_answer
from flts_ray.serve.core import VERSION_HEADER, Core, Taken, reads_store
from flts_ray.serve.degraded import Degraded
from flts_ray.serve.engine import Engine, ServedModel
from flts_ray.serve.laying import windows_of
from flts_ray.serve.older import (
    asked_length,
    first_series,
    older_answer,
    older_question,
    parse_older,
)
from flts_ray.serve.predictor import (
    SentRequest,
    answer_of,
    asked_of,
    wanted_horizon,
    wanted_levels,
)
from flts_ray.serve.problems import UnsupportedMedia
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.schemas import ForecastRequest, PredictRequest, parse_body
from flts_ray.serve.wire_bulk import packed_request

FEW = 16
"""Series whose answer is written faster than it is handed to a thread."""


class ForecastRoutes:
    """Both routes that answer for all series of a request or for none."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def forecast(self, call: Call) -> Answer:
        """Forecast one or many series."""
        core = self._core
        core.slot.require()
        taken = await core.take(call)
        request = await core.near(taken.small, partial(self._parse, call, taken.body))
        asked = asked_of(request, core.limits)
        answer = partial(self._answered, call, taken, request, asked)
        return await core.answered(asked[0].id, answer)

    async def _answered(
        self,
        call: Call,
        taken: Taken,
        request: SentRequest,
        asked: list[AskedSeries],
        engine: Engine,
    ) -> Answer:
        core, model = self._core, engine.model
        horizon = wanted_horizon(request.horizon, model, "horizon")
        levels = wanted_levels(request.quantiles, model, "quantiles")
        here = taken.small and not reads_store(asked, engine)
        windows, made, degraded = await self._made(call, taken, engine, asked, here)
        if degraded is None:
            core.last.remember(made, [one.named for one in asked])
        name = core.new_id()
        write = partial(_written, made, horizon, levels, model, name, degraded, call.wanted)
        answer = await core.near(len(asked) <= FEW, write)
        if windows is not None:
            told = (call, engine, name, windows, made, horizon, degraded is not None)
            answer.closed = partial(core.tell, *told)
        return answer

    async def _made(
        self,
        call: Call,
        taken: Taken,
        engine: Engine,
        asked: list[AskedSeries],
        here: bool,
    ) -> tuple[Windows | None, Forecast, Degraded | None]:
        try:
            windows = await self._core.near(here, partial(windows_of, asked, engine.model))
        except Unavailable as error:
            return None, *self._core.recalled(
                [one.id for one in asked], error, taken.allow_degraded
            )
        return windows, *await self._core.forecast(call, taken, engine, windows)

    def _parse(self, call: Call, body: bytes) -> SentRequest:
        if call.media == JSON:
            return parse_body(ForecastRequest, body, self._core.limits.max_depth)
        if call.media == MSGPACK:
            return packed_request(body, self._core.limits)
        raise UnsupportedMedia(
            f"content-type: {ARROW.decode()} is for /v1/forecast:batch; send JSON or msgpack"
        )

    async def predict(self, call: Call) -> Answer:
        """Forecast the target columns of a table (older body)."""
        core = self._core
        champion = core.slot.require().model
        taken = await core.take(call)
        parse = partial(parse_older, taken.body, core.limits.max_depth)
        request = await core.near(taken.small, parse)
        answer = partial(self._predicted, call, taken, request, asked_length(request, call.query()))
        return await core.answered(first_series(request, champion), answer)

    async def _predicted(
        self,
        call: Call,
        taken: Taken,
        request: PredictRequest,
        steps: int,
        engine: Engine,
    ) -> Answer:
        core, model = self._core, engine.model
        here = taken.small and not model.fitted.spec.contract.static
        read = partial(older_question, request, steps, model, core.limits.max_points)
        question, columns = await core.near(here, read)
        made, degraded = await core.forecast(call, taken, engine, question.windows)
        name = core.new_id()
        payload = older_answer(question, columns, made, model, name)
        if degraded is not None:
            payload |= degraded.marks()
        answer = json_answer(payload, headers=_version(model))
        told = (call, engine, name, question.windows, made, question.horizon, degraded is not None)
        answer.closed = partial(core.tell, *told)
        return answer


def _version(model: ServedModel) -> tuple[tuple[bytes, bytes], ...]:
    return ((VERSION_HEADER, model.version.encode()),)


def _written(
    made: Forecast,
    horizon: int,
    levels: tuple[float, ...],
    model: ServedModel,
    name: str,
    degraded: Degraded | None,
    wanted: bytes,
) -> Answer:
    payload = answer_of(made, horizon, levels, model, name)
    if degraded is not None:
        payload |= degraded.marks()
    answer = json_answer(payload, headers=_version(model))
    if wanted != MSGPACK:
        return answer
    assert isinstance(answer.body, bytes)  # it is one JSON document
    packed = msgspec.msgpack.encode(msgspec.json.decode(answer.body))
    return Answer(packed, 200, MSGPACK, answer.headers)
