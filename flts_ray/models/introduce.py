"""The other series of a set, told to a model that was fitted on some of them.

Design choices: a model that takes any series has nothing to learn of one more but its statistics
and where its unseen rows begin; series keep the rows they have in the model and the others follow,
so that tables by row stay valid, as in an update (`news`); what a model never looked at before the
test span of the set counts as seen, because a later update should begin where the set ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted
from flts_ray.models.memory import Memory, needed_memory
from flts_ray.prepare.loading import Census

EACH_ALONE = ("prophet",)
"""Kinds that fit every series by itself."""

AnyFitted = TypeVar("AnyFitted", bound=Fitted)


def takes_any(kind: str, params: Mapping[str, Any]) -> bool:
    """Whether models of these settings learn what serves every series, from some of them."""
    return kind not in EACH_ALONE and params.get("group") != "per_series"


def introduced(fitted: AnyFitted, census: Census) -> AnyFitted:
    """The same forecasts from a model that knows every series of the census.

    Raises DataError for a model that forecasts only series it was fitted on, and unless its own
    series are the first of the census.
    """
    spec, known = fitted.spec, len(fitted.stats.ids)
    if spec.needs_known_series:
        raise DataError(
            f"{spec.kind}: forecasts only series it was fitted on; raise tune.most_series to the "
            f"{len(census.stats.ids)} of the set, or set models.{spec.kind}.trials to 0",
            field="tune.most_series",
        )
    if census.stats.ids[:known] != fitted.stats.ids:
        raise DataError(
            f"{spec.kind}: the {known} series it was fitted on are not the first of this set; "
            "train again",
            field="unique_id",
        )
    memory = _longer(needed_memory(fitted), census, known)
    return replace(fitted, stats=census.stats, memory=memory)  # type: ignore[type-var]


def _longer(memory: Memory, census: Census, known: int) -> Memory:
    rest = census.test_us[known:]
    return replace(
        memory,
        until_us=np.concatenate([memory.until_us, rest]),
        learned_us=np.concatenate([memory.learned_us, rest]),
    )
