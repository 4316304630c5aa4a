"""Everything that is wrong with one file, said at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from flts_ray.errors import DataError
from flts_ray.sources.columns import is_text

MOST_SHOWN = 20


class Problems:
    """Collects what cannot be read; the first 20 are kept as text, all are counted.

    `place` turns file rows (counted from 0, without header) into words such as "line 38".
    """

    def __init__(self, uri: str, place: Callable[[int], str]) -> None:
        self.count = 0
        self._uri = uri
        self._place = place
        self._shown: list[str] = []

    def add(self, text: str) -> None:
        self.count += 1
        if len(self._shown) < MOST_SHOWN:
            self._shown.append(text)

    def add_rows(
        self,
        column: str,
        values: pa.Array,
        bad: np.ndarray,
        rows: np.ndarray,
        advice: Callable[[str], str],
    ) -> None:
        """One problem for each bad row; bad: bool [rows], rows: file row of each value."""
        for at in np.flatnonzero(bad)[: MOST_SHOWN - len(self._shown)]:
            value = values[int(at)]
            said = shown(value)
            fix = advice(value.as_py() if is_text(value.type) and said != "empty" else said)
            self._shown.append(f"{self._place(int(rows[at]))}, column {column!r}: {said}: {fix}")
        self.count += int(bad.sum())

    def raise_any(self) -> None:
        """Raises DataError if there was a problem."""
        if self.count:
            rest = self.count - len(self._shown)
            more = [f"... and {rest} more"] if rest else []
            raise DataError(
                f"{self._uri}: {self.count} problem(s); correct the file or the `data` section",
                problems=[*self._shown, *more],
            )


def shown(value: pa.Scalar) -> str:
    """A value for a message, cut to a readable length."""
    if not value.is_valid or (is_text(value.type) and not value.as_py().strip()):
        return "empty"
    text = repr(value.as_py()) if is_text(value.type) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
