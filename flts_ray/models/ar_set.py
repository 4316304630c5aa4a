"""The linear model on a set of any size: sums of products, bucket by bucket.

Design choices: a refit needs of its windows nothing but sums, so whoever holds one bucket of
series can sum it and forget it, and the sums of all buckets are those of the whole set; the
settings were chosen on a sample of windows and stay; windows of all series are taken at one stride,
many times as many as a fit in memory looks at.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from flts_ray.errors import DataError
from flts_ray.models.ar import FittedAR, solved_from
from flts_ray.models.ar_map import Sample
from flts_ray.models.ar_sums import Sums
from flts_ray.models.calibrate import known_rows
from flts_ray.prepare.arrays import SeriesArrays, origins_in, widened

MORE_WINDOWS = 20
"""How many times the windows of a fit in memory are summed over a set."""


def set_stride(fitted: FittedAR, rows: int, series: int) -> int:
    """Steps between windows of one series that leave at most `MORE_WINDOWS` times `max_windows`.

    rows, series: of the training and the validation span of the whole set. The stride shares no
    factor with the season, so that windows of all phases are summed.
    """
    unseen = fitted.spec.lookback + fitted.spec.task.horizon - 1
    windows = max(1, rows - series * unseen)
    stride = -(-windows // (MORE_WINDOWS * int(fitted.spec.params["max_windows"])))
    while gcd(stride, fitted.spec.contract.season) > 1:
        stride += 1
    return stride


def bucket_sums(fitted: FittedAR, data: SeriesArrays, stride: int) -> Sums:
    """Sums over the training and validation windows of some series of the set.

    Sums of buckets that share no series add up to those of all of them.
    """
    whole = widened(data)
    lookback, horizon = fitted.summed, fitted.spec.task.horizon
    origins = origins_in(whole, "train", lookback, horizon, stride, staggered=True)
    sample = Sample(whole, *origins)
    # An owner that lies in another bucket has no windows here.
    owners = [fitted.stats.ids[row] for row in fitted.recipe.owners]
    here = replace(fitted.recipe, owners=known_rows(owners, data.stats))
    sums = here.sums(sample, sample, fitted.layout)
    return replace(sums, strides=(stride, stride))


def refitted(fitted: FittedAR, sums: Sums) -> FittedAR:
    """The model with maps from the sums of a set. Raises DataError where they hold no window."""
    if any(one is None for one in (*sums.short, *sums.long)):
        raise DataError(
            f"ar: no training window of {fitted.spec.lookback} + {fitted.spec.task.horizon} steps "
            "in the set, or none of a series that has a map of its own; train again on this set",
            field="lags",
        )
    return solved_from(fitted, sums)
