"""How many replicas the load needs, now and a little later: pure functions of plain numbers.

Design choices: concurrency is the measure of load (Little, 1961: requests in the system = rate x
time in it), because it grows with the rate and with slowness alike; latency can only add to it;
the forecast of the rate is turned into concurrency by the ratio that was seen lately or at such a
rate, and can only raise the answer, so the reactive rule is its floor; the forecast is our own
ridge regression on the last values and on those one season ago, refitted on what was counted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from flts_ray.config_serve import KEEP_INTERVALS
from flts_ray.models.ridge import Moments, solve

RATE, LATENCY, ONGOING = "requests_per_s", "p95_ms", "ongoing_requests"
"""Names under which replicas report."""
LAGS = 12
"""Intervals that the rate's regression looks back."""
PENALTY = 0.01
LEAST = 3 * LAGS
"""Intervals before the first forecast."""
ALIKE = 1.25
"""Ratio of two counts up to which they are about the same load."""
MOST_GROWTH = 3.0
"""A forecast beyond this many times the highest count of the memory is not believed."""


@dataclass(frozen=True)
class Demand:
    """What replicas report. `ongoing` and `per_s` are sums over `replicas`, `p95_ms` the worst;
    `told`: all of them have reported, so that what is missing here is not there either."""

    replicas: int
    ongoing: float
    per_s: float = 0.0
    p95_ms: float = 0.0
    told: bool = True


def reactive(demand: Demand, target_ongoing: float, target_p95_ms: float | None) -> float:
    """Replicas for the load as it is, a real number.

    Above the latency target at most twice as many as now; close below it none is taken away.
    """
    wanted = demand.ongoing / target_ongoing
    if target_p95_ms is None or demand.ongoing == 0:
        return wanted
    excess = demand.p95_ms / target_p95_ms
    if excess > 1:
        return max(wanted, demand.replicas * min(excess, 2.0))
    if excess > 0.5:
        return max(wanted, float(demand.replicas))
    return wanted


def forecast_counts(counts: np.ndarray, horizon: int, season: int | None = None) -> np.ndarray:
    """Requests in each of the next `horizon` intervals.

    counts: [n] >= 0, oldest first. Returns [horizon] >= 0; the last count repeated while there
    are fewer than LEAST. With `season` and two of them, last season's values are features too.
    """
    n = len(counts)
    if n < LEAST + horizon:
        return np.full(horizon, float(counts[-1]) if n else 0.0)
    back = season if season is not None and n >= 2 * season + horizon else None
    first = max(LAGS, back or 0)
    origins = np.arange(first, n - horizon + 1)
    windows = Moments.of(
        _lags(counts, origins),
        _last_season(counts, origins, horizon, back),
        counts[origins[:, None] + np.arange(horizon)].astype(float),
    )
    (fit,) = solve(windows, [PENALTY], np.ones(windows.step.shape[1], dtype=bool))
    now = np.array([n])
    made = _lags(counts, now) @ fit.shared + fit.bias
    made += (_last_season(counts, now, horizon, back) * fit.step).sum(axis=-1)
    return np.clip(made[0], 0.0, MOST_GROWTH * float(counts.max()))


def _lags(counts: np.ndarray, origins: np.ndarray) -> np.ndarray:
    return counts[origins[:, None] - 1 - np.arange(LAGS)].astype(float)


def _last_season(
    counts: np.ndarray, origins: np.ndarray, horizon: int, season: int | None
) -> np.ndarray:
    if season is None:
        return np.zeros((len(origins), horizon, 0))
    steps = np.arange(horizon) % season
    return counts[origins[:, None] - season + steps][..., None].astype(float)


@dataclass(frozen=True)
class Counted:
    """What `Ahead` knows. `until`: when the interval after the last count ends; `counts` requests
    and `ongoing` requests in the system of each interval, float64 [n], oldest first; `missed`:
    sums of the errors of its forecasts and of the last counts in their place."""

    interval_s: float
    until: float
    counts: np.ndarray
    ongoing: np.ndarray
    missed: tuple[float, float]


