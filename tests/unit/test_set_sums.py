"""What a task gets of a model whose windows it sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.models.ar import FittedAR
from flts_ray.models.ar_set import bucket_sums
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.memory import Memory
from flts_ray.tune.set_sums import without_learned
from tests.synthetic import seasonal_set

DATA = seasonal_set(n_series=4, length=900, covariates=False)


def test_the_settings_alone_sum_the_same() -> None:
    params = {"lags": 24, "pooling": "per_series", "seasons": 1, "reach": 40}
    model = fit_fully("ar", DATA, Task(6, (0.1, 0.5, 0.9)), params)
    assert isinstance(model, FittedAR) and isinstance(model.memory, Memory)
    model = replace(model, recipe=replace(model.recipe, owners=model.recipe.owners[1:]))
    sent = without_learned(model)
    assert len(sent.stats.ids) == len(model.recipe.owners) < DATA.n_series
    for rows in ([0, 1], [2, 3], [3]):
        part = DATA.take(rows)
        found, expected = (bucket_sums(one, part, 2).arrays() for one in (sent, model))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
