"""Paths of the series of a bulk request, for errors that name one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload


class Fields(Sequence[str]):
    """Paths of a run of series, made when an error needs one."""

    def __init__(self, begin: int, count: int) -> None:
        self._series = range(begin, begin + count)

    def __len__(self) -> int:
        return len(self._series)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [f"series[{i}]." for i in self._series[at]]
        return f"series[{self._series[at]}]."
