"""Covariates as models meet them: none that should be known is missing, codes mean the same label.

Design choices: a value that was promised for the future is never made up, so whoever asks for a
forecast without it is told which one; labels are compared, not codes, because another prepared
set numbers its labels anew.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.errors import DataError
from flts_ray.panel import UNKNOWN_CATEGORY, Contract, steps_after
from flts_ray.prepare.arrays import SeriesArrays, Windows, runs_of_series


def check_future(data: SeriesArrays) -> None:
    """Raise DataError for a missing known-future value before the test span.

    Names the column, the series, the stamp and the step from the start of the series.
    """
    first = len(data.contract.calendar)
    if data.future.shape[1] == first:
        return
    count, place = 0, None
    for some in runs_of_series(data.offsets):
        lacking = _lacking(data, some, first)
        if lacking.any():
            count += int(lacking.sum())
            row, column = (int(at[0]) for at in np.nonzero(lacking))
            place = place or (int(data.offsets[some.start]) + row, column)
    if place is None:
        return
    row, column = place
    series = int(np.searchsorted(data.offsets, row, side="right")) - 1
    step = row - int(data.offsets[series])
    stamp = steps_after(data.start_us[series], np.asarray(step), data.contract)
    where = f"at {_text(stamp)} (step {step} of its {data.lengths[series]})"
    raise _missing(data.contract, column, data.ids[series], where, count)


def _lacking(data: SeriesArrays, some: slice, first: int) -> np.ndarray:
    """Where known-future values of a run of series are missing: bool [rows, columns]."""
    start, stop = int(data.offsets[some.start]), int(data.offsets[some.stop])
    ends = np.repeat(data.offsets[some] + data.valid_end[some], data.lengths[some])
    lacking = ~np.isfinite(data.future[start:stop, first:])
    return np.asarray(lacking & (np.arange(start, stop) < ends)[:, None])


def check_ahead(windows: Windows) -> None:
    """Raise DataError for a missing known-future value in the horizon of a window.

    Names the column, the series, the stamp and the step of the horizon, from 1.
    """
    first = len(windows.contract.calendar)
    if windows.future.shape[2] == first:
        return
    lacking = ~np.isfinite(windows.future[:, windows.lookback :, first:])
    if not lacking.any():
        return
    row, step, column = (int(at[0]) for at in np.nonzero(lacking))
    stamp = steps_after(windows.origin_us[row], np.asarray(step), windows.contract)
    where = f"at {_text(stamp)} (step {step + 1} of the horizon)"
    raise _missing(windows.contract, column, windows.ids[row], where, int(lacking.sum()))


def recoded(windows: Windows, contract: Contract) -> Windows:
    """The windows with the codes that `contract` gives to their static labels."""
    here = windows.contract
    if here.categories == contract.categories or here.static != contract.static:
        return windows
    static = windows.static.copy()
    for column, name in enumerate(here.static):
        if name in here.labels and name in contract.labels:
            known = [contract.code_of(name, label) for label in here.labels[name]]
            codes = static[:, column].astype(np.int64)
            table = np.asarray([*known, UNKNOWN_CATEGORY], dtype=np.float32)
            static[:, column] = table[np.where(codes < 0, len(known), codes)]
    return replace(windows, contract=contract, static=static)


def _text(stamp_us: np.ndarray) -> str:
    return f"{np.datetime_as_string(stamp_us.astype('datetime64[us]'), 's')}Z"


def _missing(contract: Contract, column: int, series: str, where: str, count: int) -> DataError:
    name = contract.known_future[column]
    more = f", and {count - 1} more are missing" if count > 1 else ""
    return DataError(
        f"known_future.{name}: series {series} has no value {where}{more}; it must be known "
        "beforehand: fill it in, or give the column the role past",
        field=f"known_future.{name}",
    )
