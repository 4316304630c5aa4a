"""The linear map of the networks: what it is drawn to."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models.recurrent_linear import prior_of


def test_without_forgetting_the_prior_is_the_mean_of_the_same_phase() -> None:
    window = torch.randn(12, dtype=torch.float64)
    found = window @ prior_of(12, 6, 4, 1.0)
    cycles = window.reshape(3, 4).mean(dim=0)
    torch.testing.assert_close(found, cycles[[0, 1, 2, 3, 0, 1]])


def test_newer_cycles_count_more() -> None:
    prior = prior_of(8, 1, 4, 0.5)[:, 0]
    np.testing.assert_allclose(prior[[4, 0]], [2 / 3, 1 / 3])
    assert float(prior.sum()) == 1.0


@given(
    lags=st.integers(0, 40),
    horizon=st.integers(1, 60),
    season=st.integers(1, 30),
    decay=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_weights_are_a_mean_or_nothing(lags: int, horizon: int, season: int, decay: float) -> None:
    prior = prior_of(lags, horizon, season, decay)
    assert prior.shape == (lags, horizon)
    sums = prior.sum(dim=0).numpy()
    told = np.array([(h // season + 1) * season - h <= lags for h in range(horizon)])
    np.testing.assert_allclose(sums, told & (decay > 0), atol=1e-12)
