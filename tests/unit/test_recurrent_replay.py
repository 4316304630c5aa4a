"""Recorded work does what the work does, on a device that records and on one that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from flts_ray.errors import ConfigError
from flts_ray.models import recurrent_train
from flts_ray.models.base import Compute, Fitted, Task, fit_fully
from flts_ray.models.recurrent_replay import WARM_UP, Record, Replayed, Work, half_precision
from flts_ray.models.recurrent_replay import recorder as recorder_of
from tests.synthetic import seasonal_set

CPU = torch.device("cpu")
TASK = Task(6, (0.1, 0.5, 0.9))
SMALL: dict[str, Any] = {"epochs": 2, "hidden": 8, "windows_per_epoch": 512, "lookback": 48}


class Recorder:
    """Stands for a device that records: counts what is run and what is replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def refusing(work: Work) -> Work:
    raise RuntimeError("this driver records nothing")


def broken() -> None:
    refusing(broken)


def counted(record: Record | None, calls: int) -> int:
    total = torch.zeros(())

    def work() -> None:
        total.add_(1)

    step = Replayed(work, record)
    for _ in range(calls):
        step()
    return int(total)


def test_work_is_recorded_once_after_it_was_done_some_times() -> None:
    device = Recorder()
    assert counted(device, WARM_UP) == WARM_UP
    assert (device.recorded, device.replayed) == (0, 0)
    device = Recorder()
    assert counted(device, WARM_UP + 5) == WARM_UP + 5
    assert (device.recorded, device.replayed) == (1, 5)


@pytest.mark.parametrize("record", [None, refusing])
def test_what_cannot_be_recorded_is_done_as_it_comes(record: Record | None) -> None:
    assert counted(record, WARM_UP + 5) == WARM_UP + 5


def trained(kind: str) -> dict[str, bytes]:
    fitted: Fitted = fit_fully(kind, seasonal_set(length=400), TASK, SMALL, Compute(seed=2))
    return {name: array.tobytes() for name, array in fitted.state()[1].items()}


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recorded_step_trains_the_same_network(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step reads and writes nothing but tensors that stay where they are."""
    expected, device = trained(kind), Recorder()
    monkeypatch.setattr(recurrent_train, "recorder", lambda _: device)
    assert trained(kind) == expected
    assert device.recorded == 1 and device.replayed > WARM_UP


def test_a_processor_records_nothing_and_computes_in_full_precision() -> None:
    assert recorder_of(CPU) is None
    with half_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_that_is_not_there_is_refused_and_auto_does_without() -> None:
    data = seasonal_set(length=400)
    with pytest.raises(ConfigError, match=r"tune\.device 'cuda': torch sees no CUDA device"):
        fit_fully("gru", data, TASK, SMALL, Compute(device="cuda"))
    assert fit_fully("gru", data, TASK, SMALL, Compute(device="auto", seed=2)).spec.kind == "gru"


def test_a_device_of_too_high_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"tune\.device 'cuda:1': torch sees 1 CUDA devices"):
        fit_fully("gru", seasonal_set(length=400), TASK, SMALL, Compute(device="cuda:1"))


class Driver:
    """Stands for torch.cuda: one random generator a device; a current device and stream."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current, self.running, self.told = 0, "own", list[str]()
        self.default_generators = [self._generator(number) for number in range(2)]
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.told.append("replayed"))
        self.current_device = lambda: self.current
        self.current_stream = lambda device: self.running
        for name in ("default_generators", "CUDAGraph", "current_device", "current_stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        for name in ("graph", "device", "stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))

    def _generator(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(
            clone_state=lambda: number,
            graphsafe_set_state=lambda state: self.told.append(f"{number} is as {state} was"),
        )

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.current = device.index
        try:
            yield
        finally:
            self.current = 0

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.running = stream

    @contextmanager
    def graph(self, graph: SimpleNamespace) -> Iterator[None]:
        self.running = "aside"
        yield
        self.running = "own"


def test_work_is_recorded_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, where = Driver(monkeypatch), list[int]()
    record = recorder_of(torch.device("cuda", 1))
    assert record is not None
    replay = record(lambda: where.append(driver.current))
    replay()
    assert where == [1] and (driver.current, driver.running) == (0, "own")
    assert driver.told == ["replayed"]


def test_a_recording_that_breaks_off_leaves_random_numbers_to_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, record = Driver(monkeypatch), recorder_of(torch.device("cuda", 1))
    assert record is not None
    with pytest.raises(RuntimeError, match="records nothing"):
        record(broken)
    assert driver.told == ["1 is as 1 was"]
    assert (driver.current, driver.running) == (0, "own")


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SHAPES = pytest.mark.parametrize(
    "params",
    [{}, {"layers": 2}, {"layers": 2, "dropout": 0.0}, {"group": "per_series", "hidden": 8}],
)
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@gpu
@KINDS
@SHAPES
def test_a_gpu_learns_what_a_processor_learns(kind: str, params: dict[str, Any]) -> None:
    data = seasonal_set(length=400)
    losses = []
    for device in ("cpu", "cuda"):
        steps = Compute(seed=2, device=device)
        fitted = fit_fully(kind, data, TASK, {**SMALL, **params}, steps)
        arrays = fitted.state()[1]
        losses.append(arrays["net.head.bias"].mean())
    assert losses[0] == pytest.approx(losses[1], rel=0.1, abs=0.05)


@gpu
@KINDS
def test_a_gpu_records_its_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded or not, it trains almost the same network; its sums may differ in their order."""
    data, on_gpu = seasonal_set(length=400), Compute(seed=2, device="cuda")
    with capture_logs() as told:
        recorded = fit_fully(kind, data, TASK, SMALL, on_gpu).state()[1]
    assert not [each for each in told if each["event"] == "step_not_recorded"]
    monkeypatch.setattr(recurrent_train, "recorder", lambda _: None)
    for name, array in fit_fully(kind, data, TASK, SMALL, on_gpu).state()[1].items():
        np.testing.assert_allclose(recorded[name], array, rtol=0.05, atol=0.02, err_msg=name)


@gpu
def test_a_fit_leaves_the_random_state_of_a_gpu_as_it_was() -> None:
    before = torch.cuda.get_rng_state()
    fit_fully("gru", seasonal_set(length=400), TASK, SMALL, Compute(seed=2, device="cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)


@gpu
def test_a_gpu_that_could_not_record_goes_on_drawing() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    total, record = torch.zeros((), device=device), recorder_of(device)

    def waiting() -> None:
        total.add_(torch.rand((), device=device).item())  # no recording can hold the number

    with capture_logs() as told:
        step = Replayed(waiting, record)
        for _ in range(WARM_UP + 3):
            step()
    assert [each["event"] for each in told] == ["step_not_recorded"]
    assert 0 < float(total) < WARM_UP + 3
