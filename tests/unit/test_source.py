from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flts_ray.champion import ChampionRef
from flts_ray.errors import ArtifactError, DataError, Unavailable
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.models.lean import lean_copy, load_lean
from flts_ray.models.onnx_fitted import FittedOnnx
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.serve.source import RecentSeries, RegistrySource
from tests.served import TASK, known_set


class Reads:
    """Reads of prepared data, kept."""

    def __init__(self) -> None:
        self.data = known_set()
        self.asked: list[list[str]] = []

    def __call__(self, ids: Sequence[str]) -> SeriesArrays:
        self.asked.append(list(ids))
        if "x" in ids:
            raise DataError("unique_id: x: unknown", field="unique_id")
        if "gone" in ids:
            raise ArtifactError("no complete prepared set there")
        return self.data.take([self.data.ids.index(name) for name in ids])


def test_recent_series_are_read_once() -> None:
    reads = Reads()
    recent = RecentSeries(reads, keep=2)
    found = recent.series(["s0", "s1", "s0"])
    assert list(found) == ["s0", "s1"]
    np.testing.assert_array_equal(found["s1"].y, reads.data.take([1]).y)
    recent.series(["s1", "s2"])
    recent.series(["s1"])
    recent.series(["s0"])
    assert reads.asked == [["s0", "s1"], ["s2"], ["s0"]]


def test_more_series_than_are_kept_are_all_given() -> None:
    recent = RecentSeries(Reads(), keep=1)
    assert sorted(recent.series(["s0", "s1", "s2"])) == ["s0", "s1", "s2"]


def test_prepared_data_that_cannot_be_read_are_unavailable() -> None:
    with pytest.raises(Unavailable, match="send the history"):
        RecentSeries(Reads()).series(["gone"])
    with pytest.raises(DataError):
        RecentSeries(Reads()).series(["x"])


def test_the_export_of_a_champion_is_what_is_loaded(tmp_path: Path) -> None:
    quick = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64}
    digest = artifact.save(fit_fully("gru", known_set(), TASK, quick), tmp_path / "store" / "full")
    with lean_copy(tmp_path / "store" / "full") as lean:
        exported = artifact.save(load_lean(lean), tmp_path / "store" / "lean")
    ref = ChampionRef(3, digest, "gru", "0" * 64, "full", "run", "lean", exported)
    source = RegistrySource(
        "http://127.0.0.1:1", str(tmp_path / "store"), "demo", tmp_path / "cache"
    )
    model = source.load(ref)
    assert isinstance(model.fitted, FittedOnnx)
    assert (model.version, model.digest, model.fitted.spec.kind) == ("3", digest, "gru")
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [exported]
    with pytest.raises(ArtifactError):
        source.load(replace(ref, lean_digest="f" * 64))


def test_a_champion_is_fetched_checked_and_restored(tmp_path: Path) -> None:
    fitted = fit_fully("seasonal_naive", known_set(), TASK)
    digest = artifact.save(fitted, tmp_path / "store" / "models" / "3")
    ref = ChampionRef(3, digest, "seasonal_naive", "0" * 64, "models/3", "run")
    source = RegistrySource(
        "http://127.0.0.1:1", str(tmp_path / "store"), "demo", tmp_path / "cache"
    )
    model = source.load(ref)
    assert (model.name, model.version, model.digest) == ("demo", "3", digest)
    assert model.run_id == "run"
    assert model.fitted.spec == fitted.spec
    assert model.known is not None
    with pytest.raises(Unavailable, match="send the history"):
        model.known.series(["s0"])
    other = ChampionRef(4, "f" * 64, "seasonal_naive", "0" * 64, "models/3", "run")
    with pytest.raises(ArtifactError):
        source.load(other)
