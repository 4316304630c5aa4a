"""KServe's time-series routes: another thin codec over the one core call."""

from __future__ import annotations

import time
from functools import partial

from flts_ray.errors import FltsError
from flts_ray.serve.asgi import Answer, Call, json_answer
from flts_ray.serve.core import VERSION_HEADER, Core, Taken, reads_store
from flts_ray.serve.engine import Engine
from flts_ray.serve.laying import lay
from flts_ray.serve.predictor import check_count, made_of, wanted_horizon, wanted_levels
from flts_ray.serve.problems import NotFound, headers_of
from flts_ray.serve.schemas import check_depth, parse_body
from flts_ray.serve.wire_kserve import TimeSeriesRequest, error_of, inputs_of, time_series_answer


class TimeSeriesRoutes:
    """`POST /v1/timeseries/forecast` and the list of models."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def models(self, call: Call) -> Answer:
        """Names of the models that can be asked: the champion's."""
        self._core.slot.require()
        return json_answer([self._core.slot.name])

    async def forecast(self, call: Call) -> Answer:
        """Forecast every input that can be; raises what refuses the whole request."""
        core = self._core
        core.slot.require()
        taken = await core.take(call)
        request = await core.near(taken.small, partial(self._parse, taken.body))
        answer = partial(self._answered, call, taken, request)
        return await core.answered(request.inputs[0].name, answer)

    async def _answered(
        self,
        call: Call,
        taken: Taken,
        request: TimeSeriesRequest,
        engine: Engine,
    ) -> Answer:
        core, model = self._core, engine.model
        spec, points = model.fitted.spec, core.limits.max_points
        options = request.options
        horizon = wanted_horizon(options.horizon, model, "options.horizon")
        levels = wanted_levels(options.quantiles or (), model, "options.quantiles")
        read = partial(inputs_of, request, spec.contract, points, time.time_ns() // 1000)
        found = await core.near(taken.small, read)
        here = taken.small and not reads_store(found.asked, engine)
        laid = await core.near(here, partial(lay, found.asked, model))
        refused = dict(found.refused)
        for position, error in laid.refused.items():
            refused.setdefault(found.owner[position], error)
        rows = {int(position): row for row, position in enumerate(laid.rows)}
        made, degraded, closed = None, None, None
        name = f"resp_{core.new_id()}"
        if laid.windows is not None:
            forecast, degraded = await core.forecast(call, taken, engine, laid.windows)
            made = made_of(forecast, horizon, levels, model)
            told = (call, engine, name, laid.windows, forecast, horizon, degraded is not None)
            closed = partial(core.tell, *told)
        payload = {"id": name, **time_series_answer(request, found, made, rows, refused, model)}
        if degraded is not None:
            payload |= degraded.marks()
        answer = json_answer(payload, headers=((VERSION_HEADER, model.version.encode()),))
        answer.closed = closed
        return answer

    def _parse(self, body: bytes) -> TimeSeriesRequest:
        limits = self._core.limits
        check_depth(body, limits.max_depth)
        request = parse_body(TimeSeriesRequest, body, limits.max_depth)
        if request.model != self._core.slot.name:
            raise NotFound(
                f"model: {request.model[:60]!r} is not served here, {self._core.slot.name!r} is"
            )
        check_count(len(request.inputs), limits.max_series, "inputs")
        return request


def answer_to_kserve(error: FltsError) -> Answer:
    """A refusal of the whole request in the protocol's shape."""
    return json_answer({"error": error_of(error)}, error.status, headers_of(error))
