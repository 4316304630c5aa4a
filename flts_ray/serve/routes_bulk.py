"""`POST /v1/forecast:batch`: thousands of series in one request, answered as they are made.

Design choices: the series go through the model in parts of one micro-batch, a few parts on their
way at once, so that reading, forecasting and writing overlap and other callers get their turn in
between; a series that cannot be forecast is an entry of its own; a request of which not even the
first part could be queued is refused as a whole, while there still is a status to refuse it with.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from urllib.parse import parse_qsl

import numpy as np

from flts_ray.errors import DataError, Expired, FltsError, Overloaded
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.asgi import ARROW, MSGPACK, Answer, Call
from flts_ray.serve.core import ALLOW_DEGRADED, TIMEOUT, VERSION_HEADER, Core
from flts_ray.serve.engine import Engine, ServedModel
from flts_ray.serve.laying import lay
from flts_ray.serve.predictor import check_count, made_of, wanted_horizon, wanted_levels
from flts_ray.serve.regular import chosen
from flts_ray.serve.wire_answers import BulkWriter, Done, Head, writer_of
from flts_ray.serve.wire_bulk import BulkBody, json_bulk, msgpack_bulk

PARTS_AHEAD = 3
MOST_AT_ONCE = 4
"""Bulk requests in one replica: each holds its body in memory."""
_QUERY = {
    "horizon": re.compile(r"[1-9]\d{0,6}"),
    "quantiles": re.compile(r"0?\.\d{1,20}(,0?\.\d{1,20}){0,199}"),
}
FORECAST_ID = b"x-flts-forecast-id"


@dataclass(frozen=True)
class _Job:
    """One bulk request on its way; without a deadline of its own each part has the usual time."""

    body: BulkBody
    engine: Engine
    head: Head
    writer: BulkWriter
    deadline: float | None
    call: Call


@dataclass(frozen=True)
class _Laid:
    """A part that waits for the model: its windows are of the series at the positions `rows`."""

    ids: Sequence[str]
    windows: Windows | None
    rows: np.ndarray
    refused: dict[int, FltsError]


class BulkRoute:
    """The route and how many requests it holds."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running = 0

    async def batch(self, call: Call) -> Answer:
        """Answer a bulk request. Raises DataError for a body that is none, Overloaded."""
        if call.flag(ALLOW_DEGRADED):
            field = ALLOW_DEGRADED.decode()
            raise DataError(f"{field}: not for bulk requests; repeat later instead", field=field)
        if self._running >= MOST_AT_ONCE:
            raise Overloaded(f"{self._running} bulk requests already run here", 1.0)
        self._running += 1
        try:
            job = await self._job(call)
            dones = self._dones(job)
            first = await anext(dones)
            _refuse_whole(first)
        except BaseException:
            self._release()
            raise
        headers = (
            (VERSION_HEADER, job.engine.model.version.encode()),
            (FORECAST_ID, job.head.forecast_id.encode()),
        )
        written = self._written(job, first, dones)
        return Answer(written, 200, job.writer.media, headers, self._release)

    def _release(self) -> None:
        self._running -= 1

    async def _job(self, call: Call) -> _Job:
        limits = self._core.limits
        deadline = self._core.deadline(call) if TIMEOUT in call.headers else None
        horizon, levels = query_of(call)
        raw = await call.body(limits.max_bulk_bytes)
        engine = self._core.slot.require()
        body = await self._core.offload(partial(self._read, call, raw, engine))
        model = engine.model
        check_count(body.count, limits.max_bulk_series)
        head = Head(
            token_hex(16),
            model,
            wanted_horizon(body.horizon or horizon, model, "horizon"),
            wanted_levels(levels if body.quantiles is None else body.quantiles, model, "quantiles"),
        )
        return _Job(body, engine, head, writer_of(call.wanted, head), deadline, call)

    def _read(self, call: Call, raw: bytes, engine: Engine) -> BulkBody:
        if call.media == ARROW:
            from flts_ray.serve.wire_arrow import arrow_bulk

            return arrow_bulk(raw, engine.model.fitted.spec, self._core.limits)
        read = msgpack_bulk if call.media == MSGPACK else json_bulk
        return read(raw, self._core.limits)

    async def _dones(self, job: _Job) -> AsyncIterator[Done]:
        """The parts in order, a few of them on their way."""
        size = self._core.limits.max_batch
        begins = deque(range(0, job.body.count, size))
        running: deque[asyncio.Task[Done]] = deque()
        try:
            while begins or running:
                while begins and len(running) < PARTS_AHEAD:
                    part = self._part(job, begins[0], begins.popleft() + size)
                    running.append(asyncio.create_task(part))
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    async def _part(self, job: _Job, begin: int, end: int) -> Done:
        laid = await self._core.offload(partial(_lay, job.body, begin, end, job.engine.model))
        if laid.windows is None:
            return Done(laid.ids, laid.rows, None, laid.refused)
        found, failed = await self._forecast(job, laid.windows)
        refused = laid.refused | {int(laid.rows[i]): error for i, error in failed.items()}
        if found is None:
            return Done(laid.ids, laid.rows[:0], None, refused)
        left = np.delete(np.arange(len(laid.rows)), list(failed))
        windows = chosen(laid.windows, left) if failed else laid.windows
        done = Done(laid.ids, laid.rows[left], None, refused, (windows, found))
        return await self._core.offload(partial(_made, done, job.head))

    async def _forecast(
        self, job: _Job, windows: Windows
    ) -> tuple[Forecast | None, dict[int, FltsError]]:
        """The forecast of the windows that have one, and why the others have none."""
        deadline = job.deadline
        if deadline is None:
            deadline = time.monotonic() + self._core.limits.timeout_s
        try:
            return await job.engine.forecast(windows, deadline=deadline), {}
        except (Overloaded, Expired) as error:
            return None, dict.fromkeys(range(len(windows)), error)
        except FltsError as error:
            if len(windows) == 1:
                return None, {0: error}
        half = len(windows) // 2
        left, failed = await self._forecast(job, windows.part(slice(0, half)))
        right, more = await self._forecast(job, windows.part(slice(half, None)))
        failed |= {half + i: error for i, error in more.items()}
        return _joined([one for one in (left, right) if one is not None]), failed

    async def _written(
        self, job: _Job, first: Done, dones: AsyncIterator[Done]
    ) -> AsyncIterator[bytes]:
        """The bytes of the answer."""
        async with aclosing(dones) as rest:  # type: ignore[type-var]
            yield job.writer.head() + await self._write(job, first)
            async for done in rest:
                yield await self._write(job, done)
            yield job.writer.tail()

    async def _write(self, job: _Job, done: Done) -> bytes:
        written = await self._core.offload(partial(job.writer.part, done))
        if done.told is not None:
            head = job.head
            self._core.tell(job.call, job.engine, head.forecast_id, *done.told, head.horizon)
        return written


