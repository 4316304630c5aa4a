"""Going on from where a model stopped, for every registered kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.models import artifact
from flts_ray.models.base import KINDS, Compute, Fitted, Task, fit_fully, forecaster
from flts_ray.models.memory import memory_of, seen_positions
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.3, 0.5, 0.7, 0.9))
QUICK: dict[str, dict[str, Any]] = {
    kind: {"epochs": 3, "hidden": 8, "windows_per_epoch": 512} for kind in ("gru", "lstm")
}
COMPUTE = Compute(seed=1)


def until(data: SeriesArrays, train: int, valid: int) -> SeriesArrays:
    """The same rows; what comes after `valid` is the test span."""
    n = data.n_series
    return replace(data, train_end=np.full(n, train), valid_end=np.full(n, valid))


@cache
def whole() -> SeriesArrays:
    return seasonal_set(length=900)


@cache
def before(kind: str) -> Fitted:
    """Fitted on steps before 480; the statistics of the set are those of its first 540."""
    return fit_fully(kind, until(whole(), 360, 480), TASK, QUICK.get(kind, {}), COMPUTE)


@cache
def after(kind: str) -> Fitted:
    return update(before(kind), until(whole(), 500, 700))


def update(fitted: Fitted, data: SeriesArrays) -> Fitted:
    return forecaster(fitted.spec.kind).update(fitted, data, COMPUTE)


def late_windows(fitted: Fitted, data: SeriesArrays | None = None) -> Windows:
    data = data or whole()
    series, origins = origins_in(until(data, 500, 700), "test", fitted.spec.lookback, 6, 17)
    return windows_at(data, series, origins, fitted.spec.lookback, 6)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_same(one: Fitted, other: Fitted) -> None:
    (values, arrays), (other_values, others) = one.state(), other.state()
    assert other_values == values
    assert others.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(others[name], array, err_msg=name)


def test_a_fit_says_how_far_it_has_seen(kind: str) -> None:
    np.testing.assert_array_equal(seen_positions(before(kind), whole()), [480, 480, 480])


def test_without_new_rows_the_model_is_the_same(kind: str) -> None:
    assert update(before(kind), until(whole(), 360, 480)) is before(kind)
    assert update(before(kind), until(whole(), 300, 400)) is before(kind)
    assert update(after(kind), until(whole(), 650, 700)) is after(kind)


def test_an_update_has_seen_what_it_was_given(kind: str) -> None:
    np.testing.assert_array_equal(seen_positions(after(kind), whole()), [700, 700, 700])
    shifted = replace(whole(), start_us=whole().start_us + 10 * 3_600_000_000)
    np.testing.assert_array_equal(seen_positions(after(kind), shifted), [690, 690, 690])


def test_an_update_leaves_the_fitted_model_as_it_was(kind: str) -> None:
    own = fit_fully(kind, until(whole(), 360, 480), TASK, QUICK.get(kind, {}), COMPUTE)
    update(own, until(whole(), 500, 700))
    assert_same(own, before(kind))


def test_an_update_is_deterministic_and_keeps_the_spec(kind: str) -> None:
    assert_same(update(before(kind), until(whole(), 500, 700)), after(kind))
    assert after(kind).spec == before(kind).spec


def test_the_test_span_has_no_influence_on_an_update(kind: str) -> None:
    data, held = whole(), np.zeros(2700, dtype=bool)
    for i in range(3):
        held[data.rows(i)][700:] = True
    other = replace(
        data,
        y=np.where(held, 1e3, data.y),
        observed=data.observed & ~held,
        past=np.where(held[:, None], np.float32(7), data.past),
        future=np.where(held[:, None], np.float32(np.nan), data.future),
    )
    assert_same(update(before(kind), until(other, 500, 700)), after(kind))


def test_the_order_of_the_series_does_not_matter(kind: str) -> None:
    turned = until(whole(), 500, 700).take([2, 0, 1])
    assert_same(update(before(kind), turned), after(kind))


def test_an_updated_model_is_saved_and_goes_on_from_there(kind: str, tmp_path: Path) -> None:
    artifact.save(after(kind), tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    assert_same(loaded, after(kind))
    expected, found = (one.forecast(late_windows(after(kind))) for one in (after(kind), loaded))
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()
    newest = until(whole(), 700, 890)
    again, other = (
        update(one, newest).forecast(late_windows(one)) for one in (after(kind), loaded)
    )
    np.testing.assert_allclose(other.mean, again.mean, rtol=1e-6)


@dataclass
class Counted:
    """Windows that were built, wherever that is done."""

    windows: int = 0
    at: list[str] = field(default_factory=list)

    def add(self, count: int, where: str) -> None:
        self.windows += count
        self.at.append(where)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    from flts_ray.models.recurrent_windows import WindowSet

    count, batch = Counted(), WindowSet.batch

    def built(data: SeriesArrays, series: np.ndarray, *rest: Any) -> Windows:
        count.add(len(series), "windows_at")
        return windows_at(data, series, *rest)

    def batched(self: WindowSet, series: Any, *rest: Any, **named: Any) -> Any:
        count.add(series.numel(), "batch")
        return batch(self, series, *rest, **named)

    for name, module in list(sys.modules.items()):
        if name.startswith("flts_ray.models.") and hasattr(module, "windows_at"):
            monkeypatch.setattr(module, "windows_at", built)
    monkeypatch.setattr(WindowSet, "batch", batched)
    yield count


@cache
def refitted(kind: str, valid: int) -> tuple[Fitted, SeriesArrays]:
    """Fitted on a season's lags of a history of so many steps, with 60 new ones."""
    data = seasonal_set(length=valid + 100)
    params = QUICK.get(kind, {"lags": 24} if kind == "ar" else {})
    first = until(data, valid - 120, valid)
    fitted = fit_fully(kind, first, TASK, {**params, **_fixed(kind)}, COMPUTE)
    return forecaster(kind).refit(fitted, first, COMPUTE), until(data, valid, valid + 60)


