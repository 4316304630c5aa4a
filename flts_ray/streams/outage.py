"""Whether the broker answers.

Design choices: messages are the usual sign of life; in quiet times the broker is asked now and
then, since a library that reconnects by itself says nothing; an outage is told once when it begins
and once when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog


class Outage:
    """`ask` says whether the broker answers now; it is called in quiet times every `quiet_s`."""

    def __init__(
        self,
        brokers: str,
        ask: Callable[[], bool],
        quiet_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.away_since: float | None = None
        """Clock at the last sign of life; None while the broker answers."""
        self._brokers = brokers
        self._ask = ask
        self._quiet_s = quiet_s
        self._clock = clock
        self._heard = self._asked = clock()

    def heard(self) -> None:
        """The broker sent something."""
        now = self._clock()
        if self.away_since is not None:
            away_s = round(now - self.away_since, 1)
            structlog.get_logger().info("broker_back", brokers=self._brokers, away_s=away_s)
        self.away_since = None
        self._heard = self._asked = now

    def quiet(self) -> None:
        """Nothing came: ask, if the last answer is long ago."""
        now = self._clock()
        if now - self._asked < self._quiet_s:
            return
        if self._ask():
            self.heard()
        else:
            self.lost("it does not answer")

    def lost(self, why: str) -> None:
        """The client failed to reach the broker."""
        if self.away_since is None:
            self.away_since = self._heard
            structlog.get_logger().warning("broker_away", brokers=self._brokers, why=why)
        self._asked = self._clock()
