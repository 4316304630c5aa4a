"""When an actor that ended may start again, remembered in the store.

Design choices: Ray restarts a process at once, as often as it ends, so the new process itself
waits; the list of its starts lies in the store, where a killed process leaves it behind and
another node finds it; one restart costs nothing, because a killed node is no fault of the
actor's; every further one within the window doubles the wait, unless something was stored since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from flts_ray.store import NotFound, Store

WINDOW_S = 600.0
"""A start longer ago says nothing about the next one."""
FREE = 2
"""Starts within the window that cost no wait: the first, and one restart."""
LONGEST_S = 60.0


@dataclass(frozen=True)
class Starts:
    """Wall-clock seconds of the starts within the window, oldest first, and the last failure."""

    at: tuple[float, ...] = ()
    error: str = ""


def starts_key(topic: str, name: str, index: int) -> str:
    """Where the starts of one actor are kept."""
    return f"ingest/{topic}/starts/{name}-{index}.json"


def delay_s(earlier: Sequence[float], now: float) -> float:
    """Seconds to wait before the start at `now`; starts in the future (a clock went back) count."""
    recent = sum(now - start < WINDOW_S for start in earlier)
    # The exponent is bounded: 2.0 to the power of a crowd overflows.
    return 0.0 if recent < FREE else min(LONGEST_S, 2.0 ** min(recent - FREE, 30))


def read_starts(store: Store, key: str) -> Starts:
    """What is remembered; nothing where nothing, or no list of starts, is stored."""
    try:
        raw = json.loads(store.get(key))
        return Starts(tuple(float(at) for at in raw["at"]), str(raw["error"]))
    except (NotFound, ValueError, TypeError, KeyError):
        return Starts()


def note_start(store: Store, key: str, now: float) -> tuple[Starts, float]:
    """Remember a start. Returns the starts with this one, and the seconds to wait."""
    before = read_starts(store, key)
    recent = tuple(at for at in before.at if now - at < WINDOW_S)
    starts = Starts((*recent, now), before.error)
    _write(store, key, starts)
    return starts, delay_s(before.at, now)


def note_failure(store: Store, key: str, error: str) -> None:
    """Remember why the actor ended, for whoever asks while it is away."""
    _write(store, key, Starts(read_starts(store, key).at, error))


def forget(store: Store, key: str) -> None:
    """An actor that stored something, or ended as it was told to, starts afresh the next time."""
    store.delete(key)


def _write(store: Store, key: str, starts: Starts) -> None:
    store.put(key, json.dumps({"at": starts.at, "error": starts.error}).encode())
