"""Sums of products that a fitted linear model keeps, so that new windows can be added to them.

Design choices: the sums are all that a fit knows of its windows, so adding those of new windows
and solving again is the fit on all of them, without a look at the old ones; symmetric matrices
are stored as their upper triangles, in float64, because the fit cancels large sums against each
other; sums that are too large for an artifact that every replica fetches are not kept, and an
update then sums all windows again, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flts_ray.models.ridge import Moments

MAX_BYTES = 32 * 2**20
"""Bound of the sums inside an artifact; a larger model is updated from all its windows."""
PREFIX = "sums."
SYMMETRIC = ("shared_shared", "step_step")


@dataclass(frozen=True)
class Sums:
    """Moments of all windows first, then of those of each owner; `long` is empty where there
    are no long maps. None: of no window. strides: steps from one window of a series to the next,
    in `short` and in `long`.
    """

    short: tuple[Moments | None, ...]
    long: tuple[Moments | None, ...]
    strides: tuple[int, int]

    def __add__(self, other: Sums) -> Sums:
        """Of the windows of both, at the strides of the first."""
        return Sums(_added(self.short, other.short), _added(self.long, other.long), self.strides)

    @property
    def nbytes(self) -> int:
        """Size of what `arrays` gives."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for `Fitted.state`; owners are stacked."""
        named = {f"{PREFIX}strides": np.asarray(self.strides, dtype=np.int64)}
        for group, moments in (("short", self.short), ("long", self.long)):
            for slot, one in enumerate(moments):
                for name, value in ({} if one is None else vars(one)).items():
                    array = _packed(value) if name in SYMMETRIC else np.atleast_1d(value)
                    named[f"{PREFIX}{group}.{slot}.{name}"] = array
        return named

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Sums | None:
        """The inverse of `arrays`; None where there are none. Raises KeyError, ValueError."""
        if f"{PREFIX}strides" not in arrays:
            return None
        near, far = (int(stride) for stride in arrays[f"{PREFIX}strides"])
        return cls(_group(arrays, "short"), _group(arrays, "long"), (near, far))


def _added(
    one: tuple[Moments | None, ...], other: tuple[Moments | None, ...]
) -> tuple[Moments | None, ...]:
    pairs = zip(one, other, strict=True)
    return tuple(b if a is None else a if b is None else a + b for a, b in pairs)


def _group(arrays: dict[str, np.ndarray], group: str) -> tuple[Moments | None, ...]:
    prefix = f"{PREFIX}{group}."
    slots = [int(name.removeprefix(prefix).split(".")[0]) for name in arrays if prefix in name]
    return tuple(_moments(arrays, f"{prefix}{slot}.") for slot in range(max(slots, default=-1) + 1))


def _moments(arrays: dict[str, np.ndarray], prefix: str) -> Moments | None:
    if f"{prefix}n" not in arrays:
        return None
    names = [name for name in Moments.__dataclass_fields__ if name != "n"]
    raw = {name: arrays[f"{prefix}{name}"] for name in names}
    whole = {name: _unpacked(array) if name in SYMMETRIC else array for name, array in raw.items()}
    return Moments(n=float(arrays[f"{prefix}n"][0]), **whole)


def _packed(matrix: np.ndarray) -> np.ndarray:
    """Upper triangle of the last two axes: float64 [..., d (d + 1) / 2]."""
    rows, columns = np.triu_indices(matrix.shape[-1])
    return np.ascontiguousarray(matrix[..., rows, columns])


def _unpacked(packed: np.ndarray) -> np.ndarray:
    size = int(np.sqrt(2 * packed.shape[-1]))
    rows, columns = np.triu_indices(size)
    whole = np.empty((*packed.shape[:-1], size, size))
    whole[..., rows, columns] = packed
    whole[..., columns, rows] = packed
    return whole
