"""Recorded work does what the work does, on a device that records and on one that cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("params", [{}, {"group": "per_series", "hidden": 8}])
def test_a_gpu_learns_what_a_processor_learns(params: dict[str, Any]) -> None:
    data = seasonal_set(length=400)
    losses = []
    for device in ("cpu", "cuda"):
        steps = Compute(seed=2, device=device)
        fitted = fit_fully("gru", data, TASK, {**SMALL, **params}, steps)
        arrays = fitted.state()[1]
        losses.append(arrays["net.head.bias"].mean())
    assert losses[0] == pytest.approx(losses[1], rel=0.1, abs=0.05)
