"""`POST /v1/forecast:batch`: thousands of series in one request, answered as they are made.

Design choices: the series are read and written in parts, a few parts on their way at once, and go
through the model in micro-batches, so that reading, forecasting and writing overlap and other
callers get their turn in between; a series that cannot be forecast is an entry of its own; a
request of which not even the first part could be queued is refused as a whole, while there still
is a status to refuse it with.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from flts_ray.errors import DataError, Expired, FltsError, Overloaded
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.asgi import ARROW, MSGPACK, Answer, Call
from flts_ray.serve.bulk_cuts import Cuts, numbers_of
from flts_ray.serve.bulk_made import finite_rows, made_of_many
from flts_ray.serve.bulk_parts import BulkWriter, Done, Head, joined, rows_of
from flts_ray.serve.bulk_stand_in import stand_in, told_of
from flts_ray.serve.core import ALLOW_DEGRADED, TIMEOUT, VERSION_HEADER, Core
from flts_ray.serve.degraded import Degraded
from flts_ray.serve.engine import Engine, ServedModel
from flts_ray.serve.laying import lay
from flts_ray.serve.predictor import check_count, not_finite, wanted_horizon, wanted_levels
from flts_ray.serve.regular import chosen
from flts_ray.serve.wire_answers import writer_of
from flts_ray.serve.wire_bulk import BulkBody, json_bulk, msgpack_bulk

PARTS_AHEAD = 3
BATCHES_AHEAD = 3
"""Micro-batches of one request that wait for the model: other callers wait no longer."""
MOST_AT_ONCE = 4
"""Bulk requests in one replica: each holds its body in memory."""
_QUERY = {
    "horizon": re.compile(r"[1-9]\d{0,6}"),
    "quantiles": re.compile(r"0?\.\d{1,20}(,0?\.\d{1,20}){0,199}"),
}
FORECAST_ID = b"x-flts-forecast-id"


@dataclass(frozen=True)
class _Job:
    """One bulk request on its way; without a deadline of its own each batch has the usual time."""

    body: BulkBody
    engine: Engine
    head: Head
    writer: BulkWriter
    deadline: float | None
    call: Call
    turn: asyncio.Semaphore


@dataclass(frozen=True)
class _Laid:
    """A part that waits for the model: its windows are of the series at the positions `rows`."""

    ids: Sequence[str]
    windows: Windows | None
    rows: np.ndarray
    refused: dict[int, FltsError]


@dataclass(frozen=True)
class _Written:
    """A part and its bytes in the answer."""

    done: Done
    body: bytes


class BulkRoute:
    """The route and how many requests it holds."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running = 0

    async def batch(self, call: Call) -> Answer:
        """Answer a bulk request. Raises DataError for a body that is none, Overloaded."""
        if self._running >= MOST_AT_ONCE:
            raise Overloaded(f"{self._running} bulk requests already run here", 1.0)
        self._running += 1
        try:
            job = await self._job(call)
            parts = self._parts(job)
            first = await anext(parts)
            _refuse_whole(first.done)
        except BaseException:
            self._release()
            raise
        headers = (
            (VERSION_HEADER, job.engine.model.version.encode()),
            (FORECAST_ID, job.head.forecast_id.encode()),
        )
        body = self._sent(job, first, parts)
        return Answer(body, 200, job.writer.media, headers, self._release)

    def _release(self) -> None:
        self._running -= 1

    async def _job(self, call: Call) -> _Job:
        limits = self._core.limits
        deadline = self._core.deadline(call) if TIMEOUT in call.headers else None
        allow = call.flag(ALLOW_DEGRADED)
        horizon, levels = query_of(call)
        raw = await call.body(limits.max_bulk_bytes)
        engine = self._core.slot.require()
        body = await self._core.offload(partial(self._read, call, raw, engine))
        model = engine.model
        check_count(body.count, limits.max_bulk_series)
        head = Head(
            self._core.new_id(),
            model,
            wanted_horizon(body.horizon or horizon, model, "horizon"),
            wanted_levels(levels if body.quantiles is None else body.quantiles, model, "quantiles"),
            allow,
        )
        turn = asyncio.Semaphore(BATCHES_AHEAD)
        return _Job(body, engine, head, writer_of(call.wanted, head), deadline, call, turn)

    def _read(self, call: Call, raw: bytes, engine: Engine) -> BulkBody:
        spec = engine.model.fitted.spec
        if call.media == ARROW:
            from flts_ray.serve.wire_arrow import arrow_bulk

            return arrow_bulk(raw, spec, self._core.limits)
        read = msgpack_bulk if call.media == MSGPACK else json_bulk
        return read(raw, spec, self._core.limits)

    async def _parts(self, job: _Job) -> AsyncIterator[_Written]:
        """The parts in order, a few of them on their way."""
        numbers = numbers_of(job.body.points, job.engine.model.fitted.spec)
        cuts = Cuts(numbers, self._core.limits.max_batch)
        running: deque[asyncio.Task[_Written]] = deque()
        done = 0
        try:
            while True:
                while len(running) < PARTS_AHEAD and (rows := cuts.next()) is not None:
                    running.append(asyncio.create_task(self._part(job, rows)))
                if not running:
                    return
                part = await running.popleft()
                cuts.done(done := done + len(part.done.ids))
                yield part
        finally:
            for task in running:
                task.cancel()

    async def _part(self, job: _Job, rows: range) -> _Written:
        lay = partial(_lay, job.body, rows.start, rows.stop, job.engine.model)
        laid = await self._core.offload(lay)
        found: Forecast | None = None
        failed: dict[int, FltsError] = {}
        if laid.windows is not None:
            found, failed = await self._batches(job, laid.windows)
        return await self._core.offload(partial(_write, laid, found, failed, job))

    async def _batches(
        self, job: _Job, windows: Windows
    ) -> tuple[Forecast | None, dict[int, FltsError]]:
        """`_forecast` in micro-batches, of which few wait for the model at a time."""
        size = self._core.limits.max_batch
        if len(windows) <= size:
            return await self._forecast(job, windows)
        begins = range(0, len(windows), size)
        batches = [
            asyncio.create_task(self._forecast(job, windows.part(slice(at, at + size))))
            for at in begins
        ]
        try:
            every = await asyncio.gather(*batches)
        finally:
            for batch in batches:
                batch.cancel()
        failed = {at + i: error for at, (_, some) in zip(begins, every, strict=True)
                  for i, error in some.items()}  # fmt: skip
        return joined([one for one, _ in every if one is not None]), failed

    async def _forecast(
        self, job: _Job, windows: Windows
    ) -> tuple[Forecast | None, dict[int, FltsError]]:
        """The forecast of the windows that have one, and why the others have none."""
        try:
            async with job.turn:
                deadline = job.deadline
                if deadline is None:
                    deadline = time.monotonic() + self._core.limits.timeout_s
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
        return joined([one for one in (left, right) if one is not None]), failed

    async def _sent(
        self, job: _Job, first: _Written, parts: AsyncIterator[_Written]
    ) -> AsyncIterator[bytes]:
        """The bytes of the answer."""
        writer, failed = job.writer, len(first.done.refused)
        async with aclosing(parts) as rest:  # type: ignore[type-var]
            self._tell(job, first.done)
            yield writer.head() + first.body
            async for part in rest:
                failed += len(part.done.refused)
                self._tell(job, part.done)
                yield writer.between + part.body
            yield writer.tail(failed)

    def _tell(self, job: _Job, done: Done) -> None:
        head = job.head
        for windows, made, degraded in told_of(done):
            told = (head.forecast_id, windows, made, head.horizon, degraded)
            self._core.tell(job.call, job.engine, *told)


