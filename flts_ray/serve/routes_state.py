"""What the service says about itself: alive, ready, which model; to admins also how busy."""

from __future__ import annotations

import os

from flts_ray.serve.asgi import Answer, Call, json_answer
from flts_ray.serve.core import VERSION_HEADER, Core
from flts_ray.serve.door import Door
from flts_ray.serve.predictor import describe, model_of


class StateRoutes:
    """Routes without a body."""

    def __init__(self, core: Core, door: Door | None) -> None:
        self._slot = core.slot
        self._door = door

    async def healthz(self, call: Call) -> Answer:
        """The process is alive."""
        return json_answer({"status": "ok"})

    async def readyz(self, call: Call) -> Answer:
        """A champion is loaded."""
        model = self._slot.require().model
        payload = {"ready": True, "model": model_of(model)}
        return json_answer(payload, headers=((VERSION_HEADER, model.version.encode()),))

    async def model(self, call: Call) -> Answer:
        """The champion and its contract."""
        model = self._slot.require().model
        return json_answer(describe(model), headers=((VERSION_HEADER, model.version.encode()),))

    async def state(self, call: Call) -> Answer:
        """How busy this replica is, and who may call it."""
        engine = self._slot.engine
        tokens = [] if self._door is None else self._door.file.tokens()
        return json_answer(
            {
                "pid": os.getpid(),
                "model": None if engine is None else model_of(engine.model),
                "queued": 0 if engine is None else engine.queued,
                "batches": 0 if engine is None else engine.batches,
                "batch_series": 0 if engine is None else engine.batch_series,
                "tokens": [{"name": token.name, "scope": token.scope} for token in tokens],
                "limits": self._slot.limits.model_dump(mode="json", exclude={"auth", "tls"}),
            }
        )
