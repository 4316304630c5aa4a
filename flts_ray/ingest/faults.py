"""Crashes on order, for tests of what survives them.

Design choices: `FLTS_CRASH=point:n` kills this process with SIGKILL when it passes the point for
the n-th time, so that nothing is tidied up, as when a machine goes away; the environment is read
once, where a process starts, and without an order passing a point is one comparison.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from flts_ray.errors import ConfigError

VARIABLE = "FLTS_CRASH"
POINTS = (
    "polled", "decoded", "encoded", "put_sent", "put_done", "committed", "recovering",
    "compacting",
)  # fmt: skip


class Faults:
    """At most one order: the process dies when it passes `point` for the `passing`-th time.

    Points of an ingesting process: messages `polled`; `decoded`; a segment `encoded` but not sent;
    `put_sent`: stored, but this process does not know it yet; `put_done`: known, not committed;
    `committed`; `recovering`: the chain was followed, nothing was read yet.
    """

    def __init__(self, point: str = "", passing: int = 1) -> None:
        self._point = point
        self._left = passing

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Faults:
        """The order in FLTS_CRASH, if there is one. Raises ConfigError for one without meaning."""
        order = environment.get(VARIABLE, "")
        if not order:
            return Faults()
        point, _, passing = order.partition(":")
        if point not in POINTS or not (passing or "1").isdecimal() or passing == "0":
            raise ConfigError(
                f"{VARIABLE}={order}: expected point:n, n from 1, point one of {', '.join(POINTS)}"
            )
        return Faults(point, int(passing or 1))

    def at(self, point: str) -> None:
        """Say that this process passes a point."""
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


NO_FAULTS = Faults()
