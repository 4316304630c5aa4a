"""The hash names what decides the rows; the manifest survives its own file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.panel import Frequency
from flts_ray.prepare.manifest import (
    PREPARATION_VERSION,
    Manifest,
    describe_inputs,
    hashed_config,
    make_contract,
    prepared_hash,
    set_folder,
)


@dataclass(frozen=True)
class File:
    name: str = "load.csv"
    size: int = 10
    fingerprint: str = "aa"
    is_test: bool = False
    uri: str = "/here/load.csv"


def config(**sections: Any) -> Config:
    data = {"path": "/here/load.csv", **sections.pop("data", {})}
    return parse_config({"name": "load", "data": data, **sections})


def name_of(config: Config, files: tuple[File, ...] = (File(),), freq: str = "1h") -> str:
    contract = make_contract(config, Frequency(freq))
    return prepared_hash(hashed_config(config, contract), describe_inputs(files))


@pytest.mark.parametrize(
    "other",
    [
        {"prepare": {"max_gap": 2}},
        {"prepare": {"salt": "x"}},
        {"split": {"test": 0.2}},
        {"task": {"horizon": 7}},
        {"task": {"season": 7}},
        {"data": {"time_zone": "Europe/Berlin"}},
        {"data": {"covariates": {"t": "past"}}},
    ],
)
def test_what_decides_the_rows_changes_the_hash(other: dict[str, Any]) -> None:
    assert name_of(config(**other)) != name_of(config())


@pytest.mark.parametrize(
    "other",
    [
        {"prepare": {"engine": "ray"}},
        {"data": {"path": "/elsewhere/load.csv"}},
        {"root": "/elsewhere"},
        {"task": {"season": 24}},
        {"tune": {"budget_s": 5}},
    ],
)
def test_what_does_not_keeps_the_hash(other: dict[str, Any]) -> None:
    assert name_of(config(**other)) == name_of(config())


def test_inputs_and_frequency_enter_the_hash_and_places_do_not() -> None:
    base = name_of(config())
    assert name_of(config(), (File(uri="s3://bucket/load.csv"),)) == base
    for changed in (File(fingerprint="bb"), File(name="b.csv"), File(is_test=True)):
        assert name_of(config(), (changed,)) != base
    assert name_of(config(), freq="30min") != base


def test_contract_follows_the_configuration() -> None:
    roles = {"z": "past", "work": "known_future", "a": "past", "region": "static"}
    data = {"covariates": roles, "units": "MW", "time_zone": "Europe/Berlin"}
    contract = make_contract(
        config(data=data, prepare={"holidays": "DE", "max_gap": 3}), Frequency("30min")
    )
    assert contract.season == 48
    assert contract.past == ("a", "z")
    assert contract.static == ("region",)
    assert contract.future[-2:] == ("holiday", "work")
    assert (contract.units, contract.time_zone, contract.max_gap) == ("MW", "Europe/Berlin", 3)
    wide = config(data={"layout": "wide", "targets": ["down", "up"]}, task={"season": 9})
    assert make_contract(wide, Frequency("1h")).targets == ("down", "up")
    assert make_contract(wide, Frequency("1h")).season == 9


@pytest.mark.parametrize("name", ["observed", "order", "weekday_sin", "holiday"])
def test_covariate_names_in_use_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a column"):
        make_contract(config(data={"covariates": {name: "past"}}), Frequency("1h"))


def manifest() -> Manifest:
    contract = make_contract(config(data={"units": "MW"}), Frequency("1h"))
    return Manifest(
        hash="ab" * 32,
        version=PREPARATION_VERSION,
        config=hashed_config(config(), contract),
        inputs=describe_inputs([File()]),
        contract=contract,
        season=24,
        horizon=24,
        buckets=1,
        input_rows=10,
        rows=9,
        series=1,
        splits={"train": 7, "validation": 1, "test": 1},
        repairs={"imputed": 0},
        quarantine={"constant": 1},
        categories={"region": ["nörd", "süd"]},
        files=[{"path": "quarantine.parquet", "sha256": "00", "size": 1}],
    )


def test_manifest_round_trip_is_exact() -> None:
    written = manifest().to_json()
    read = Manifest.from_json(written, "here")
    assert read == manifest()
    assert read.to_json() == written
    assert b"/here" not in written


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"{", b'{"version": 2}', b"\xff"])
def test_damaged_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="here"):
        Manifest.from_json(data, "here")


def test_other_version_is_refused_with_the_command() -> None:
    data = json.dumps({**json.loads(manifest().to_json()), "version": 99}).encode()
    with pytest.raises(ArtifactError, match=r"version 99.*flts prepare"):
        Manifest.from_json(data, "here")


def test_folder_is_the_beginning_of_the_hash() -> None:
    assert set_folder(replace(manifest(), hash="0123456789abcdef99").hash) == (
        "prepared/0123456789abcdef"
    )


def test_a_snapshot_enters_the_hash_and_the_way_it_was_chosen_does_not() -> None:
    files, latest, pinned = config(), *(_of_table(snapshot) for snapshot in ("latest", 3))
    described = describe_inputs([File()])

    def named(of: Config, snapshot: dict[str, Any] | None) -> str:
        contract = make_contract(of, Frequency("1h"))
        return prepared_hash(hashed_config(of, contract), described, snapshot)

    reference = {"topic": "load", "epoch": "0f", "number": 3, "ranges": {"0": [0, 9]}}
    assert named(latest, reference) == named(pinned, reference)
    assert named(latest, reference) != named(files, None)
    for change in ({"number": 4}, {"epoch": "1f"}, {"ranges": {"0": [0, 8]}}):
        assert named(latest, {**reference, **change}) != named(latest, reference)
    assert "snapshot" not in hashed_config(files, make_contract(files, Frequency("1h")))["data"]


def _of_table(snapshot: str | int) -> Config:
    return parse_config({"name": "load", "data": {"snapshot": snapshot}})
