"""What a trained network reads of windows, and forecasts in the units of the input; plain arrays.

Design choices: written once for the network as it was trained and for its export, so that both
read the same bits and are calibrated alike; windows are normalised in float64, because a small
cycle on a large level is lost in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flts_ray.models.base import ModelSpec, check_windows
from flts_ray.models.calibrate import apply_shift
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.relevel import relevelled
from flts_ray.prepare.arrays import Windows
from flts_ray.prepare.covariates import recoded

SCALE_FLOOR = 0.1
"""Least scale of a window in units of the scale of its series."""
UNSEEN_FLOOR = 1e-3
"""The same for a series never seen before, in units of the level of the window."""
TINY = 1e-12


class Readings(NamedTuple):
    """Inputs of the network, float32, everything scaled; n windows, lookback L, horizon H.

    z, observed: [n, L]; seen: [n, L, columns]; ahead: [n, H, columns]; static: [n, S].
    """

    z: np.ndarray
    observed: np.ndarray
    seen: np.ndarray
    ahead: np.ndarray
    static: np.ndarray


class WindowUnits(NamedTuple):
    """The map of each window between its units and the network's: float64 [n, 1] each."""

    centre: np.ndarray
    scale: np.ndarray


class Prediction(NamedTuple):
    """Mean [n, H], quantiles [n, H, Q] and window scale [n], float64, in the input's units."""

    mean: np.ndarray
    quantiles: np.ndarray
    scale: np.ndarray


def readings_of(
    windows: Windows, scaling: ColumnScaling, centre: str
) -> tuple[Readings, WindowUnits]:
    """Inputs of the network and the units of each window."""
    inputs, units = inputs_of(windows, scaling, centre, Readings._fields)
    return Readings(**inputs), units


def inputs_of(
    windows: Windows, scaling: ColumnScaling, centre: str, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], WindowUnits]:
    """Some of the fields of `Readings` and the units of each window.

    Scaling a covariate that a network does not read costs as much as a small network.
    """
    y = np.asarray(windows.y, np.float64)
    units = window_units(y, np.asarray(windows.scale, np.float64)[:, None], centre)
    lookback = windows.lookback
    make: dict[str, Callable[[], np.ndarray]] = {
        "z": lambda: ((y - units.centre) / units.scale).astype(np.float32),
        "observed": lambda: windows.observed.astype(np.float32),
        "seen": lambda: scaling.seen(windows.past, windows.future[:, :lookback]),
        "ahead": lambda: scaling.ahead(windows.future[:, lookback:]),
        "static": lambda: scaling.static(windows.static),
    }
    return {name: make[name]() for name in names}, units


def window_units(y: np.ndarray, series_scale: np.ndarray, centre: str) -> WindowUnits:
    """Centre and scale of each window, as `recurrent_net.window_scale` has them in training.

    y: [n, L]; series_scale: [n, 1] in the units of y, NaN for a series never seen before;
    centre: "last" value or "mean" of the window.
    """
    mean = y.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(y - mean).mean(axis=-1, keepdims=True))
    own = np.where(np.isnan(series_scale), UNSEEN_FLOOR * np.abs(mean), SCALE_FLOOR * series_scale)
    middle = y[:, -1:] if centre == "last" else mean
    return WindowUnits(middle, np.maximum(np.maximum(spread, own), TINY))


def windows_for(spec: ModelSpec, windows: Windows) -> Windows:
    """Windows of the model's lookback, labels coded as it knows them.

    Raises DataError for a wrong lookback or horizon and for what should be known of it.
    """
    check_windows(spec, windows)
    return recoded(relevelled(windows.last(spec.lookback)), spec.contract)


def calibrated(found: Prediction, shift: np.ndarray) -> Prediction:
    """With quantiles moved by shift, [H, Q] in units of the window scale."""
    moved = apply_shift(found.quantiles, shift.astype(np.float64), found.scale)
    return found._replace(quantiles=moved)


def denormalised(mean: np.ndarray, quantiles: np.ndarray, units: WindowUnits) -> Prediction:
    """Forecasts [n, H] and [n, H, Q] of the network in the units of the input."""
    centre, scale = units
    return Prediction(
        mean.astype(np.float64) * scale + centre,
        quantiles.astype(np.float64) * scale[..., None] + centre[..., None],
        scale[:, 0],
    )
