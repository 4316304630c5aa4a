"""A fitted Prophet: curves of every series, corrected by what they have missed of late.

Design choices: forecasts are `prophet_curve.evaluate`, so a process that forecasts needs neither
Prophet nor Stan; quantiles come from what it has missed, not from Prophet's simulation, so they
cost nothing and are calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.bands import width_of
from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.models.calibrate import ResidualQuantiles, check_lookback, known_rows
from flts_ray.models.memory import Memory, stored
from flts_ray.models.prophet_curve import Curves, Seasonality, evaluate
from flts_ray.models.prophet_level import Correction
from flts_ray.models.prophet_regressors import Regressors
from flts_ray.models.support import floored
from flts_ray.models.volatility import Volatility
from flts_ray.panel import steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesStats, Windows
from flts_ray.prepare.covariates import check_ahead


@dataclass(frozen=True)
class FittedProphet:
    spec: ModelSpec
    stats: SeriesStats
    seasonalities: tuple[Seasonality, ...]
    regressors: Regressors
    curves: Curves
    correction: Correction
    volatility: Volatility
    band: ResidualQuantiles
    memory: Memory | None = None

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; only series it was fitted on."""
        mean, quantiles, _ = self._banded(windows)
        return floored(self.spec, windows, mean, quantiles)

    def served(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles and the scale of their bands; see `recent_scores.Ask`."""
        return self._banded(windows)[1:]

    def _banded(self, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, quantiles and the scale of their bands."""
        rows = self.known(windows)
        check_ahead(windows)
        mean = self.point(windows)
        width = width_of(windows.last(self.spec.lookback), self.stats, self.volatility)
        return mean, self.band.apply(mean, width, rows), width

    def known(self, windows: Windows) -> np.ndarray:
        """Row of each window's series. Raises DataError for a series it was not fitted on."""
        rows = known_rows(windows.ids, self.stats)
        if (rows < 0).any():
            name = windows.ids[int(np.argmax(rows < 0))]
            raise DataError(
                f"unique_id: prophet knows only the series it was fitted on, not {name!r}; send "
                "the id of a known series, or train again with this series",
                field="unique_id",
            )
        return rows

    def point(self, windows: Windows) -> np.ndarray:
        """Corrected curve, float64 [n, H]."""
        check_lookback(windows, self.spec.lookback)
        missed, ahead = self.missed(windows.last(self.spec.lookback))
        return ahead + self.correction.apply(missed)

    def missed(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """What the curve missed before each origin, and the curve after it.

        Float64 [n, L - reach] and [n, H]; the first steps of a window serve the regressors alone.
        """
        curve, reach = self.curve(windows), self.regressors.reach
        back = windows.lookback - reach
        return windows.y[:, reach:] - curve[:, :back], curve[:, back:]

    def curve(self, windows: Windows) -> np.ndarray:
        """The uncorrected curve over lookback and horizon: float64 [n, L - reach + H]."""
        steps = np.arange(self.regressors.reach - windows.lookback, windows.horizon)
        wall = to_local_us(
            steps_after(windows.origin_us[:, None], steps, self.spec.contract),
            self.spec.contract.time_zone,
        )
        return evaluate(
            self.curves,
            self.known(windows),
            wall,
            self.regressors.columns(windows.future, self.spec.contract),
            self.seasonalities,
            self.spec.params["seasonality_mode"] == "multiplicative",
        )

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        correction = self.correction
        values: dict[str, Any] = {
            "seasonalities": [[s.name, s.period, s.order] for s in self.seasonalities],
            "regressors": self.regressors.to_json(),
            "level_window": correction.window,
            "phase_cycles": correction.cycles,
        }
        curves = {f"curve_{name}": array for name, array in self.curves.arrays().items()}
        shares = {"level_share": correction.level, "phase_share": correction.phase}
        bands = self.volatility.arrays() | self.band.arrays()
        return values, curves | bands | shares | stored(self.memory)
