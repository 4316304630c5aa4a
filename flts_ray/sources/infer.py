"""The step of the grid, from the stamps.

Design choices: every series has one vote, its most common step, so that one long or dense series
does not decide for all; the winner must explain the other differences as gaps, because a wrong
step would quietly turn most of a series into missing values.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.errors import ConfigError, DataError
from flts_ray.panel import US_PER_DAY, Frequency

_FIX = "set data.frequency, for example 30min, 1h or 1D"
_MOST_VOTES = 0.5
_WHOLE_STEPS = 0.8
_CALENDAR = {"months": (28, 31), "quarters": (90, 92), "years": (365, 366)}
"""Shortest and longest, in days."""


def infer_frequency(ids: pa.Array | pa.ChunkedArray | np.ndarray, ds_us: np.ndarray) -> Frequency:
    """The most common over series of each series' most common step between different stamps.

    ids: series of each row, any order; ds_us: int64 microseconds [rows]. For daily and longer
    steps of a zone with daylight saving pass wall-clock times (`to_local_us`), in which a day
    always has 24 hours. Raises DataError that asks for `data.frequency` if no series has two
    stamps, if less than half of the series agree, or if under 80 % of their differences are whole
    steps.
    """
    series, steps = _positive_steps(_codes(ids), np.asarray(ds_us, np.int64))
    if not steps.size:
        raise DataError(
            f"the frequency cannot be inferred: no series has two different stamps; {_FIX}",
            field="data.frequency",
        )
    voters, votes = _votes(series, steps)
    choices, counts = np.unique(votes, return_counts=True)
    winner = int(choices[counts.argmax()])
    whole = (steps[np.isin(series, voters[votes == winner])] % winner == 0).mean()
    _check_calendar(steps)
    if counts.max() < _MOST_VOTES * votes.size or whole < _WHOLE_STEPS:
        seen = ", ".join(_spoken(int(choices[i])) for i in np.argsort(-counts, kind="stable")[:5])
        middle = _spoken(int(np.median(steps)))
        raise DataError(
            f"the frequency cannot be inferred: the steps between stamps differ too much (most "
            f"common: {seen}; {whole:.0%} are whole multiples of {_spoken(winner)}; the middle "
            f"one is {middle}); {_FIX}",
            field="data.frequency",
        )
    try:
        return Frequency.of_step(winner)
    except ConfigError as error:
        raise DataError(
            f"the frequency cannot be inferred: {error}; {_FIX}", field="data.frequency"
        ) from None


def _check_calendar(steps: np.ndarray) -> None:
    """Raise DataError for steps of a calendar that are not all equally long."""
    for name, (low, high) in _CALENDAR.items():
        within = (steps >= low * US_PER_DAY) & (steps <= high * US_PER_DAY)
        if within.mean() >= _WHOLE_STEPS and np.unique(steps[within]).size > 1:
            raise DataError(
                f"the stamps are calendar {name}, which are not equally long, and a frequency is "
                "a fixed step; give values of days or weeks, with data.frequency 1D or 1W",
                field="data.frequency",
            )


def _codes(ids: pa.Array | pa.ChunkedArray | np.ndarray) -> np.ndarray:
    column = pa.array(ids) if isinstance(ids, np.ndarray) else ids
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _positive_steps(codes: np.ndarray, ds_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Series code and length of each positive difference of neighbours in time."""
    order = np.lexsort((ds_us, codes))
    codes, ds_us = codes[order], ds_us[order]
    steps = np.diff(ds_us)
    keep = (np.diff(codes) == 0) & (steps > 0)
    return codes[1:][keep], steps[keep]


def _votes(series: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Series codes, and the most common step of each (the shorter of two)."""
    order = np.lexsort((steps, series))
    series, steps = series[order], steps[order]
    new = np.append(True, (np.diff(series) != 0) | (np.diff(steps) != 0))
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, steps.size))
    series, steps = series[starts], steps[starts]
    best = np.lexsort((steps, -counts, series))
    first = np.append(True, np.diff(series[best]) != 0)
    return series[best][first], steps[best][first]


def _spoken(step_us: int) -> str:
    try:
        return Frequency.of_step(step_us).text
    except ConfigError:
        return f"{step_us / 1e6:g} s"