def _fixed(kind: str) -> dict[str, Any]:
    return {"lookback": 48} if kind in QUICK else {}


def test_only_windows_of_new_rows_are_built(kind: str, counted: Counted) -> None:
    found = []
    for steps in (480, 1200):
        fitted, data = refitted(kind, steps)
        counted.windows = 0
        update(fitted, data)
        found.append(counted.windows)
    if kind in QUICK:
        # The bounded number of older windows is not reached by the shorter history.
        assert 0 < found[1] <= 2 * 2 * (3 * 66 + 2048)
        return
    assert 0 < found[0] == found[1] <= 4 * 3 * 66


def test_twice_the_history_costs_a_network_no_more(counted: Counted) -> None:
    found = []
    for steps in (1200, 2400):
        fitted, data = refitted("gru", steps)
        counted.windows = 0
        update(fitted, data)
        found.append(counted.windows)
    assert found[0] == found[1]


def with_noise(data: SeriesArrays, begin: int, factor: float) -> SeriesArrays:
    """From step `begin` on, noise that is so many times the size of the series' scale."""
    rng, y = np.random.default_rng(3), data.y.copy()
    for i in range(data.n_series):
        rows = data.rows(i)
        size = factor * data.stats.scale[i]
        y[rows][begin:] += size * rng.standard_normal(rows.stop - rows.start - begin)
    return replace(data, y=y)


def coverage(fitted: Fitted, data: SeriesArrays) -> float:
    """Share of what happened after step 1,000 that lies in the 80 % interval."""
    lookback = fitted.spec.lookback
    series, origins = origins_in(until(data, 900, 1000), "test", lookback, 6, 7)
    found = fitted.forecast(windows_at(data, series, origins, lookback, 6))
    at = (data.offsets[series] + origins)[:, None] + np.arange(6)
    inside = (data.y[at] >= found.quantiles[..., 0]) & (data.y[at] <= found.quantiles[..., -1])
    return float(inside.mean())


def test_bands_follow_what_was_missed(kind: str) -> None:
    data = with_noise(seasonal_set(length=1300), 480, 2.0)
    fitted = fit_fully(kind, until(data, 360, 480), TASK, QUICK.get(kind, {}), COMPUTE)
    later = update(fitted, until(data, 900, 1000))
    assert coverage(fitted, data) < 0.6
    assert abs(coverage(later, data) - 0.8) < 0.1


def test_what_began_with_the_new_rows_is_learned(kind: str) -> None:
    if kind in ("seasonal_naive", "prophet"):
        return  # nothing but levels and bands is learned without a fit
    data, event = seasonal_set(length=1300), whole().contract.future.index("event")
    y = data.y.copy()
    for i in range(3):
        later = slice(data.rows(i).start + 480, data.rows(i).stop)
        y[later] += 2.0 * 10.0**i * data.future[later, event]
    data = replace(data, y=y)
    trained = {"epochs": 4, "hidden": 16, "batch": 32, "lr": 0.02}
    params = trained if kind in QUICK else {}
    fitted = fit_fully(kind, until(data, 360, 480), TASK, params, COMPUTE)
    updated = update(fitted, until(data, 900, 1000))
    missed = []
    for one in (fitted, updated):
        lookback = one.spec.lookback
        series, origins = origins_in(until(data, 900, 1000), "test", lookback, 6, 7)
        at = (data.offsets[series] + origins)[:, None] + np.arange(6)
        mean = one.forecast(windows_at(data, series, origins, lookback, 6)).mean
        missed.append((np.abs(mean - y[at]) / data.stats.scale[series][:, None]).mean())
    assert missed[1] < 0.9 * missed[0]


def four_series() -> SeriesArrays:
    """The three series and one that was not there before."""
    data = seasonal_set(n_series=4, length=900)
    # The generator draws series by series, so the first three are those of `whole`.
    np.testing.assert_array_equal(data.y[:2700], whole().y)
    return until(data, 500, 700)


def test_a_new_series_is_known_afterwards(kind: str) -> None:
    updated = update(before(kind), four_series())
    if updated.spec.needs_known_series:
        assert updated.stats.ids == before(kind).stats.ids
        return
    assert updated.stats.ids == ("s0", "s1", "s2", "s3")
    np.testing.assert_array_equal(seen_positions(updated, four_series()), [700] * 4)
    windows = late_windows(updated, four_series())
    found = updated.forecast(windows)
    assert np.isfinite(found.quantiles).all()
    assert (np.diff(found.quantiles, axis=2) >= 0).all()


def test_a_series_without_new_rows_stays_as_it_is(kind: str) -> None:
    updated = update(before(kind), until(whole(), 500, 700).take([0, 2]))
    assert updated.stats.ids == before(kind).stats.ids
    np.testing.assert_array_equal(seen_positions(updated, whole()), [700, 480, 700])
    assert np.isfinite(updated.forecast(late_windows(updated)).quantiles).all()


def test_another_contract_is_refused(kind: str) -> None:
    data = until(whole(), 500, 700)
    other = replace(data, contract=replace(data.contract, freq="2h"))
    with pytest.raises(DataError, match=rf"{kind}: the set has other columns, another frequency"):
        update(before(kind), other)


def test_a_model_that_does_not_tell_cannot_be_updated(kind: str) -> None:
    silent: Any = before(kind)
    silent = replace(silent, memory=None)
    assert memory_of(silent) is None
    with pytest.raises(DataError, match="train again"):
        update(silent, until(whole(), 500, 700))
