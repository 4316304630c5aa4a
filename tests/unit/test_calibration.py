from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.calibration import (
    calibration_error,
    coverage_table,
    level_coverage,
    pit_shares,
    pit_table,
)
from flts_ray.evaluate.metrics import by_step, overall, together

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
NORMAL = NormalDist()
OFFSETS = np.array([NORMAL.inv_cdf(level) for level in LEVELS])


def backtest_of(actual: np.ndarray, quantiles: np.ndarray) -> Backtest:
    n = len(actual)
    origins = Origins(np.zeros(n, np.int64), np.arange(n))
    mean = quantiles[..., 2]
    return Backtest(origins, np.arange(n), LEVELS, mean, quantiles, actual)


def forecaster(width: float = 1.0, lean: float = 0.0, n: int = 20_000) -> Backtest:
    """Normal forecasts of normal values, `width` times as wide as they should be."""
    rng = np.random.default_rng(0)
    centre = rng.normal(0, 5, (n, 3))
    quantiles = centre[..., None] + lean + width * OFFSETS
    return backtest_of(centre + rng.standard_normal((n, 3)), quantiles)


def pit_of(bt: Backtest) -> pa.Table:
    return pit_table(LEVELS, level_coverage(bt.actual, bt.quantiles, LEVELS))


def test_the_pit_of_a_perfect_forecaster_is_uniform() -> None:
    table = pit_of(forecaster())
    np.testing.assert_allclose(table["height"].to_numpy(), 1.0, atol=0.05)
    assert table["above"].to_pylist() == [0.0, *LEVELS]
    assert table["below"].to_pylist() == [*LEVELS, 1.0]
    assert sum(table["share"].to_pylist()) == pytest.approx(1.0)
    bt = forecaster()
    assert calibration_error(level_coverage(bt.actual, bt.quantiles, LEVELS), LEVELS) < 0.005


def test_narrow_bands_raise_the_ends_and_wide_ones_the_middle() -> None:
    narrow, wide = (pit_of(forecaster(width))["height"].to_numpy() for width in (0.5, 2.0))
    assert narrow[0] > 2 and narrow[-1] > 2 and narrow[2] < 0.8
    assert wide[0] < 0.2 and wide[-1] < 0.2 and wide[2] > 1.1


def test_a_lean_tilts_the_histogram() -> None:
    low = pit_of(forecaster(lean=-0.5))["height"].to_numpy()
    assert low[-1] > 1.5 and low[0] < 0.7


def test_errors_grow_with_what_is_wrong() -> None:
    found = [forecaster(width) for width in (1.0, 0.8, 0.5)]
    errors = [
        float(calibration_error(level_coverage(bt.actual, bt.quantiles, LEVELS), LEVELS))
        for bt in found
    ]
    assert errors == sorted(errors)
    covered = np.array([NORMAL.cdf(0.5 * offset) for offset in OFFSETS])
    assert errors[2] == pytest.approx(np.abs(covered - LEVELS).mean(), abs=0.005)


def test_ties_count_half_and_missing_values_nowhere() -> None:
    actual = np.array([[1.0, np.nan], [2.0, 3.0]])
    quantiles = np.full((2, 2, 1), 2.0)
    assert level_coverage(actual, quantiles, (0.5,)).tolist() == [0.5]
    steps = level_coverage(actual, quantiles, (0.5,), by_step)
    assert steps[:, 0].tolist() == [0.75, 0.0]
    nothing = level_coverage(np.full((2, 2), np.nan), quantiles, (0.5,))
    assert np.isnan(pit_shares(nothing)).all()


def test_a_forecast_that_ends_at_zero_is_calibrated() -> None:
    """Seven of ten values are zero, the others as the forecast says."""
    rng = np.random.default_rng(0)
    share = rng.random((20_000, 1))
    actual = np.maximum(share - 0.7, 0.0)
    quantiles = np.maximum(np.array(LEVELS) - 0.7, 0.0) * np.ones((20_000, 1, 1))
    covered = level_coverage(actual, quantiles, LEVELS)
    np.testing.assert_allclose(covered, LEVELS, atol=0.02)


def test_coverage_is_told_for_every_step_and_for_all() -> None:
    bt = forecaster(n=500)
    table = coverage_table(
        LEVELS, level_coverage(bt.actual, bt.quantiles, LEVELS, together(overall, by_step))
    )
    assert table.column_names == ["step", "q0.025", "q0.1", "q0.5", "q0.9", "q0.975"]
    assert table["step"].to_pylist() == [0, 1, 2, 3]
    columns = np.stack([table[f"q{level:g}"].to_numpy() for level in LEVELS], axis=1)
    np.testing.assert_allclose(columns[0], columns[1:].mean(axis=0))
    assert (np.diff(columns, axis=1) >= 0).all()


@given(st.integers(0, 2**32 - 1))
def test_pit_shares_are_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.integers(0, 4, (9, 2, 5)).astype(float), axis=-1)
    actual = rng.integers(0, 4, (9, 2)).astype(float)
    shares = pit_shares(level_coverage(actual, quantiles, LEVELS, by_step))
    assert shares.shape == (2, 6) and (shares >= -1e-12).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
