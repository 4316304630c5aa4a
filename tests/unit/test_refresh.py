from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.refresh import MAX_PAUSE, Refresher
from tests.served import plain_contract, served, transparent


@dataclass(frozen=True)
class Named:
    version: str
    digest: str


@dataclass
class Script:
    """Each look gives the next entry of `looks`, the last one for ever."""

    looks: list[Named | Exception | None]
    broken: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)

    def challenger(self) -> Named | None:
        return None

    def current(self) -> Named | None:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def load(self, ref: Named) -> ServedModel:
        self.loads.append(ref.version)
        if ref.version in self.broken:
            raise ArtifactError(f"version {ref.version}: a byte changed")
        model = transparent(plain_contract())
        if ref.version == "cold":
            model.refused = model.stats.ids
        return served(model, ref.version, digest=ref.digest)


ONE, TWO = Named("1", "d1"), Named("2", "d2")
AWAY = Unavailable("MLflow is away")


def look(script: Script, times: int) -> tuple[list[str | None], list[str]]:
    """Version in the slot after each look, and the events that were logged."""

    async def work() -> list[str | None]:
        slot = ModelSlot("demo", ServeConfig())
        refresher = Refresher(script, slot, poll_s=1)
        seen = []
        for _ in range(times):
            await refresher.step()
            seen.append(slot.engine.model.version if slot.engine else None)
        return seen

    with capture_logs() as logs:
        seen = asyncio.run(work())
    return seen, [entry["event"] for entry in logs]


def test_a_new_champion_is_installed_once() -> None:
    script = Script([None, ONE, ONE, TWO, TWO])
    seen, events = look(script, 5)
    assert seen == [None, "1", "1", "2", "2"]
    assert script.loads == ["1", "2"]
    assert events == ["champion_loaded", "champion_loaded"]


def test_a_changed_digest_of_the_same_version_is_loaded() -> None:
    script = Script([ONE, Named("1", "other")])
    look(script, 2)
    assert script.loads == ["1", "1"]


def test_an_old_champion_stays_while_the_registry_is_away() -> None:
    seen, events = look(Script([ONE, AWAY, AWAY, AWAY, TWO, AWAY]), 6)
    assert seen == ["1", "1", "1", "1", "2", "2"]
    assert events.count("champion_unreachable") == 2


def test_an_old_champion_stays_when_the_alias_is_gone() -> None:
    seen, _ = look(Script([ONE, None]), 3)
    assert seen == ["1", "1", "1"]


def test_a_damaged_champion_is_refused_logged_once_and_tried_ever_less() -> None:
    script = Script([ONE, TWO], broken={"2"})
    seen, events = look(script, 3 * MAX_PAUSE)
    assert set(seen) == {"1"}
    assert events.count("champion_refused") == 1
    assert 3 <= script.loads.count("2") <= 8


def test_a_repaired_champion_is_picked_up() -> None:
    script = Script([ONE, TWO], broken={"2"})

    async def work() -> str | None:
        slot = ModelSlot("demo", ServeConfig())
        refresher = Refresher(script, slot, poll_s=1)
        for _ in range(3):
            await refresher.step()
        script.broken.clear()
        for _ in range(MAX_PAUSE):
            await refresher.step()
        return slot.engine.model.version if slot.engine else None

    assert asyncio.run(work()) == "2"


def test_another_champion_is_tried_at_once_after_a_damaged_one() -> None:
    three = Named("3", "d3")
    seen, _ = look(Script([ONE, TWO, three], broken={"2"}), 3)
    assert seen == ["1", "1", "3"]


def test_a_champion_that_cannot_forecast_is_refused() -> None:
    seen, events = look(Script([ONE, Named("cold", "d")]), 3)
    assert seen == ["1", "1", "1"]
    assert "champion_refused" in events


def test_the_loop_looks_until_it_is_cancelled() -> None:
    script = Script([None, ONE])

    async def work() -> None:
        slot = ModelSlot("demo", ServeConfig())
        task = asyncio.create_task(Refresher(script, slot, poll_s=0.001).run())
        while slot.engine is None:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(work(), 30))


def test_two_looks_at_once_load_a_champion_once() -> None:
    script = Script([ONE])

    async def work() -> None:
        refresher = Refresher(script, ModelSlot("demo", ServeConfig()), poll_s=1)
        await asyncio.gather(refresher.step(), refresher.step())

    asyncio.run(work())
    assert script.loads == ["1"]
