"""What running ingestion shows: one line that moves in a terminal, else an event now and then.

Design choices: the counts of a restarted worker begin again at nothing, so totals are added up
from what grew; lag is the last one told of each partition, because a partition does not catch up
by its actor's restart; the rate is over the last few looks, so that it neither jumps nor lies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import structlog
from rich.console import Console
from rich.live import Live
from rich.text import Text

COUNTS = ("messages", "rows", "bad_rows", "bytes", "segments", "lost")
RATE_OVER_S = 10.0
PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class IngestView:
    """Ingestion at one moment. `lag` in messages, None until a worker knows; rates a second."""

    elapsed_s: float
    totals: Mapping[str, int]
    rows_s: float
    bytes_s: float
    lag: int | None
    states: tuple[str, ...]
    error: str = ""

    @property
    def done(self) -> bool:
        return all(state == "done" for state in self.states)

    @property
    def caught_up(self) -> bool:
        return self.lag == 0


class Tally:
    """Adds up what the actors say, restarts or not. Give it every status, with the time."""

    def __init__(self) -> None:
        self._totals = dict.fromkeys(COUNTS, 0)
        self._last: dict[tuple[int, Any], Mapping[str, int]] = {}
        self._lags: dict[str, int] = {}
        self._past: deque[tuple[float, int, int]] = deque()
        self._begin: float | None = None

    def add(self, actors: Sequence[Mapping[str, Any]], now: float) -> IngestView:
        """`actors`: an `ActorStatus` each, as JSON data; `now` in seconds of a steady clock."""
        self._begin = now if self._begin is None else self._begin
        for actor in actors:
            if actor["worker"] is not None:
                self._take(actor["index"], actor["pid"], actor["worker"])
        rows_s, bytes_s = self._rates(now)
        return IngestView(
            elapsed_s=now - self._begin,
            totals=dict(self._totals),
            rows_s=rows_s,
            bytes_s=bytes_s,
            lag=sum(self._lags.values()) if self._lags else None,
            states=tuple(actor["state"] for actor in actors),
            error=next((actor["error"] for actor in actors if actor["error"]), ""),
        )

    def _take(self, index: int, pid: int, worker: Mapping[str, Any]) -> None:
        key = (index, (pid, worker["started_at"]))
        before, now = self._last.get(key, {}), worker["totals"]
        for name in COUNTS:
            self._totals[name] += max(0, now[name] - before.get(name, 0))
        self._last[key] = now
        for partition, one in worker["partitions"].items():
            if one["lag"] is not None:
                self._lags[partition] = one["lag"]

    def _rates(self, now: float) -> tuple[float, float]:
        self._past.append((now, self._totals["rows"], self._totals["bytes"]))
        while len(self._past) > 2 and now - self._past[1][0] >= RATE_OVER_S:
            self._past.popleft()
        then, rows, size = self._past[0]
        if now == then:
            return 0.0, 0.0
        return (
            (self._totals["rows"] - rows) / (now - then),
            (self._totals["bytes"] - size) / (now - then),
        )


class IngestProgress:
    """Shows views. A context manager that cleans up the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._told = -PLAIN_EVERY_S

    def __enter__(self) -> IngestProgress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, view: IngestView) -> None:
        """Show `view`; in plain mode one event every few seconds, and one at the end."""
        if self._live is not None:
            self._live.update(line(view))
        elif view.elapsed_s - self._told >= PLAIN_EVERY_S or view.done:
            self._told = view.elapsed_s
            structlog.get_logger().info(
                "ingest_progress",
                **view.totals,
                rows_s=round(view.rows_s),
                bytes_s=round(view.bytes_s),
                lag=view.lag,
                states=view.states,
                error=view.error,
            )


def line(view: IngestView) -> Text:
    """One view as one line of a terminal, the problem, if there is one, on a second."""
    totals = view.totals
    shown = Text("Running   ", style="bold cyan")
    facts = [
        f"{totals['rows']:,} rows",
        f"{view.rows_s:,.0f} rows/s",
        f"{size_text(view.bytes_s)}/s",
        f"lag {'?' if view.lag is None else f'{view.lag:,}'}",
        f"{totals['segments']:,} segments",
    ]
    if totals["bad_rows"]:
        facts.append(f"{totals['bad_rows']:,} dead letters")
    shown.append(" · ".join(facts), style="not bold default")
    busy = [state for state in view.states if state != "running"]
    if busy:
        shown.append(f" · {states_text(view.states)}", style="not bold yellow")
    if view.error:
        shown.append(f"\n          {view.error.splitlines()[0]}", style="not bold red")
    return shown


def states_text(states: Sequence[str]) -> str:
    """Actors by what they do: `2 running, 1 waiting`."""
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def size_text(size: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
