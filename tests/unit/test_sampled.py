"""What a training looks at of a set with many series."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from flts_ray.config import Config, ModelConfig
from flts_ray.errors import ConfigError
from flts_ray.prepare.run import prepare
from flts_ray.sampled import studied
from flts_ray.tune.progress import StudyView
from flts_ray.tune.space import sample_trials
from tests.raw_files import load_config, write_load


class Notes:
    """A narrator that remembers its steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, title: str, detail: str = "") -> None:
        self.steps.append(f"{title}: {detail}")

    def stage(self, name: str, done: int, total: int) -> None:
        """Bars are nothing to remember."""

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        return nullcontext(lambda view: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_load(tmp_path / "in")
    return tmp_path


def config_of(folder: Path, most: int) -> Config:
    config = load_config(folder)
    tune = config.tune.model_copy(update={"most_series": most})
    return config.model_copy(update={"tune": tune})


def kinds(config: Config) -> set[str]:
    return {plan.kind for plan in sample_trials(config.models, 0)}


def test_of_few_series_all_are_looked_at(folder: Path) -> None:
    config, notes = config_of(folder, 5), Notes()
    same, data = studied(config, prepare(config), notes)
    assert same is config and data.n_series == 5 and notes.steps == []


def test_of_many_series_a_sample_is_looked_at_and_told(folder: Path) -> None:
    config, notes = config_of(folder, 3), Notes()
    assert "prophet" in kinds(config)
    narrower, data = studied(config, prepare(config), notes)
    assert data.n_series == 3
    assert kinds(narrower) == kinds(config) - {"prophet"}
    assert notes.steps == [
        "Sample: trials and judge look at 3 of 5 series, models know all of them afterwards "
        "(tune.most_series); without prophet, which would know these alone"
    ]


def test_networks_of_single_series_are_left_out(folder: Path) -> None:
    config = config_of(folder, 3)
    group = {"group": {"choice": ["global", "per_series"]}}
    gru = ModelConfig.model_validate({"trials": 2, "params": group})
    config = config.model_copy(update={"models": {**config.models, "gru": gru}})
    assert "gru" in kinds(config)
    narrower, _ = studied(config, prepare(config), Notes())
    assert "gru" not in kinds(narrower)


def test_a_baseline_that_knows_the_sample_alone_is_refused(folder: Path) -> None:
    config = config_of(folder, 3)
    gate = config.gate.model_copy(update={"baseline": "prophet"})
    config = config.model_copy(update={"gate": gate})
    with pytest.raises(ConfigError, match=r"gate\.baseline: 'prophet' .* 3 of 5 .*most_series"):
        studied(config, prepare(config), Notes())
