"""Networks train on a device that is not the processor: nothing is made in the wrong place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flts_ray.models import recurrent_stack, recurrent_train
from flts_ray.models.base import Compute, Fitted, Task, fit_fully, forecaster, updater
from flts_ray.models.recurrent_replay import Record
from flts_ray.prepare.arrays import SeriesArrays
from tests.pretended import NAME, OnDevice, Pretended, pretended
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
SMALL: dict[str, Any] = {
    "epochs": 2,
    "hidden": 4,
    "lookback": 24,
    "segment": 8,
    "batch": 32,
    "windows_per_epoch": 100,
    "refit_epochs": 1,
    "dropout": 0.0,
    "max_lags": 24,
    "layers": 2,
    "past": True,
}
OWN = {**SMALL, "group": "per_series", "batch": 16, "windows_per_epoch": 32}
KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])
GROUPS = pytest.mark.parametrize("params", [SMALL, OWN], ids=["global", "per_series"])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """The device; global networks record their steps on it."""
    with pretended(monkeypatch) as found:

        def recorder(where: torch.device) -> Record | None:
            return found.record if where.type == NAME else None

        monkeypatch.setattr(recurrent_train, "recorder", recorder)
        monkeypatch.setattr(recurrent_train, "MIN_BATCHES", 3)
        yield found


def everything() -> SeriesArrays:
    """Covariates of every role, a label, gaps and outliers, so that every branch is taken."""
    plain = seasonal_set(n_series=2, length=260)
    contract = replace(plain.contract, static=("height", "mood"), categories=((), ("calm", "wild")))
    observed = np.ones(len(plain.y), dtype=plain.observed.dtype)
    observed[::17] = False
    return replace(
        plain,
        contract=contract,
        observed=observed,
        static=np.asarray([[0.3, 0], [0.7, 1]], dtype=np.float32),
        stats=replace(plain.stats, clip_hi=plain.stats.mean + plain.stats.std),
    )


def cut(data: SeriesArrays, train: int, valid: int) -> SeriesArrays:
    n = data.n_series
    return replace(data, train_end=np.full(n, train), valid_end=np.full(n, valid))


def life(kind: str, params: dict[str, Any], where: str) -> list[Fitted]:
    """A fit, its refit and an update of that."""
    data, compute = cut(everything(), 130, 180), Compute(seed=2, device=where)
    fitted = fit_fully(kind, data, TASK, params, compute)
    refitted = forecaster(kind).refit(fitted, data, compute)
    return [fitted, refitted, updater(kind).update(refitted, cut(data, 130, 220), compute)]


@KINDS
@GROUPS
def test_a_device_learns_what_a_processor_learns(
    kind: str, params: dict[str, Any], device: Pretended
) -> None:
    """What comes back is stored from the processor, whatever the device."""
    for here, there in zip(life(kind, params, "cpu"), life(kind, params, NAME), strict=True):
        arrays = there.state()[1]
        for name, array in here.state()[1].items():
            np.testing.assert_allclose(arrays[name], array, rtol=1e-2, atol=1e-3, err_msg=name)


def trained(kind: str, params: dict[str, Any]) -> dict[str, np.ndarray]:
    data = cut(everything(), 130, 180)
    return fit_fully(kind, data, TASK, params, Compute(seed=2, device=NAME)).state()[1]


@KINDS
def test_a_recorded_step_draws_and_counts_anew(
    kind: str, device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording holds no random number, rate or step of the moment it was made."""
    params = {**SMALL, "layers": 1, "dropout": 0.2, "epochs": 3}
    recorded = trained(kind, params)
    assert device.recorded == 1 and device.replayed > 2
    monkeypatch.setattr(recurrent_train, "recorder", lambda _: None)
    for name, array in trained(kind, params).items():
        np.testing.assert_array_equal(recorded[name], array, err_msg=name)


def test_dropout_between_layers_is_not_recorded(device: Pretended) -> None:
    """Its random state moves with every seed, away from where a recording would look for it."""
    trained("gru", {**SMALL, "dropout": 0.2})
    assert device.recorded == 0


@KINDS
@GROUPS
def test_half_precision_is_for_products_alone(
    kind: str, params: dict[str, Any], device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States, losses and results are float32, so a fit ends near that in full precision."""
    full = trained(kind, params)
    entered = []

    def half(where: torch.device) -> torch.autocast:
        entered.append(where.type)
        return torch.autocast(where.type, torch.bfloat16)

    for module in (recurrent_train, recurrent_stack):
        monkeypatch.setattr(module, "half_precision", half)
    found = trained(kind, params)
    assert set(entered) == {NAME} and device.narrowed == 0
    changed = [name for name in full if not np.array_equal(found[name], full[name])]
    assert "net.head.weight" in changed
    for name, array in full.items():
        np.testing.assert_allclose(found[name], array, rtol=0.1, atol=0.05, err_msg=name)


def test_a_step_of_the_global_network_never_waits(
    device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, waits = recurrent_train._Steps.take, []

    def watched(steps: Any, chosen: torch.Tensor, rate: float) -> None:
        before = device.waits
        take(steps, chosen, rate)
        waits.append(device.waits - before)

    monkeypatch.setattr(recurrent_train._Steps, "take", watched)
    monkeypatch.setattr(recurrent_train, "recorder", lambda _: None)
    trained("lstm", SMALL)
    assert set(waits) == {0} and device.waits > 0


def test_a_step_of_many_networks_asks_once_whether_all_is_finite(
    device: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, step, waits = recurrent_stack.Stack.losses, recurrent_stack.StackOptimiser.step, []

    def watched(own: Any) -> Any:
        def run(*args: Any) -> Any:
            before = device.waits
            found = own(*args)
            waits.append((own.__name__, device.waits - before))
            return found

        return run

    monkeypatch.setattr(recurrent_stack.Stack, "losses", watched(losses))
    monkeypatch.setattr(recurrent_stack.StackOptimiser, "step", watched(step))
    trained("gru", OWN)
    assert set(waits) == {("losses", 0), ("step", 1)}


def test_the_pretended_device_refuses_what_a_gpu_refuses(device: Pretended) -> None:
    there, here = torch.ones(3, device=NAME), torch.ones(3)
    assert isinstance(there, OnDevice) and (there + there).device.type == NAME
    with pytest.raises(RuntimeError, match="two devices"):
        there + here
    with pytest.raises(RuntimeError, match="two devices"):
        there[torch.tensor([0])]
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    unrecordable = (
        lambda: there.sum().item(),
        lambda: torch.zeros(3).to(NAME),
        lambda: torch.zeros(3),
        lambda: there[there > 0],
    )
    for work in unrecordable:
        with pytest.raises(AssertionError, match="cannot be recorded"):
            device.record(work)
    assert device.recorded == 0
