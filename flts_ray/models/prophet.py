"""Prophet, one fit a series, many series side by side.

Design choices: fitting is `prophet_fit.py` and forecasting `prophet_fitted.py`; Prophet looks at
the clock and not at the last values, so its forecast is corrected by what it has missed of late
(`prophet_level.py`); that and the covariates (`prophet_regressors.py`) the validation span chooses
(`prophet_choice.py`); the bands are `prophet_bands.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flts_ray.errors import ConfigError
from flts_ray.models.base import (
    Compute,
    Fitted,
    ModelSpec,
    Progress,
    Task,
    check_same_set,
)
from flts_ray.models.base import resolve_params as resolve
from flts_ray.models.calibrate import ResidualQuantiles
from flts_ray.models.follow import followed, with_bands
from flts_ray.models.memory import Memory, split_memory
from flts_ray.models.news import news_of
from flts_ray.models.prophet_bands import calibrated
from flts_ray.models.prophet_choice import Judged, chosen_regressors, corrected, uncorrected
from flts_ray.models.prophet_curve import Curves, Seasonality
from flts_ray.models.prophet_fit import fit_all, seasonalities_for, stack
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.prophet_level import Correction
from flts_ray.models.prophet_regressors import SETS, Regressors, regressors_of
from flts_ray.models.prophet_update import updated
from flts_ray.models.volatility import Volatility
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats
from flts_ray.prepare.covariates import check_future

CHOICES = {
    "growth": ("linear", "flat"),
    "seasonality_mode": ("additive", "multiplicative"),
    "solver": ("map", "stan"),
    "regressors": ("auto", *SETS),
}


class ProphetPerSeries:
    kind = "prophet"
    iterative = False
    defaults: Mapping[str, Any] = {
        "changepoint_prior_scale": 0.05,
        "seasonality_prior_scale": 10.0,
        "seasonality_mode": "additive",
        "n_changepoints": 25,
        "max_history": 20_000,
        "level_windows": None,
        "growth": "linear",
        "solver": "map",
        "regressors": "auto",
    }

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        chosen = checked(resolve(self, params))
        check_future(data)
        seasonalities = seasonalities_for(data.contract, int(data.train_end.max(initial=0)))
        if chosen["regressors"] == "auto":
            word, told = chosen_regressors(data, task, chosen, seasonalities, compute)
            chosen = {**chosen, "regressors": word}
        else:
            told = regressors_of(data, chosen["regressors"])
        rows, failed = fit_all(data, data.train_end, seasonalities, told, chosen, compute)
        plain = uncorrected(data, task, chosen, seasonalities, told, stack(rows))
        judged = Judged.of(data, task, chosen, told.reach)
        banded, loss = calibrated(corrected(plain, judged)[0], data, chosen, compute)
        fitted = replace(banded, memory=Memory.of(data, task))
        yield Progress(1, {"valid_loss": loss, "failed_series": float(len(failed))}, fitted)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedProphet:
        """Curves of both spans with the same cycles and covariates; see `Forecaster.refit`.

        A series that cannot be fitted now keeps the curve it had.
        """
        assert isinstance(fitted, FittedProphet)
        check_same_set(fitted, data)
        params = {**self.defaults, **fitted.spec.params}
        rows, failed = fit_all(
            data, data.valid_end, fitted.seasonalities, fitted.regressors, params, compute
        )
        for series in failed:
            rows[series] = {k: v[series] for k, v in fitted.curves.arrays().items()}
        return replace(fitted, curves=stack(rows))

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedProphet:
        """Correction and bands follow the new windows, curves stay; see `Updater.update`.

        A series that has no curve is left out: only a fit can give it one.
        """
        assert isinstance(fitted, FittedProphet)
        news = news_of(fitted, data, only_known=True)
        return fitted if news is None else updated(fitted, news, bands=compute.bands)

    def follow(self, fitted: Fitted, data: SeriesArrays) -> FittedProphet:
        """See `Follower.follow`."""
        assert isinstance(fitted, FittedProphet)
        return followed(fitted, data, fitted.served, with_bands, own=True)

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        arrays, memory = split_memory(arrays, stats, spec.task)
        told = values.get("regressors")
        curves = {k[6:]: v for k, v in arrays.items() if k.startswith("curve_")}
        return FittedProphet(
            spec,
            stats,
            tuple(Seasonality(*raw) for raw in values["seasonalities"]),
            # A model stored without its covariates is linear in all of them.
            Regressors.from_json(told) if told else Regressors.linear(spec.contract),
            Curves(**curves),
            Correction(
                int(values["level_window"]),
                int(values["phase_cycles"]),
                spec.contract.season,
                arrays["level_share"],
                arrays["phase_share"],
            ),
            Volatility.from_arrays(arrays),
            ResidualQuantiles.from_arrays(arrays),
            memory,
        )


def checked(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters. Raises ConfigError for a word that is none of its choices."""
    for name, words in CHOICES.items():
        if params[name] not in words:
            raise ConfigError(
                f"models.prophet.params.{name}: {params[name]!r}; choose {' or '.join(words)}"
            )
    return params
