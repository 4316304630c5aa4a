"""Queue, worker and model calls of a replica under their older names."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import Expired
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows, windows_at
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.model_calls import ModelCall
from flts_ray.serve.older_metrics import OlderMetrics
from tests.served import HORIZON, LOOKBACK, Transparent, known_set, served, transparent

DATA = known_set()


class Gated(Transparent):
    """Waits for `gate`, and tells through `started` that it does."""

    gate = threading.Event()
    started = threading.Event()

    def forecast(self, windows: Windows) -> Forecast:
        self.started.set()
        assert self.gate.wait(30)
        return super().forecast(windows)


def gated() -> Gated:
    plain = transparent(DATA.contract, DATA.ids)
    made = Gated(plain.spec, plain.stats)
    made.gate, made.started = threading.Event(), threading.Event()
    return made


def window() -> Windows:
    return windows_at(DATA, np.array([0]), np.array([100]), LOOKBACK, HORIZON)


def read(metrics: OlderMetrics) -> dict[str, float]:
    """What is read, without the prefix; of histograms how often they were observed."""
    found: dict[str, float] = {}
    for one in metrics.readings():
        name = one.metric.removeprefix("inference_")
        if name in ("queue_wait_seconds", "latency_seconds"):
            found[name] = found.get(name, 0.0) + one.times
        else:
            assert name not in found
            found[name] = one.value
    return found


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_replica_without_a_model_has_a_worker_that_is_not_active() -> None:
    assert read(OlderMetrics(ModelSlot("demo", ServeConfig()), Clock())) == {
        "model_ready": 0, "queue_len": 0, "queue_oldest_wait_seconds": 0, "workers_total": 1,
        "active_workers": 0, "workers_busy": 0, "workers_idle": 0, "worker_utilization": 0,
    }  # fmt: skip


def test_a_worker_is_busy_while_its_model_runs() -> None:
    async def work() -> tuple[dict[str, float], dict[str, float], float]:
        slot, fitted = ModelSlot("demo", ServeConfig()), gated()
        slot.install(served(fitted))
        metrics, engine = OlderMetrics(slot), slot.require()
        first = asyncio.create_task(engine.forecast(window()))
        assert await asyncio.to_thread(fitted.started.wait, 30)
        asked = time.monotonic()
        rest = [asyncio.create_task(engine.forecast(window())) for _ in range(3)]
        await asyncio.sleep(0)
        meanwhile = read(metrics)
        waited = time.monotonic() - asked
        fitted.gate.set()
        await asyncio.gather(first, *rest)
        after = read(metrics)
        slot.close()
        return meanwhile, after, waited

    meanwhile, after, waited = asyncio.run(work())
    oldest = meanwhile.pop("queue_oldest_wait_seconds")
    assert 0 < oldest <= waited
    assert 0 < meanwhile.pop("worker_utilization") <= 1
    assert meanwhile == {
        "model_ready": 1, "queue_len": 3, "workers_total": 1, "active_workers": 1,
        "workers_busy": 1, "workers_idle": 0,
    }  # fmt: skip
    for name, value in {
        "queue_len": 0, "queue_oldest_wait_seconds": 0, "workers_busy": 0, "workers_idle": 1,
        "queue_wait_seconds": 4, "latency_seconds": 4,
    }.items():  # fmt: skip
        assert after[name] == value, name
    assert after["queue_wait_latest_seconds"] > 0


def test_requests_that_never_reach_the_model_are_not_observed() -> None:
    async def work() -> dict[str, float]:
        slot, fitted = ModelSlot("demo", ServeConfig()), gated()
        slot.install(served(fitted))
        metrics, engine = OlderMetrics(slot), slot.require()
        first = asyncio.create_task(engine.forecast(window()))
        assert await asyncio.to_thread(fitted.started.wait, 30)
        with pytest.raises(Expired):
            await engine.forecast(window(), time.monotonic() + 0.01)
        fitted.gate.set()
        await first
        slot.close()
        return read(metrics)

    found = asyncio.run(work())
    assert (found["queue_wait_seconds"], found["latency_seconds"]) == (1, 1)


def test_a_challenger_works_in_the_same_worker() -> None:
    async def work() -> dict[str, float]:
        slot = ModelSlot("demo", ServeConfig())
        slot.install(served(transparent(DATA.contract, DATA.ids), "1"))
        slot.install_challenger(served(transparent(DATA.contract, DATA.ids), "2"))
        metrics = OlderMetrics(slot)
        await asyncio.gather(*(engine.forecast(window()) for engine in slot.engines))
        slot.install(served(transparent(DATA.contract, DATA.ids), "3"))
        slot.close()
        return read(metrics)

    found = asyncio.run(work())
    assert (found["latency_seconds"], found["workers_total"], found["workers_busy"]) == (2, 1, 0)


def test_wait_latency_and_utilization_of_known_calls() -> None:
    slot, clock = ModelSlot("demo", ServeConfig()), Clock()
    metrics = OlderMetrics(slot, clock)
    for call in (ModelCall(101.0, 101.2, [100.9]), ModelCall(101.1, 101.5, [100.0, 100.7])):
        slot.calls.begin(call.began)
        slot.calls.end(call)
    clock.now = 102.0
    found: dict[str, list[tuple[float, int]]] = {}
    for one in metrics.readings():
        found.setdefault(one.metric, []).append((round(one.value, 6), one.times))
    assert found["inference_worker_utilization"] == [(0.25, 1)]
    assert found["inference_queue_wait_latest_seconds"] == [(0.4, 1)]
    assert found["inference_latency_latest_seconds"] == [(0.4, 1)]
    assert found["inference_queue_wait_seconds"] == [(0.1, 1), (0.4, 1), (1.1, 1)]
    assert found["inference_latency_seconds"] == [(0.2, 1), (0.4, 2)]
    slot.calls.begin(101.0)
    clock.now = 104.0
    later = {one.metric: one.value for one in metrics.readings()}
    assert later["inference_worker_utilization"] == 1.0
    assert later["inference_latency_latest_seconds"] == pytest.approx(0.4)
    assert "inference_latency_seconds" not in later