def query_of(call: Call) -> tuple[int | None, tuple[float, ...] | None]:
    """`?horizon=24&quantiles=0.1,0.5`, for bodies that do not say it themselves.

    Raises DataError for anything that is no number.
    """
    text = call.scope.get("query_string", b"").decode("latin-1")
    try:
        given = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=20))
    except ValueError as error:
        raise DataError(f"query: {error}", field="query") from None
    for field, form in _QUERY.items():
        if field in given and not form.fullmatch(given[field]):
            raise DataError(f"{field}: {given[field][:60]!r} is none", field=field)
    horizon = int(given["horizon"]) if "horizon" in given else None
    levels = tuple(map(float, given["quantiles"].split(","))) if "quantiles" in given else None
    return horizon, levels


def _lay(body: BulkBody, begin: int, end: int, model: ServedModel) -> _Laid:
    part = body.part(begin, end)
    at = np.asarray(part.at, dtype=np.int64)
    if not len(at):
        return _Laid(part.ids, None, at, part.refused)
    laid = lay(part.asked, model)
    refused = part.refused | {int(at[i]): error for i, error in laid.refused.items()}
    return _Laid(part.ids, laid.windows, at[laid.rows], refused)


def _made(done: Done, head: Head) -> Done:
    """With its forecast; series whose forecast is not finite are refused."""
    assert done.told is not None  # the model has answered
    windows, forecast = done.told
    finite = np.isfinite(forecast.mean).all(axis=1)
    finite &= np.isfinite(forecast.quantiles).all(axis=(1, 2))
    refused, rows = done.refused, done.rows
    if not finite.all():
        for i in np.flatnonzero(~finite).tolist():
            refused[int(rows[i])] = DataError(
                f"y: the forecast of series {forecast.ids[i][:60]!r} is not finite; its values "
                "are too extreme for the model",
                field="y",
            )
        kept = np.flatnonzero(finite)
        windows, forecast, rows = chosen(windows, kept), _rows(forecast, kept), rows[kept]
    if not len(rows):
        return Done(done.ids, rows, None, refused)
    made = made_of(forecast, head.horizon, head.levels, head.model)
    return Done(done.ids, rows, made, refused, (windows, forecast))


def _rows(forecast: Forecast, rows: np.ndarray) -> Forecast:
    return Forecast(
        tuple(forecast.ids[i] for i in rows.tolist()),
        forecast.origin_us[rows],
        forecast.levels,
        forecast.mean[rows],
        forecast.quantiles[rows],
    )


def _joined(parts: Sequence[Forecast]) -> Forecast | None:
    if not parts:
        return None
    return Forecast(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([part.origin_us for part in parts]),
        parts[0].levels,
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.quantiles for part in parts]),
    )


def _refuse_whole(first: Done) -> None:
    """Raise what kept the whole first part from the model, if it was lack of room or time."""
    errors: Iterable[FltsError] = first.refused.values()
    if len(first.refused) == len(first.ids):
        for error in errors:
            if isinstance(error, Overloaded | Expired):
                raise error
