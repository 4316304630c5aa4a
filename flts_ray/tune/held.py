"""A prepared set in the object store.

Design choices: it is put there when it is first asked for, and once for all steps of a training,
because Tune keeps what it was given until the process ends and a second copy is as large as the
first.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from flts_ray.prepare.arrays import SeriesArrays


def ray_runs() -> bool:
    """Whether this process has initialised Ray."""
    # One that never imported it has not, and importing it takes seconds.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


class Held:
    """A set that tasks and trials look at in shared memory."""

    def __init__(self, data: SeriesArrays) -> None:
        self._data = data

    @cached_property
    def reference(self) -> Any:
        """The set in the object store. Needs an initialised Ray."""
        import ray

        return ray.put(self._data)
