"""CPU seconds of a process, by what they were spent on."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


def cpu_seconds() -> float:
    """User and system time of this process and its ended children."""
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Meter:
    """CPU seconds by what they were spent on. `budget_s` is what one fit may use."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.spent: dict[str, float] = {}
        self.notes: list[str] = []
        self.cut_off = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before = cpu_seconds()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + cpu_seconds() - before
