"""What a replica does beside answering begins and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from flts_ray.config_serve import CanaryConfig, ForecastLogConfig, ServeConfig
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.log_table import read_log
from flts_ray.serve.metrics import Reading
from flts_ray.serve.watch import Sources, Watch
from flts_ray.store import FolderStore
from tests.served import plain_contract, served, transparent
from tests.unit.test_challenger import Source, challenger
from tests.unit.test_forecast_log import made

CHAMPION = served(transparent(plain_contract()), "7")


class Published:
    def __init__(self) -> None:
        self.sources: Sources = ()
        self.stopped = False

    def __call__(self, name: str, sources: Sources) -> Callable[[], None]:
        self.sources = sources
        return self._stop

    def _stop(self) -> None:
        self.stopped = True

    def read(self) -> dict[str, Reading]:
        return {one.metric: one for source in self.sources for one in source()}


def run(watch: Watch, moment: Callable[[], None] = lambda: None) -> None:
    """The watch beside something that goes on until everything is cancelled."""

    async def main() -> None:
        async def beside() -> None:
            await asyncio.sleep(3600)

        task = asyncio.ensure_future(watch.run(beside))
        for _ in range(100):
            await asyncio.sleep(0.005)
        moment()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_graceful_stop_writes_every_answer(tmp_path: Path) -> None:
    async def main() -> tuple[Watch, Published]:
        slot, published = ModelSlot("load", ServeConfig()), Published()
        slot.install(CHAMPION)
        return Watch(slot, FolderStore(str(tmp_path)), None, published), published

    watch, published = asyncio.run(main())
    for number in range(20):
        watch.observer.forecast(made(number))
        watch.observer.request("/v1/forecast", 200, 0.01)
    run(watch)
    assert read_log(FolderStore(str(tmp_path)), "load").num_rows == 40
    assert published.stopped
    found = published.read()
    assert found["flts_serve_requests_total"].value == 20
    assert found["flts_serve_series_total"].value == 40
    assert found["flts_serve_log_rows_total"].value == 40
    assert found["flts_serve_champion_version"].value == 7
    assert found["flts_serve_up"].value == 1
    assert found["inference_jobs_processed_total"].value == 20
    assert found["inference_model_ready"].value == 1


def test_no_log_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    limits = ServeConfig(log=ForecastLogConfig(enabled=False))
    watch = Watch(ModelSlot("load", limits), FolderStore(str(tmp_path)), None, Published())
    watch.observer.forecast(made(1))
    watch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_challenger_is_held_where_the_configuration_wants_one(tmp_path: Path) -> None:
    held: list[bool] = []
    for canary in (CanaryConfig(), CanaryConfig(shadow=True), CanaryConfig(share=0.5)):
        slot = ModelSlot("demo", ServeConfig(canary=canary, poll_s=0.01))
        slot.install(CHAMPION)
        watch = Watch(slot, FolderStore(str(tmp_path)), Source(challenger()), Published())
        run(watch, partial(_note, slot, held))
    assert held == [False, True, True]


def _note(slot: ModelSlot, held: list[bool]) -> None:
    held.append(slot.challenger is not None)
