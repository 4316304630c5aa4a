"""The linear model's sums over a prepared set, as one map-reduce of Ray Data.

Design choices: a task reads one bucket from the store, sums it and hands over its sums, so no
process ever holds more than a bucket and a few sums, whatever the size of the set; they are added
in the order of the buckets, so the result does not depend on which task ends first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from flts_ray.models.ar import FittedAR
from flts_ray.models.ar_set import bucket_sums, refitted, set_stride
from flts_ray.models.ar_sums import Sums
from flts_ray.models.volatility import Volatility
from flts_ray.prepare.dataset import quiet_data
from flts_ray.prepare.loading import PreparedSet
from flts_ray.tune.held import ray_runs


def refit_on_set(fitted: FittedAR, prepared: PreparedSet) -> FittedAR:
    """The model refitted on training and validation windows of a whole set, read by bucket.

    Raises DataError without a window, ArtifactError for a missing or changed file.
    """
    return refitted(fitted, sums_of_set(fitted, prepared))


def sums_of_set(fitted: FittedAR, prepared: PreparedSet) -> Sums:
    """Sums over all buckets; at the stride of `set_stride`. As tasks where Ray is initialised,
    else one after the other."""
    splits = prepared.manifest.splits
    rows = splits["train"] + splits["validation"]
    stride = set_stride(fitted, rows, prepared.manifest.series)
    model, names = without_learned(fitted), prepared.buckets()
    if ray_runs():
        return reduce(add, _as_tasks(model, prepared, names, stride))
    return reduce(add, (bucket_sums(model, prepared.bucket(name), stride) for name in names))


def _as_tasks(
    fitted: FittedAR, prepared: PreparedSet, names: Sequence[str], stride: int
) -> Iterator[Sums]:
    import ray

    held = ray.put((fitted, prepared))

    def summed(row: dict[str, Any]) -> dict[str, Any]:
        model, found = ray.get(held)
        sums = bucket_sums(model, found.bucket(row["bucket"]), stride)
        return {"sums": np.frombuffer(save(_contiguous(sums)), dtype=np.uint8)}

    with quiet_data(in_order=True):
        items = [{"bucket": name} for name in names]
        steps = ray.data.from_items(items, override_num_blocks=len(items))
        for row in steps.map(summed, num_cpus=1).iter_rows():
            yield _sums(row["sums"])


def without_learned(fitted: FittedAR) -> FittedAR:
    """The settings alone, which every task unpacks: not what the model has learned so far, nor the
    names of series without a map of their own, which may be millions."""
    owners = fitted.recipe.owners
    return replace(
        fitted,
        stats=fitted.stats.take(owners),
        recipe=replace(fitted.recipe, owners=np.arange(len(owners))),
        volatility=Volatility.none(),
        sums=None,
        memory=None,
    )


def _contiguous(sums: Sums) -> dict[str, np.ndarray]:
    counts = {"slots": np.asarray([len(sums.short), len(sums.long)])}
    arrays = {**sums.arrays(), **counts}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _sums(raw: np.ndarray) -> Sums:
    """Sums with as many slots as were sent: slots without windows leave no arrays."""
    arrays = load(raw.tobytes())
    short, long = (int(count) for count in arrays.pop("slots"))
    found = Sums.from_arrays(arrays)
    assert found is not None  # `save` was given its arrays
    return Sums(
        found.short + (None,) * (short - len(found.short)),
        found.long + (None,) * (long - len(found.long)),
        found.strides,
    )
