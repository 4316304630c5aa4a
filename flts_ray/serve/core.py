"""The one call behind every route: windows in, forecast out, in time or not at all.

Design choices: small bodies are read on the event loop, because handing them to a thread costs
more than reading them, large ones and whatever may touch the store in a thread; a deadline is the
caller's or the configuration's, whichever is sooner; only callers who allow it get an answer
without the model.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TypeVar

from msgspec import Struct

from flts_ray.errors import DataError, Expired, FltsError, Overloaded, Unavailable
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.asgi import Call, Gone, unless_gone
from flts_ray.serve.degraded import Degraded, LastForecasts, reason_of, seasonal_naive
from flts_ray.serve.engine import Engine, ModelSlot
from flts_ray.serve.observe import Made as Observed
from flts_ray.serve.observe import Observer
from flts_ray.serve.rows import AskedSeries

ON_LOOP_BYTES = 32 * 1024
PATIENT_S = 0.05
"""Where work waits for longer, callers are watched, so that nothing is done for those who left."""
TIMEOUT = b"x-request-timeout-ms"
ALLOW_DEGRADED = b"x-allow-degraded"
VERSION_HEADER = b"x-flts-model-version"
_NUMBER = re.compile(rb"\d{1,20}(\.\d{1,20})?([eE][+-]?\d{1,3})?")
_Made = TypeVar("_Made")


class Taken(Struct, frozen=True):
    """A call that was taken in; `small`: its body is read faster than it is handed to a thread."""

    deadline: float
    allow_degraded: bool
    body: bytes
    small: bool


class Core:
    """What routes share. Make it in the process that serves, close it at the end."""

    def __init__(self, slot: ModelSlot, observer: Observer | None = None) -> None:
        self.observer = observer
        self.slot = slot
        self.limits = slot.limits
        self.last = LastForecasts()
        self._names = Random()
        self._intake: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Stop the threads; what waits for them is dropped. The next call starts new ones."""
        if self._intake is not None:
            self._intake.shutdown(wait=False, cancel_futures=True)
            self._intake = None

    def new_id(self) -> str:
        """A name that no other forecast has: 128 random bits, seeded by the system.

        Asking the system for each costs a call of it.
        """
        return f"{self._names.getrandbits(128):032x}"

    async def offload(self, work: Callable[[], _Made]) -> _Made:
        """Run it in a thread."""
        if self._intake is None:
            self._intake = ThreadPoolExecutor(2, thread_name_prefix="intake")
        return await asyncio.get_running_loop().run_in_executor(self._intake, work)

    async def near(self, small: bool, work: Callable[[], _Made]) -> _Made:
        """Run it here when it is small, else in a thread."""
        return work() if small else await self.offload(work)

    async def take(self, call: Call) -> Taken:
        """Take in a call that asks for forecasts. Raises DataError, BodyTooLarge, Gone."""
        deadline, allow = self.deadline(call), call.flag(ALLOW_DEGRADED)
        body = await call.body(self.limits.max_body_bytes)
        return Taken(deadline, allow, body, len(body) <= ON_LOOP_BYTES)

    def deadline(self, call: Call) -> float:
        """`time.monotonic()` after which nobody wants the answer.

        Raises DataError for a header that is no positive number.
        """
        seconds = self.limits.timeout_s
        if TIMEOUT in call.headers:
            seconds = min(seconds, _milliseconds(call.headers[TIMEOUT]) / 1e3)
        return time.monotonic() + seconds

    async def answered(self, unique_id: str, answer: Callable[[Engine], Awaitable[_Made]]) -> _Made:
        """An answer by whoever this series belongs to; the champion's where a challenger fails."""
        engine = self.slot.engine_for(unique_id)
        if engine.role == "champion":
            return await answer(engine)
        try:
            return await answer(engine)
        except (Expired, Overloaded, Gone):
            raise
        except Exception as error:  # noqa: BLE001 -- what the champion raises too is the caller's
            made = await answer(self.slot.require())
            self.slot.challenger_failed(engine.model, str(error))
            return made

    async def forecast(
        self,
        call: Call,
        taken: Taken,
        engine: Engine,
        windows: Windows,
    ) -> tuple[Forecast, Degraded | None]:
        """The model's forecast; or, where it has no time and the caller allows it, a plain one.

        Raises Expired, Overloaded, Unavailable, DataError, and Gone for a caller who went away
        from a long queue.
        """
        work = engine.forecast(windows, deadline=taken.deadline)
        try:
            if engine.backlog_s > PATIENT_S:
                return await unless_gone(call, work), None
            return await work, None
        except (Expired, Overloaded, Unavailable) as error:
            if not taken.allow_degraded:
                raise
            reason = reason_of(error)
        kept = self.last.recall(windows.ids, windows.origin_us)
        if kept is not None:
            return kept, Degraded(reason, "last_forecast")
        made = seasonal_naive(windows, engine.model.fitted.spec.task)
        return made, Degraded(reason, "seasonal_naive")

    def tell(
        self,
        call: Call,
        engine: Engine,
        forecast_id: str,
        windows: Windows,
        forecast: Forecast,
        horizon: int,
        degraded: bool = False,
    ) -> None:
        """Tell the observer of a forecast that was answered."""
        if self.observer is None:
            return
        model = engine.model
        self.observer.forecast(
            Observed(
                forecast_id=forecast_id,
                name=model.name,
                version=model.version,
                digest=model.digest,
                windows=windows,
                forecast=forecast,
                horizon=horizon,
                seconds=time.perf_counter() - call.arrived,
                degraded=degraded,
                role=engine.role,
            )
        )

    def recalled(
        self, asked: Sequence[str], error: FltsError, allow_degraded: bool
    ) -> tuple[Forecast, Degraded]:
        """The last forecasts of series whose history is out of reach. Else raises `error`."""
        kept = self.last.recall(asked, None) if allow_degraded else None
        if kept is None:
            raise error
        return kept, Degraded(reason_of(error), "last_forecast")


def reads_store(asked: Sequence[AskedSeries], engine: Engine) -> bool:
    """True when laying these series may wait for prepared data."""
    return bool(engine.model.fitted.spec.contract.static) or any(one.y is None for one in asked)


def _milliseconds(raw: bytes) -> float:
    field = TIMEOUT.decode()
    found = float(raw) if _NUMBER.fullmatch(raw) else math.nan
    if not 0 < found < math.inf:
        raise DataError(f"{field}: must be a positive number of milliseconds", field=field)
    return found
