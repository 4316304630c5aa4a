"""Bands that are kept up to date while nothing else of a model is learned.

Design choices: the same scores and the same steps as in an update of the whole model, so a service
whose bands follow every day forecasts what a backtest that lets them follow says; what is learned
is what the windows missed, so a model of any kind can follow, at the price of its forecasts of the
new windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from flts_ray.models.base import Fitted
from flts_ray.models.news import Learned, followed_bands, news_of
from flts_ray.models.recent_scores import Ask, moved
from flts_ray.prepare.arrays import SeriesArrays

Model = TypeVar("Model", bound=Fitted)
Banded = Callable[[Model, Learned], Model]
"""A model with the bands, and the memory, that it has learned."""


def followed(
    fitted: Model, data: SeriesArrays, ask: Ask, banded: Banded[Model], *, own: bool = False
) -> Model:
    """The model with bands that know the rows between what it has seen and the test span.

    Series that it does not know stay unknown. own: series have widths of their own. Raises
    DataError as `Updater.update` does.
    """
    news = news_of(fitted, data, only_known=True, bands=True)
    return fitted if news is None else banded(fitted, followed_bands(fitted, news, ask, own=own))


def with_bands(fitted: Any, found: Learned) -> Any:
    """A model of a mean, a `volatility` and a `band` around it, with the bands it has learned."""
    return replace(
        fitted,
        memory=found.memory,
        band=moved(fitted.band, found.step.by),
        volatility=fitted.volatility.louder(found.step.louder),
    )
