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
from flts_ray.prepare.arrays import SeriesArrays, Windows


def check_future(data: SeriesArrays) -> None:
    """Raise DataError for a missing known-future value before the test span.

    Names the column, the series, the stamp and the step from the start of the series.
    """
    first = len(data.contract.calendar)
    if data.future.shape[1] == first:
        return
    lacking = ~np.isfinite(data.future[:, first:])
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    lacking &= (position < np.repeat(data.valid_end, data.lengths))[:, None]
    if not lacking.any():
        return
    row, column = (int(at[0]) for at in np.nonzero(lacking))
    series = int(np.searchsorted(data.offsets, row, side="right")) - 1
    step = int(position[row])
    stamp = steps_after(data.start_us[series], np.asarray(step), data.contract)
    where = f"at {_text(stamp)} (step {step} of its {data.lengths[series]})"
    raise _missing(data.contract, column, data.ids[series], where, int(lacking.sum()))


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
