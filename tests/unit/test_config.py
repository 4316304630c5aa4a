"""Configuration: every problem in one error, suggestions, overrides, environment addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, TuneConfig, load_config, parse_config
from flts_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL: dict[str, Any] = {"name": "x", "data": {"path": "a.csv"}}


def problems(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


def test_every_problem_is_reported_at_once_with_its_field() -> None:
    raw = MINIMAL | {"task": {"horizon": 0}, "tune": {"budget_s": "soon"}, "nmae": 1}
    text = problems(raw)
    assert "task.horizon" in text
    assert "tune.budget_s" in text and "'soon'" in text
    assert "3 problem(s)" in text


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ({"taks": {}}, "did you mean task"),
        ({"data": {"path": "a", "tme": "ds"}}, "data.tme: unknown key; did you mean time?"),
        ({"models": {"ar": {"trails": 3}}}, "did you mean trials"),
        ({"data": {"path": "a", "time_zone": "Europe/Berln"}}, "did you mean Europe/Berlin"),
        ({"data": {"path": "a", "frequency": "1x"}}, "30min"),
        ({"data": {"path": "a", "layout": "wide"}}, "targets"),
        ({"data": {"path": "a", "id_from_path": "("}}, "regular expression"),
        ({"data": {"path": "a", "covariates": {"y": "past"}}}, "repeat another column"),
        ({"task": {"quantiles": [0.9, 0.1]}}, "rise strictly"),
        ({"task": {"quantiles": [0.5]}}, "80 %"),
        ({"serve": {"min_replicas": 3}}, "below min_replicas 3"),
        ({"models": {"gru": {}}}, "seasonal_naive"),
        ({"name": "Not Good"}, "name"),
    ],
)
def test_a_mistake_names_the_field_and_the_fix(raw: dict[str, Any], hint: str) -> None:
    assert hint in problems(MINIMAL | raw)


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {path: a.csv}\n")
    config = load_config(path, ["task.horizon=48", "models.gru={trials: 0}", "models.ar={}",
                                "models.seasonal_naive={}"])  # fmt: skip
    assert config.task.horizon == 48
    assert config.models["gru"].trials == 0


@pytest.mark.parametrize("override", ["horizon", "=3", "name.x=1", "task.horizon=[1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndata: {path: a.csv}\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, [override])


@pytest.mark.parametrize("text", ["- 1", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flts init"):
        load_config(tmp_path / "no.yaml")


def test_addresses_take_names_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = MINIMAL | {"data": {"path": "${LOADS:-/tmp/default}/a.csv"}, "root": "${STORE}"}
    monkeypatch.delenv("LOADS", raising=False)
    monkeypatch.delenv("STORE", raising=False)
    assert "STORE is not set" in problems(raw)
    monkeypatch.setenv("STORE", "s3://bucket/x")
    assert parse_config(raw).data.path == "/tmp/default/a.csv"
    assert parse_config(raw).root == "s3://bucket/x"


def test_a_configuration_survives_its_own_dump() -> None:
    gru = {"trials": 2, "params": {"lr": {"loguniform": [0.001, 0.1]}, "hidden": {"choice": [8]}}}
    raw = MINIMAL | {"models": {"seasonal_naive": {}, "ar": {}, "gru": gru}}
    config = parse_config(raw)
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.digest() == config.digest()


def test_the_digest_depends_on_values_and_not_on_their_order() -> None:
    one = parse_config({"name": "x", "data": {"path": "a", "time": "t"}})
    two = parse_config({"data": {"time": "t", "path": "a"}, "name": "x"})
    other = parse_config({"data": {"time": "u", "path": "a"}, "name": "x"})
    assert one.digest() == two.digest() != other.digest()
    assert one.digest("task") == other.digest("task")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "cpu"),
        ({"gpus_per_trial": 0.5}, "auto"),
        ({"device": "cuda"}, "cuda"),
        ({"device": "cpu", "gpus_per_trial": 1}, "cpu"),
    ],
)
def test_networks_use_a_gpu_that_was_given_or_named(
    settings: dict[str, object], where: str
) -> None:
    assert TuneConfig.model_validate(settings).where == where
