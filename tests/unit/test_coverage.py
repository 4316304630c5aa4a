"""What bands covered, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.coverage import BandCoverage, band_coverage, bands_of, bands_table

HOUR_US = 3_600_000_000
LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
NORMAL = np.array([-1.96, -1.2816, 0.0, 1.2816, 1.96])


def some(days: int, seed: int = 0, stride: int = 24, size: float = 1.0) -> Backtest:
    """Normal bands, and errors of two series that go together over the horizon of a day."""
    rng = np.random.default_rng(seed)
    origin = np.tile(np.arange(0, days * 24, stride), 2)
    hourly = np.convolve(rng.standard_normal(days * 24 + 48), np.ones(12) / np.sqrt(12), "same")
    actual = size * hourly[origin[:, None] + np.arange(24)]
    return Backtest(
        origins=Origins(np.repeat([0, 1], len(origin) // 2), origin),
        origin_us=origin * HOUR_US,
        levels=LEVELS,
        mean=np.zeros_like(actual),
        quantiles=np.broadcast_to(NORMAL, (*actual.shape, 5)),
        actual=actual,
    )


def of(bt: Backtest) -> BandCoverage:
    return band_coverage(bt, 0.8, 0.1, 0.9, HOUR_US)


def test_a_share_is_of_the_values_that_were_observed() -> None:
    bt = some(40)
    actual = bt.actual.copy()
    actual[::2, 3:] = np.nan
    found = of(replace(bt, actual=actual))
    seen = np.isfinite(actual)
    assert found.share == pytest.approx((np.abs(actual[seen]) <= 1.2816).mean())
    assert found.width == pytest.approx(2 * 1.2816)
    assert found.apart == 40


def test_overlapping_windows_make_no_number_surer() -> None:
    apart, dense = of(some(60)), of(some(60, stride=3))
    assert dense.apart == pytest.approx(60, abs=1)
    assert dense.upper - dense.lower > 0.6 * (apart.upper - apart.lower)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    found = [of(some(80, seed)) for seed in range(60)]
    held = np.mean([one.lower <= 0.8 <= one.upper for one in found])
    assert held > 0.85
    assert all(one.lower <= one.share <= one.upper for one in found)


@pytest.mark.parametrize(
    ("days", "size", "verdict"),
    [(40, 3.0, "narrow"), (40, 0.3, "wide"), (30, 1.0, "unclear"), (3000, 1.0, "holds")],
)
def test_a_verdict_is_what_the_whole_interval_says(days: int, size: float, verdict: str) -> None:
    assert of(some(days, size=size)).verdict == verdict


def test_too_few_windows_have_no_interval() -> None:
    found = of(some(1))
    assert np.isnan(found.lower) and np.isnan(found.upper) and found.verdict == "unclear"


def test_rows_come_back_from_the_table() -> None:
    bt, kept = some(30), some(30, size=2.0)
    table = bands_table(bt, kept, HOUR_US)
    assert table["kept"].to_pylist() == [False, False, True, True]
    found = bands_of(table)
    assert found[False, 0.8] == of(bt)
    assert found[True, 0.95].share < found[False, 0.95].share
    assert set(bands_of(bands_table(bt, None, HOUR_US))) == {(False, 0.8), (False, 0.95)}
