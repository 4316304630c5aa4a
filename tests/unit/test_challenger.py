"""A replica holds the registry's challenger until somebody drops it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from flts_ray.config_serve import CanaryConfig, ServeConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.challenger import MAX_FAILURES, ChallengerKeeper, Dropped
from flts_ray.serve.core import Core
from flts_ray.serve.engine import Engine, ModelSlot, ServedModel
from flts_ray.store import FolderStore
from tests.served import plain_contract, served, transparent
from tests.unit.test_live_error import windows

HALF = ServeConfig(canary=CanaryConfig(share=0.5))
MINE = next(f"s{i}" for i in range(99) if belongs_to_challenger(f"s{i}", 0.5))
OTHER = next(f"s{i}" for i in range(99) if not belongs_to_challenger(f"s{i}", 0.5))


class Source:
    """Challengers by version; `away` and what is not there raise."""

    def __init__(self, *models: ServedModel) -> None:
        self.models = {model.version: model for model in models}
        self.now: str | None = models[0].version if models else None
        self.away = False

    def current(self) -> ServedModel | None:
        raise AssertionError("the champion is somebody else's business")

    def challenger(self) -> ServedModel | None:
        if self.away:
            raise Unavailable("the registry is away")
        return None if self.now is None else self.models[self.now]

    def load(self, ref: ServedModel) -> ServedModel:
        return ref


class Replica:
    def __init__(self, folder: Path, source: Source) -> None:
        self.slot = ModelSlot("demo", HALF)
        self.slot.install(served(transparent(plain_contract()), "1"))
        self.told: list[tuple[str | None, str | None]] = []
        dropped = Dropped(FolderStore(str(folder)), "demo")
        self.keeper = ChallengerKeeper(source, self.slot, dropped, 1.0, self._tell)

    def _tell(self, *models: ServedModel | None) -> None:
        self.told.append(tuple(None if one is None else one.version for one in models))  # type: ignore[arg-type]

    def look(self) -> str | None:
        """The challenger's version after a look."""
        asyncio.run(self.keeper.step())
        return None if self.slot.challenger is None else self.slot.challenger.version


def challenger(version: str = "2") -> ServedModel:
    return served(transparent(plain_contract(), shift=1.0), version)


def test_a_challenger_answers_its_share_and_only_that(tmp_path: Path) -> None:
    replica = Replica(tmp_path, Source(challenger()))
    assert replica.slot.engine_for(MINE).model.version == "1"
    assert replica.look() == "2"
    mine, other = replica.slot.engine_for(MINE), replica.slot.engine_for(OTHER)
    assert (mine.model.version, mine.role) == ("2", "canary")
    assert (other.model.version, other.role) == ("1", "champion")
    assert replica.told == [("1", "2")]


def test_it_goes_when_nobody_is_challenger_or_it_was_promoted(tmp_path: Path) -> None:
    source = Source(challenger("2"), challenger("3"))
    replica = Replica(tmp_path, source)
    assert replica.look() == "2"
    source.now = "3"
    assert replica.look() == "3"
    replica.slot.install(source.models["3"])
    assert replica.look() is None
    replica.slot.install(served(transparent(plain_contract()), "1"))
    assert replica.look() == "3"
    source.now = None
    assert replica.look() is None


def test_one_that_is_dropped_stays_dropped_on_every_replica(tmp_path: Path) -> None:
    source = Source(challenger("2"), challenger("3"))
    one, two = Replica(tmp_path, source), Replica(tmp_path, source)
    assert (one.look(), two.look()) == ("2", "2")
    held = one.slot.challenger
    assert held is not None
    one.keeper.drop(held, "worse")
    assert one.slot.engine_for(MINE).model.version == "1"  # at once, before any look
    assert (one.look(), two.look()) == (None, None)
    assert Replica(tmp_path, source).look() is None
    assert Dropped(FolderStore(str(tmp_path)), "demo").why("digest2") == "worse"
    source.now = "3"
    assert (one.look(), two.look()) == ("3", "3")


def test_the_first_reason_stays(tmp_path: Path) -> None:
    dropped = Dropped(FolderStore(str(tmp_path)), "demo")
    assert dropped.why("d") is None
    dropped.drop("2", "d", "slow")
    dropped.drop("2", "d", "worse")
    assert dropped.why("d") == "slow"


def test_whatever_is_wrong_with_it_leaves_the_champion_alone(tmp_path: Path) -> None:
    broken = served(transparent(plain_contract(), refused=("s0",)), "2")
    foreign = served(transparent(plain_contract(season=12)), "3")
    source = Source(broken, foreign)
    replica = Replica(tmp_path, source)
    assert replica.look() is None
    source.now = "3"
    assert replica.look() is None
    assert replica.slot.engine_for(MINE).model.version == "1"


def test_a_registry_that_is_away_changes_nothing(tmp_path: Path) -> None:
    source = Source(challenger())
    replica = Replica(tmp_path, source)
    assert replica.look() == "2"
    source.away = True
    assert replica.look() == "2"


def test_without_a_champion_there_is_no_challenger(tmp_path: Path) -> None:
    replica = Replica(tmp_path, Source(challenger()))
    replica.slot.engine = None
    assert replica.look() is None
    with pytest.raises(Unavailable):
        replica.slot.engine_for(MINE)


def test_requests_that_it_fails_are_the_champions_and_too_many_drop_it(tmp_path: Path) -> None:
    broken = served(transparent(plain_contract(), refused=(MINE,)), "2")
    replica = Replica(tmp_path, Source(broken))
    assert replica.look() == "2"
    core = Core(replica.slot)

    async def ask() -> str:
        async def answer(engine: Engine) -> str:
            engine.model.fitted.forecast(replace(windows(100, (MINE,)), ids=(MINE,)))
            return engine.model.version

        return await core.answered(MINE, answer)

    answers = [asyncio.run(ask()) for _ in range(MAX_FAILURES)]
    core.close()
    assert answers == ["1"] * MAX_FAILURES
    assert replica.slot.challenger is None
    assert replica.look() is None
    assert "it failed 10 requests" in str(
        Dropped(FolderStore(str(tmp_path)), "demo").why("digest2")
    )


def test_a_bad_request_is_the_callers_fault(tmp_path: Path) -> None:
    replica = Replica(tmp_path, Source(challenger()))
    replica.look()
    core = Core(replica.slot)

    async def refuse(engine: Engine) -> str:
        raise DataError("y: nothing there", field="y")

    for _ in range(MAX_FAILURES + 1):
        with pytest.raises(DataError, match="nothing there"):
            asyncio.run(core.answered(MINE, refuse))
    core.close()
    assert replica.slot.challenger is not None
