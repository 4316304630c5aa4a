"""From what callers saw to tables and verdicts; pure.

Design choices: a ratio is taken within one round, where servers met the same machine minutes
apart, and the median of the rounds counts; so does the median of every other number; errors are
added up, because one of them is one too many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

Key = tuple[str, str, int]
"""Server, loop ("closed" or "open"), clients or requests a second."""


@dataclass(frozen=True)
class Point:
    """One server under one load in one round. Latencies in ms, of answers with status 200;
    cpu_ms: processor time of the whole server for each of these answers."""

    server: str
    loop: str
    load: int
    round: int
    per_s: float
    p50: float
    p95: float
    p99: float
    errors: Mapping[str, int]
    cpu_ms: float

    @property
    def key(self) -> Key:
        return self.server, self.loop, self.load


@dataclass(frozen=True)
class Bar:
    """A goal at a number of clients: of the ratio to another server, or of our own latency."""

    what: str
    clients: int
    limit: float
    server: str | None = None

    def met(self, value: float) -> bool:
        return value >= self.limit if self.server else value < self.limit


BARS = (
    Bar("requests/s, ours / BentoML", 32, 2.5, "bentoml"),
    Bar("requests/s, ours / LitServe", 32, 3.0, "litserve"),
    Bar("requests/s, ours / FastAPI by hand", 32, 0.9, "fastapi_onnx"),
    Bar("requests/s, ours / empty handler", 32, 0.6, "empty"),
    Bar("p99 in ms, ours", 8, 25.0),
)


@dataclass(frozen=True)
class Judged:
    """A bar, its value (None where a server has none), each round's, and whether it is met."""

    bar: Bar
    value: float | None
    rounds: list[float] = field(default_factory=list)
    met: bool = False


def point(
    place: tuple[str, str, int, int],
    latency_s: Sequence[float],
    errors: Mapping[str, int],
    seconds: float,
    cpu_s: float,
) -> Point:
    """place: server, loop, load and round; seconds: length of the count; cpu_s: of the server
    in that time."""
    count = len(latency_s)
    p50, p95, p99 = (
        (np.percentile(latency_s, (50, 95, 99)) * 1e3).tolist() if count else [float("nan")] * 3
    )
    cpu_ms = cpu_s / count * 1e3 if count else float("nan")
    return Point(*place, count / seconds, p50, p95, p99, dict(errors), cpu_ms)


def over_rounds(points: Iterable[Point]) -> dict[Key, Point]:
    """One point for each server and load: medians, and the sum of the errors; round 0."""
    grouped: dict[Key, list[Point]] = defaultdict(list)
    for one in points:
        grouped[one.key].append(one)
    return {key: _middle(every) for key, every in grouped.items()}


def _middle(every: Sequence[Point]) -> Point:
    errors: Counter[str] = Counter()
    for one in every:
        errors.update(one.errors)
    numbers = {
        name: _median([getattr(one, name) for one in every])
        for name in ("per_s", "p50", "p95", "p99", "cpu_ms")
    }
    server, loop, load = every[0].key
    return Point(server, loop, load, 0, errors=dict(errors), **numbers)


def _median(values: Iterable[float]) -> float:
    """Of those that are numbers."""
    known = [value for value in values if not np.isnan(value)]
    return median(known) if known else float("nan")


def judge(points: Sequence[Point], bars: Sequence[Bar] = BARS) -> list[Judged]:
    """Every bar against what was measured."""
    by_round = {(one.key, one.round): one for one in points}
    found = []
    for bar in bars:
        values = []
        for number in sorted({one.round for one in points}):
            ours = by_round.get((("ours", "closed", bar.clients), number))
            theirs = by_round.get(((bar.server or "ours", "closed", bar.clients), number))
            if ours is None or theirs is None or not ours.per_s or not theirs.per_s:
                continue
            values.append(ours.per_s / theirs.per_s if bar.server else ours.p99)
        value = median(values) if values else None
        found.append(Judged(bar, value, values, value is not None and bar.met(value)))
    return found


def as_json(points: Sequence[Point], judged: Sequence[Judged]) -> dict[str, Any]:
    """Rounded; numbers that are none are null."""
    return {
        "bars": [
            {
                "what": one.bar.what, "clients": one.bar.clients, "limit": one.bar.limit,
                "value": _rounded(one.value), "rounds": [_rounded(v) for v in one.rounds],
                "met": one.met,
            }
            for one in judged
        ],
        "points": [{n: _rounded(v) for n, v in asdict(one).items()} for one in points],
    }  # fmt: skip


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 3)
    return value


def markdown(
    points: Sequence[Point],
    judged: Sequence[Judged],
    titles: Mapping[str, str],
    memory: Mapping[str, Mapping[str, int]],
    failed: Mapping[str, str],
) -> str:
    """All tables. titles: servers in their order; memory: MB by server."""
    middle = over_rounds(points)
    parts = [_bars_table(judged)]
    for loop, title in (("closed", "{} clients, closed loop"), ("open", "{} requests/s arrive")):
        for load in sorted({one.load for one in middle.values() if one.loop == loop}):
            rows = {name: middle.get((name, loop, load)) for name in titles}
            parts.append(f"### {title.format(load)}\n\n{_load_table(rows, titles)}")
    parts.append(f"### Memory\n\n{_memory_table(titles, memory)}")
    if failed:
        lines = [f"- {titles[name]}: {why}" for name, why in failed.items()]
        parts.append("### Not measured\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def _bars_table(judged: Sequence[Judged]) -> str:
    rows = []
    for one in judged:
        bar = one.bar
        wanted = f"at least {bar.limit:g}" if bar.server else f"below {bar.limit:g}"
        value = "not measured" if one.value is None else f"{one.value:.2f}"
        spread = f"{min(one.rounds):.2f} to {max(one.rounds):.2f}" if one.rounds else ""
        rows.append([bar.what, str(bar.clients), wanted, value, spread, "yes" if one.met else "no"])
    return _table(("goal", "clients", "wanted", "median", "rounds", "met"), rows)


def _load_table(rows: Mapping[str, Point | None], titles: Mapping[str, str]) -> str:
    head = ("server", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "CPU ms/request")
    lines = []
    for name, one in rows.items():
        if one is None:
            continue
        errors = ", ".join(f"{count} {what}" for what, count in sorted(one.errors.items())) or "0"
        numbers = [_shown(value) for value in (one.p50, one.p95, one.p99)]
        cpu = "" if np.isnan(one.cpu_ms) else f"{one.cpu_ms:.2f}"
        lines.append([titles[name], f"{one.per_s:,.0f}", *numbers, errors, cpu])
    return _table(head, lines)


def _shown(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


def _memory_table(titles: Mapping[str, str], memory: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        [titles[name], *(f"{one[size]:,}" for size in ("resident", "proportional", "processes"))]
        for name, one in memory.items()
    ]
    head = ("server", "resident MB, sum", "the same, shared pages once", "processes")
    return _table(head, rows)
