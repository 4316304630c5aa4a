"""The shape of a recurrent network, for those who train it and those who only run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the names and shapes of the weights.

    `lookback` is a multiple of `segment`; `lags` is the number of last steps the linear map
    reads (0: no map); `seen` counts columns of the window beside the target, `ahead` columns of
    the horizon, `static` columns of the series, of which `categories` says how many labels each
    has (0: it holds numbers; nothing: all do); `marked` is 1 where the network is told which
    steps of the window were observed, else 0.
    """

    cell: str
    lookback: int
    segment: int
    horizon: int
    levels: tuple[float, ...]
    marked: int
    seen: int
    ahead: int
    static: int
    hidden: int
    layers: int
    dropout: float
    lags: int
    categories: tuple[int, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Shape:
        """From the values of a fitted network's state."""
        named: dict[str, Any] = {}
        for name in cls.__dataclass_fields__.keys() & values.keys():
            value = values[name]
            named[name] = tuple(value) if isinstance(value, list) else value
        return cls(**named)

    @property
    def numbers(self) -> list[int]:
        """Positions of the static columns that hold numbers."""
        counts = self.categories or (0,) * self.static
        return [column for column, labels in enumerate(counts) if not labels]

    @property
    def tokens(self) -> int:
        """Segments that cover the horizon."""
        return -(-self.horizon // self.segment)
