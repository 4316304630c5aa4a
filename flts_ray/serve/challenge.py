"""A challenger beside the champion: which requests it answers, and when it is dropped.

Design choices: a series belongs to the challenger or not by a hash of its id, so that it does not
change hands between requests, replicas or restarts; a request with many series goes where its
first one does, because no answer mixes versions; the challenger is dropped when it is worse than
the champion by the configured ratio and by more than twice the doubt about the difference, so
that neither a few unlucky windows nor an answer that a busy machine held up ends it; times are
compared by their mean, which a few long ones raise, and by their logarithms, of which an answer
that the machine held up tells little.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from flts_ray.config_serve import CanaryConfig
from flts_ray.serve.live_error import Tally


def belongs_to_challenger(unique_id: str, share: float) -> bool:
    """True for a `share` of all ids, always the same ones, and for more of them if it grows."""
    digest = hashlib.blake2b(unique_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


@dataclass
class Latency(Tally):
    """Seconds of answers, and their logarithms."""

    logs: Tally = field(default_factory=Tally)

    def add(self, value: float) -> None:
        super().add(value)
        self.logs.add(math.log(max(value, 1e-9)))

    @property
    def typical(self) -> float:
        """Geometric mean in seconds."""
        return math.exp(self.logs.mean)


@dataclass
class Standing:
    """What one version has shown so far."""

    error: Tally = field(default_factory=Tally)
    latency: Latency = field(default_factory=Latency)


def why_dropped(champion: Standing, challenger: Standing, rules: CanaryConfig) -> str | None:
    """The reason to drop the challenger, None while there is none."""
    slower = _slower(challenger.latency, champion.latency, rules)
    if slower is not None:
        return slower
    mine, other = challenger.error, champion.error
    if _is_worse(mine, other, rules.max_error_ratio, rules.min_windows):
        return (
            f"its scaled error is {mine.mean:.3g} over {mine.windows} forecasts, the champion's "
            f"{other.mean:.3g} over {other.windows}: more than {rules.max_error_ratio:g} times it"
        )
    return None


def _slower(mine: Latency, other: Latency, rules: CanaryConfig) -> str | None:
    ratio, least = rules.max_latency_ratio, rules.min_windows
    if _is_worse(mine, other, ratio, least):
        times, word = (mine.mean, other.mean), "take"
    elif _is_more(mine.logs, other.logs, math.log(ratio), least):
        times, word = (mine.typical, other.typical), "typically take"
    else:
        return None
    ours, theirs = (f"{1e3 * seconds:.1f}" for seconds in times)
    return (
        f"its answers {word} {ours} ms, the champion's {theirs} ms: more than {ratio:g} times as "
        "long"
    )


def _is_more(mine: Tally, other: Tally, by: float, least: int) -> bool:
    """True where `mine` is more than the other and `by`, and surely so."""
    if min(mine.windows, other.windows) < least:
        return False
    return mine.mean - other.mean - by > 2.0 * float(np.hypot(mine.doubt, other.doubt))


def _is_worse(mine: Tally, other: Tally, ratio: float, least: int) -> bool:
    """True where `mine` is more than `ratio` times the other, and surely so."""
    if min(mine.windows, other.windows) < least:
        return False
    doubt = float(np.hypot(mine.doubt, ratio * other.doubt))
    return mine.mean - ratio * other.mean > 2.0 * doubt
