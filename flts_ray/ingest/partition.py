"""What a sink knows of one partition.

Design choices: immutable, so that looking at it from another thread is safe; a retry is a value
(how often, since when, when again); what is asked of the store carries a token.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from flts_ray.ingest.held import Held, Limits


@dataclass(frozen=True, slots=True)
class Retry:
    """Failures in a row: `since` the first one, `at` the next try (None: one is under way)."""

    failures: int = 0
    since: float = 0.0
    at: float | None = None

    def failed(self, clock: float, limits: Limits) -> Retry:
        """One more failure; waits double up to a cap."""
        wait = min(limits.retry_cap_s, limits.retry_base_s * 2.0 ** min(self.failures, 30))
        return Retry(self.failures + 1, self.since if self.failures else clock, clock + wait)

    def due(self, clock: float) -> bool:
        return self.at is not None and self.at <= clock

    def again(self) -> Retry:
        return replace(self, at=None)

    def hopeless(self, clock: float, limits: Limits) -> bool:
        return self.failures > 1 and clock - self.since > limits.store_patience_s


@dataclass(frozen=True, slots=True)
class Flight:
    """A segment whose PUT was asked for and is not known to have ended."""

    token: int
    held: tuple[Held, ...]
    retry: Retry = Retry()

    @property
    def begin(self) -> int:
        return self.held[0].begin

    @property
    def end(self) -> int:
        return self.held[-1].end


@dataclass(frozen=True, slots=True)
class Recovery:
    """A search for the end of the chain. `hint`: (end, begin) of a segment that is known."""

    token: int
    hint: tuple[int, int] | None = None
    retry: Retry = Retry()


@dataclass(frozen=True, slots=True)
class Totals:
    """What this sink made durable, and what went wrong. `rows` are good ones."""

    segments: int = 0
    rows: int = 0
    bad_rows: int = 0
    lost: int = 0
    put_failures: int = 0
    conflicts: int = 0

    def __add__(self, other: Totals) -> Totals:
        mine, theirs = astuple(self), astuple(other)
        return Totals(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass(frozen=True, slots=True)
class Partition:
    """`frontier`: where the durable chain ends; `position`: the next offset to read; `last`:
    begin of the chain's last segment; `log_end`: the broker's, as last heard."""

    number: int
    frontier: int | None = None
    position: int | None = None
    last: int | None = None
    committed: int | None = None
    log_end: int = 0
    held: tuple[Held, ...] = ()
    flight: Flight | None = None
    recovery: Recovery | None = None
    stall: Retry | None = None
    waits: str = ""
    """Why what was polled cannot be decoded now; empty unless there is a stall."""
    halted: str = ""
    paused: bool = True
    gap_at: int | None = None
    """Where a gap was met for the first time; met there again, it is the broker's."""
    idle_at: int | None = None
    """The position when the log was last seen empty above it."""
    totals: Totals = Totals()

    @property
    def chain_end(self) -> int:
        """End of what is durable, under way or held; offsets from here to `position` are lost."""
        if self.held:
            return self.held[-1].end
        return self.flight.end if self.flight else self.frontier or 0

    @property
    def held_bytes(self) -> int:
        return sum(item.nbytes for item in self.held)

    @property
    def flight_bytes(self) -> int:
        return sum(item.nbytes for item in self.flight.held) if self.flight else 0

    @property
    def held_rows(self) -> int:
        return sum(item.rows + item.bad_rows for item in self.held)

    @property
    def flight_rows(self) -> int:
        flying = self.flight.held if self.flight else ()
        return sum(item.rows + item.bad_rows for item in flying)

    @property
    def readable(self) -> bool:
        """Whether messages may be fetched as far as this partition alone is concerned."""
        waiting = self.stall is not None and self.stall.at is not None
        return self.position is not None and not self.halted and not waiting

    def stuck(self, clock: float, limits: Limits) -> bool:
        """Whether the next messages cannot be decoded for longer than the patience."""
        return self.stall is not None and self.stall.hopeless(clock, limits)

    @property
    def flushed(self) -> bool:
        return bool(self.halted) or (not self.held and self.flight is None)

    def due(self, clock: float, limits: Limits) -> bool:
        """Whether what is held fills a segment or has waited long enough."""
        if not self.held:
            return False
        old = clock - self.held[0].at >= limits.segment_age_s
        return old or (
            self.held_rows >= limits.segment_rows or self.held_bytes >= limits.segment_bytes
        )

    def can_cut(self) -> bool:
        busy = self.flight is not None or self.recovery is not None
        return bool(self.held) and not busy and not self.halted