class Ahead:
    """The load that the next intervals bring, from the counts of the past.

    interval_s: length of one count; horizon: intervals to look ahead; season: intervals after
    which the load repeats. Without two seasons the last count is the forecast.
    """

    def __init__(self, interval_s: float, horizon: int, season: int) -> None:
        self._interval_s = interval_s
        self._horizon = horizon
        self._season = season
        self._counts: deque[float] = deque(maxlen=KEEP_INTERVALS)
        self._ongoing: deque[float] = deque(maxlen=KEEP_INTERVALS)
        self._said: deque[float] = deque(maxlen=horizon)
        self._missed, self._missed_plainly = 0.0, 0.0
        self._sum = self._ongoing_sum = 0.0
        self._looks = 0
        self._until: float | None = None
        self.concurrency = 0.0
        """Requests in the system at the highest forecast rate; 0 without knowledge."""

    def counted(self) -> Counted | None:
        """All that is worth keeping; None before the first count."""
        if self._until is None or not self._counts:
            return None
        missed = (self._missed, self._missed_plainly)
        counts, ongoing = np.array(self._counts), np.array(self._ongoing)
        return Counted(self._interval_s, self._until, counts, ongoing, missed)

    def resume(self, counted: Counted, now: float) -> bool:
        """Go on from what was counted by `now`; False, and no change, where it cannot be used.

        That is where its intervals are of another length or end after the one that runs.
        """
        same = math.isclose(counted.interval_s, self._interval_s)
        if not same or counted.until > now + self._interval_s:
            return False
        self._until = counted.until
        self._counts.extend(counted.counts.tolist())
        self._ongoing.extend(counted.ongoing.tolist())
        self._missed, self._missed_plainly = counted.missed
        return True

    def look(self, demand: Demand, now: float) -> None:
        """Take in one report, at any pace; `now` in seconds of any clock that goes forward.

        Of a report that is not `told` only the time counts.
        """
        if self._until is None:
            if not demand.told:
                return
            self._until = now + self._interval_s
        if now >= self._until:
            # Intervals keep to the clock, or a season would not end where it began.
            passed = 1 + int((now - self._until) // self._interval_s)
            self._until += passed * self._interval_s
            self._close(min(passed, KEEP_INTERVALS))
        if not demand.told:
            return
        self._sum += demand.per_s
        self._ongoing_sum += demand.ongoing
        self._looks += 1

    def _close(self, passed: int) -> None:
        if self._looks:
            self._counts.append(self._sum / self._looks * self._interval_s)
            self._ongoing.append(self._ongoing_sum / self._looks)
            passed -= 1
        for _ in range(passed):
            self._repeat()
        self._sum = self._ongoing_sum = 0.0
        self._looks = 0
        counts, ongoing = np.array(self._counts), np.array(self._ongoing)
        self.concurrency = 0.0
        if len(counts) >= 2 * self._season + self._horizon:
            peak = self._peak(counts)
            self.concurrency = peak * _ongoing_each(counts, ongoing, peak)

    def _repeat(self) -> None:
        """An interval that nobody saw: as a season ago, or as the last one."""
        back = self._season if len(self._counts) >= self._season else 1
        self._counts.append(self._counts[-back])
        self._ongoing.append(self._ongoing[-back])

    def _peak(self, counts: np.ndarray) -> float:
        """The highest count ahead; the last one while forecasts are clearly worse than that."""
        if len(self._said) == self._horizon:
            came = float(counts[-self._horizon :].max())
            before = float(counts[-self._horizon - 1])
            keep = 1 - 1 / self._season
            self._missed = keep * self._missed + abs(self._said[0] - came)
            self._missed_plainly = keep * self._missed_plainly + abs(before - came)
        peak = float(forecast_counts(counts, self._horizon, self._season).max())
        self._said.append(peak)
        clearly = float(counts.max())  # in a quiet hour both miss next to nothing
        trusted = self._missed <= self._missed_plainly + clearly
        return peak if trusted else float(counts[-1])


def _ongoing_each(counts: np.ndarray, ongoing: np.ndarray, count: float) -> float:
    """Requests in the system for each one that is counted, when `count` of them come.

    The time that a request takes grows with the load, so it is what it lately was or, if that is
    more, what it was whenever about as many came. Medians, because a count follows a step of the
    load more slowly than the requests in the system do.
    """
    recent = np.arange(len(counts)) >= len(counts) - LAGS
    alike = (counts > count / ALIKE) & (counts < count * ALIKE)
    found = [
        float(np.median(ongoing[which] / counts[which]))
        for which in (recent & (counts > 0), alike & (counts > 0))
        if which.any()
    ]
    return max(found, default=0.0)


def wanted_replicas(
    demand: Demand, ahead: float, target_ongoing: float, target_p95_ms: float | None
) -> int:
    """Replicas for now and for `ahead`, the concurrency that is forecast; at least 1."""
    now = reactive(demand, target_ongoing, target_p95_ms)
    return max(1, math.ceil(max(now, ahead / target_ongoing) - 1e-9))