def query_of(call: Call) -> tuple[int | None, tuple[float, ...] | None]:
    """`?horizon=24&quantiles=0.1,0.5`, for bodies that do not say it themselves.

    Raises DataError for anything that is no number.
    """
    given = call.query()
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


def _write(
    laid: _Laid, found: Forecast | None, failed: dict[int, FltsError], job: _Job
) -> _Written:
    """found: the forecast of the windows that are not in `failed`; None where all are."""
    marks: dict[int, Degraded] = {}
    if failed and job.head.may_degrade and laid.windows is not None:
        stood = stand_in(laid.windows, found, failed, job.engine.model.fitted.spec.task)
        found, failed = stood.forecast, stood.failed
        marks = {int(laid.rows[i]): mark for i, mark in stood.degraded.items()}
    refused = laid.refused | {int(laid.rows[i]): error for i, error in failed.items()}
    done = Done(laid.ids, laid.rows[:0], None, refused)
    if found is not None and laid.windows is not None:
        rows, windows = laid.rows, laid.windows
        if failed:
            left = np.delete(np.arange(len(rows)), list(failed))
            rows, windows = rows[left], chosen(windows, left)
        done = _made(Done(laid.ids, rows, None, refused, (windows, found)), job.head)
    marks = {i: mark for i, mark in marks.items() if i not in done.refused}
    done = replace(done, degraded=marks)
    return _Written(done, job.writer.part(done))


def _made(done: Done, head: Head) -> Done:
    """With its forecast; series whose forecast is not finite are refused."""
    assert done.told is not None  # the model has answered
    windows, forecast = done.told
    made = made_of_many(forecast, head.horizon, head.levels, head.model)
    finite = finite_rows(forecast, made)
    if finite is None:
        return Done(done.ids, done.rows, made, done.refused, done.told)
    for i in np.flatnonzero(~finite).tolist():
        done.refused[int(done.rows[i])] = not_finite(forecast.ids[i])
    kept = np.flatnonzero(finite)
    if not len(kept):
        return Done(done.ids, done.rows[kept], None, done.refused)
    told = chosen(windows, kept), rows_of(forecast, kept)
    made = made_of_many(told[1], head.horizon, head.levels, head.model)
    return Done(done.ids, done.rows[kept], made, done.refused, told)


def _refuse_whole(first: Done) -> None:
    """Raise what kept the whole first part from the model, if it was lack of room or time."""
    errors: Iterable[FltsError] = first.refused.values()
    if len(first.refused) == len(first.ids):
        for error in errors:
            if isinstance(error, Overloaded | Expired):
                raise error
