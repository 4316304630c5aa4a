from __future__ import annotations

from pathlib import Path

import pytest

from flts_ray.config import parse_config
from flts_ray.errors import ConfigError
from flts_ray.tune.outcome import study_id

BASE = {"name": "load", "data": {"path": "load.csv"}}


def test_a_blend_is_made_unless_it_is_switched_off() -> None:
    assert parse_config(BASE).blend.enabled
    assert not parse_config({**BASE, "blend": {"enabled": False}}).blend.enabled


def test_a_blend_of_one_is_none() -> None:
    with pytest.raises(ConfigError, match=r"blend\.max_members"):
        parse_config({**BASE, "blend": {"max_members": 1}})
    with pytest.raises(
        ConfigError, match=r"blend\.per_serie: unknown key; did you mean per_series"
    ):
        parse_config({**BASE, "blend": {"per_serie": True}})


def test_another_blend_runs_no_trial_again(tmp_path: Path) -> None:
    other = {**BASE, "blend": {"enabled": False, "max_members": 2}}
    assert study_id(parse_config(BASE), "set") == study_id(parse_config(other), "set")
