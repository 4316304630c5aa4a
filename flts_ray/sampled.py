"""What a training looks at of a set: all of it, or of very many series a sample.

Design choices: settings, weights and the gate's verdict need tens of thousands of series and no
more, so memory stays that of a sample however many there are; which models are left out is told,
because a kind that fits every series by itself would know the sample alone.
"""

from __future__ import annotations

from flts_ray.config import Config
from flts_ray.errors import ConfigError
from flts_ray.models.introduce import takes_any
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.loading import PreparedSet
from flts_ray.services import Narrator
from flts_ray.tune.space import sample_kind


def studied(
    config: Config, prepared: PreparedSet, narrator: Narrator
) -> tuple[Config, SeriesArrays]:
    """The series to look at, and the configuration without trials that cannot do with a sample.

    Raises ConfigError if the gate's baseline is one of those.
    """
    data, total = prepared.sample(config.tune.most_series), prepared.manifest.series
    if data.n_series == total:
        return config, data
    alone = [
        kind
        for kind, model in config.models.items()
        if not all(takes_any(kind, p.params) for p in sample_kind(kind, model, config.tune.seed))
    ]
    if config.gate.baseline in alone:
        raise ConfigError(
            f"gate.baseline: {config.gate.baseline!r} fits every series by itself, and "
            f"{data.n_series:,} of {total:,} are looked at; take seasonal_naive or ar, or raise "
            "tune.most_series"
        )
    told = f"; without {', '.join(alone)}, which would know these alone" if alone else ""
    narrator.step(
        "Sample",
        f"trials and judge look at {data.n_series:,} of {total:,} series, models know all of "
        f"them afterwards (tune.most_series){told}",
    )
    left = {
        kind: model.model_copy(update={"trials": 0}) if kind in alone else model
        for kind, model in config.models.items()
    }
    return config.model_copy(update={"models": left}), data
