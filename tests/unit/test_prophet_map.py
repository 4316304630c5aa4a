"""The solver of Prophet's parameters: a minimum that satisfies its conditions, scaled or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flts_ray.models.prophet_map import Problem, map_estimate, objective, sparse_minimum


def problem(seed: int = 0, n: int = 200, multiplicative: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, n)
    x = np.stack([np.sin(60 * t), np.cos(60 * t)], axis=1)
    trend = 0.5 + 0.4 * t - 0.6 * np.maximum(t - 0.5, 0.0)
    season = x @ [0.1, -0.2]
    y = (trend * (1 + season) if multiplicative else trend + season) + rng.normal(0, 0.03, n)
    return Problem(y, t, np.linspace(0.1, 0.8, 8), x, np.full(2, 10.0), 0.05, multiplicative)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(1e-3, 10.0))
@example(4, 4, 0.015625)  # rounding keeps the first slopes from being exact
def test_a_sparse_minimum_satisfies_its_conditions(seed: int, size: int, penalty: float) -> None:
    """No direction goes down: Karush, Kuhn and Tucker."""
    rng = np.random.default_rng(seed)
    columns, target = rng.standard_normal((size + 2, size)), rng.standard_normal(size + 2)
    hessian, linear = columns.T @ columns, 3 * columns.T @ target
    x = sparse_minimum(hessian, linear, penalty, rng.standard_normal(size))
    slope, close = hessian @ x - linear, 1e-6 * (penalty + np.abs(linear).max())
    assert (np.abs(slope) <= penalty + close).all()
    moved = x != 0
    np.testing.assert_allclose(slope[moved], -penalty * np.sign(x[moved]), atol=close)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_no_nearby_parameters_are_likelier(multiplicative: bool) -> None:
    one = problem(multiplicative=multiplicative)
    found = map_estimate(one)
    best, rng = objective(one, found), np.random.default_rng(1)
    for size in (1e-2, 1e-3, 1e-4):
        for _ in range(50):
            trend = found.trend + size * rng.standard_normal(len(found.trend))
            beta = found.beta + size * rng.standard_normal(2)
            variance = found.variance * np.exp(size * rng.standard_normal())
            near = replace(found, trend=trend, beta=beta, variance=variance)
            assert objective(one, near) > best - 1e-6


def test_a_bend_is_found_and_some_changes_are_exactly_none() -> None:
    found = map_estimate(problem(n=1000))
    np.testing.assert_allclose(found.beta, [0.1, -0.2], atol=0.01)
    assert found.variance == pytest.approx(0.03**2, rel=0.1)
    changes, at = found.trend[2:], problem().changepoints
    assert (changes == 0).any()
    assert at[changes.argmin()] == pytest.approx(0.5)
    assert changes.min() == pytest.approx(-0.6, abs=0.1)


def test_a_flat_trend_is_a_level() -> None:
    found = map_estimate(replace(problem(), flat=True))
    assert (found.trend[1:] == 0).all()
    assert found.trend[0] == pytest.approx(0.5 + 0.2 - 0.6 / 8, abs=0.02)


def test_a_constant_series_is_its_value() -> None:
    one = problem()
    found = map_estimate(replace(one, y=np.full(200, 0.7)))
    assert found.trend[0] == pytest.approx(0.7, abs=1e-6)
    np.testing.assert_allclose(np.append(found.trend[1:], found.beta), 0, atol=1e-6)


@pytest.mark.parametrize("name", ["y", "x"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    one = problem()
    spoiled = getattr(one, name).copy()
    spoiled[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        map_estimate(replace(one, **{name: spoiled}))
