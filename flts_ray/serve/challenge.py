"""A challenger beside the champion: which requests it answers, and when it is dropped.

Design choices: a series belongs to the challenger or not by a hash of its id, so that it does not
change hands between requests, replicas or restarts; a request with many series goes where its
first one does, because no answer mixes versions; the challenger is dropped when it is worse than
the champion by the configured ratio and by more than twice the doubt about the difference, so
that neither a few unlucky windows nor an answer that a busy machine held up ends it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from flts_ray.config_serve import CanaryConfig
from flts_ray.serve.live_error import Tally


def belongs_to_challenger(unique_id: str, share: float) -> bool:
    """True for a `share` of all ids, always the same ones, and for more of them if it grows."""
    digest = hashlib.blake2b(unique_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


@dataclass
class Standing:
    """What one version has shown so far."""

    error: Tally = field(default_factory=Tally)
    latency: Tally = field(default_factory=Tally)
    """Seconds of answers."""


def why_dropped(champion: Standing, challenger: Standing, rules: CanaryConfig) -> str | None:
    """The reason to drop the challenger, None while there is none."""
    ours, theirs = challenger.latency, champion.latency
    if _is_worse(ours, theirs, rules.max_latency_ratio, rules.min_windows):
        return (
            f"its answers take {ours.mean * 1e3:.1f} ms, the champion's {theirs.mean * 1e3:.1f} "
            f"ms: more than {rules.max_latency_ratio:g} times as long"
        )
    mine, other = challenger.error, champion.error
    if _is_worse(mine, other, rules.max_error_ratio, rules.min_windows):
        return (
            f"its scaled error is {mine.mean:.3g} over {mine.windows} forecasts, the champion's "
            f"{other.mean:.3g} over {other.windows}: more than {rules.max_error_ratio:g} times it"
        )
    return None


def _is_worse(mine: Tally, other: Tally, ratio: float, least: int) -> bool:
    """True where `mine` is more than `ratio` times the other, and surely so."""
    if min(mine.windows, other.windows) < least:
        return False
    doubt = float(np.hypot(mine.doubt, ratio * other.doubt))
    return mine.mean - ratio * other.mean > 2.0 * doubt
