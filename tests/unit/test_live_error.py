"""Forecasts are judged by what later requests say happened."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.live_error import LiveError, Tally
from flts_ray.serve.observe import Made
from tests.served import LEVELS, plain_contract

HOUR_US = 3_600_000_000
LOOKBACK = 10


def truth(steps: np.ndarray) -> np.ndarray:
    return np.asarray(steps, np.float64) * 2.0


def windows(origin: int, ids: tuple[str, ...] = ("a",), scale: float = 4.0) -> Windows:
    n, past = len(ids), np.arange(origin - LOOKBACK, origin)
    return Windows(
        plain_contract(),
        ids,
        np.full(n, origin * HOUR_US),
        np.tile(truth(past), (n, 1)),
        np.ones((n, LOOKBACK), dtype=bool),
        np.zeros((n, LOOKBACK, 0), np.float32),
        np.zeros((n, LOOKBACK + 6, 0), np.float32),
        np.zeros((n, 0), np.float32),
        np.full(n, scale),
    )


def made(at: Windows, off: float, version: str = "1", horizon: int = 6) -> Made:
    steps = at.origin_us[:, None] // HOUR_US + np.arange(6)
    mean = truth(steps) + off
    forecast = Forecast(at.ids, at.origin_us, LEVELS, mean, mean[..., None] + np.zeros(5))
    return Made("f", "load", version, "d", at, forecast, horizon, 0.01)


def test_a_forecast_is_judged_on_the_steps_that_have_passed() -> None:
    live = LiveError()
    live.remember(made(windows(100), off=3.0))
    live.observe(windows(104))
    assert live.tallies["1"] == Tally(1, 0.75, 0.75**2)
    live.observe(windows(105))  # judged once
    assert live.tallies["1"].windows == 1


def test_nothing_is_judged_before_a_step_has_passed_or_after_all_are_out_of_sight() -> None:
    live = LiveError()
    live.remember(made(windows(100), off=3.0))
    live.observe(windows(100))
    live.observe(windows(90))
    assert live.tallies["1"].windows == 0
    live.observe(windows(100 + 6 + LOOKBACK))
    assert live.tallies["1"].windows == 0


def test_steps_beyond_what_was_asked_or_observed_do_not_count() -> None:
    live = LiveError()
    asked = made(windows(100), off=0.0, horizon=1)
    asked.forecast.mean[:, 1:] += 1e6
    live.remember(asked)
    live.observe(windows(106))
    assert live.tallies["1"].mean == 0.0
    live.remember(made(windows(106), off=2.0))
    later = windows(110)
    later.observed[:] = False
    live.observe(later)
    assert live.tallies["1"].windows == 1


def test_versions_and_series_are_told_apart() -> None:
    live = LiveError()
    live.remember(made(windows(100, ("a", "b")), off=4.0, version="1"))
    live.remember(made(windows(100, ("a", "b")), off=8.0, version="2"))
    live.observe(windows(101, ("b",)))
    assert (live.tallies["1"].mean, live.tallies["2"].mean) == (1.0, 2.0)
    live.forget("2")
    live.observe(windows(101, ("a",)))
    assert live.tallies["1"].windows == 2
    assert "2" not in live.tallies


def test_only_so_many_forecasts_are_kept() -> None:
    live = LiveError(keep=2)
    for name in ("a", "b", "c"):
        live.remember(made(windows(100, (name,)), off=4.0))
    live.observe(windows(101, ("a", "b", "c")))
    assert live.tallies["1"].windows == 2


def test_the_first_of_several_forecasts_from_one_origin_is_judged() -> None:
    live = LiveError()
    live.remember(made(windows(100), off=4.0))
    live.remember(made(windows(100), off=8.0))
    live.observe(windows(101))
    assert live.tallies["1"].mean == 1.0


def test_a_new_series_is_scaled_by_its_own_steps() -> None:
    live = LiveError()
    live.remember(made(windows(100, scale=float("nan")), off=3.0))
    live.observe(windows(101))
    assert live.tallies["1"].mean == pytest.approx(1.5)  # it moves by 2 a step


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=50))
def test_a_tally_is_the_mean_and_its_standard_error(errors: list[float]) -> None:
    tally = Tally()
    for error in errors:
        tally.add(error)
    assert tally.mean == pytest.approx(np.mean(errors))
    wanted = np.std(errors, ddof=1) / np.sqrt(len(errors))
    assert tally.doubt == pytest.approx(wanted, abs=1e-3)
