"""Plain forecasts for those series of a bulk request that found no room or no time.

Design choices: each series is marked by itself, because the others are the model's; what the model
refused stays refused, for a plain forecast would hide what is wrong with the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import Expired, FltsError, Overloaded
from flts_ray.models.base import Forecast, Task
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.bulk_parts import Done, joined, rows_of
from flts_ray.serve.degraded import Degraded, reason_of, seasonal_naive
from flts_ray.serve.regular import chosen


@dataclass(frozen=True)
class StoodIn:
    """`forecast` is of the windows that are not in `failed`, `degraded` of those of them that the
    model did not make; both by the position of the window."""

    forecast: Forecast | None
    failed: dict[int, FltsError]
    degraded: dict[int, Degraded]


def stand_in(
    windows: Windows, found: Forecast | None, failed: Mapping[int, FltsError], task: Task
) -> StoodIn:
    """found: the model's forecast of the windows that are not in `failed`; None where all are."""
    late = [i for i, error in sorted(failed.items()) if isinstance(error, Overloaded | Expired)]
    if not late:
        return StoodIn(found, dict(failed), {})
    plain = seasonal_naive(chosen(windows, np.array(late)), task)
    kept = [i for i in range(len(windows)) if i not in failed]
    order = np.argsort([*kept, *late])
    whole = joined([plain] if found is None else [found, plain])
    assert whole is not None  # `plain` is in it
    degraded = {i: Degraded(reason_of(failed[i]), "seasonal_naive") for i in late}
    left = {i: error for i, error in failed.items() if i not in degraded}
    return StoodIn(rows_of(whole, order), left, degraded)


def told_of(done: Done) -> Iterator[tuple[Windows, Forecast, bool]]:
    """What the model was asked and said, and apart from it what stood in."""
    if done.told is None:
        return
    windows, forecast = done.told
    plain = np.isin(done.rows, list(done.degraded))
    if not plain.any():
        yield windows, forecast, False
        return
    for which, degraded in ((~plain, False), (plain, True)):
        rows = np.flatnonzero(which)
        if len(rows):
            yield chosen(windows, rows), rows_of(forecast, rows), degraded
