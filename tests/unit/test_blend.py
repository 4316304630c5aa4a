"""A blend forecasts what its table says, is stored safely, and stays as light as its members."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.models import artifact
from flts_ray.models.base import COMPOSITES, KINDS, Fitted, Task, fit_fully, forecaster
from flts_ray.models.blend import Blend, WeightTable, blend_of
from flts_ray.prepare.arrays import Windows, origins_in, windows_at
from tests.synthetic import seasonal_set
from tests.unit.test_artifact import edit

DATA = seasonal_set(length=400)
TASK = Task(6, (0.1, 0.3, 0.5, 0.7, 0.9))
ROWS = np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
NO_SHIFT = np.zeros((6, 5))


@cache
def member(kind: str) -> Fitted:
    return fit_fully(kind, DATA, TASK, {"lags": 24} if kind == "ar" else {})


@cache
def members() -> tuple[tuple[str, Fitted], ...]:
    return tuple((f"{kind}-01", member(kind)) for kind in ("ar", "seasonal_naive", "prophet"))


def blend(
    rows: np.ndarray = ROWS, of_series: tuple[int, ...] = (0, 1, 2), shift: np.ndarray = NO_SHIFT
) -> Blend:
    return blend_of(members(), WeightTable.of(rows, np.array(of_series), shift))


def windows(lookback: int, stride: int = 7) -> Windows:
    series, origins = origins_in(DATA, "test", 100, 6, stride)
    return windows_at(DATA, series, origins, lookback, 6)


def test_every_composite_kind_is_no_kind_that_can_be_fitted() -> None:
    assert not set(COMPOSITES) & set(KINDS)
    with pytest.raises(ConfigError, match=r"models\.blend: unknown model kind"):
        forecaster("blend")


def test_each_series_is_the_mixture_of_its_row() -> None:
    made = blend()
    asked = windows(made.spec.lookback)
    found = made.forecast(asked)
    alone = [fitted.forecast(asked.last(fitted.spec.lookback)) for _, fitted in members()]
    rows = np.array([DATA.stats.row_of[name] for name in asked.ids])
    share = ROWS[rows]
    expected = sum(share[:, i, None] * one.mean for i, one in enumerate(alone))
    np.testing.assert_allclose(found.mean, expected, rtol=1e-12)
    level = sum(share[:, i, None, None] * one.quantiles for i, one in enumerate(alone))
    np.testing.assert_allclose(found.quantiles, level, rtol=1e-12)
    assert found.ids == asked.ids
    assert (np.diff(found.quantiles, axis=2) >= 0).all()


def test_a_row_of_one_member_gives_that_member_bit_by_bit() -> None:
    made = blend()
    asked = windows(made.spec.lookback).part(slice(0, None))
    found, alone = made.forecast(asked), member("ar").forecast(asked)
    at = np.array([name == DATA.ids[1] for name in asked.ids])
    assert found.quantiles[at].tobytes() == alone.quantiles[at].tobytes()


def test_the_spec_covers_all_members() -> None:
    spec = blend().spec
    assert spec.kind == "blend"
    assert spec.lookback == max(fitted.spec.lookback for _, fitted in members())
    assert spec.params == {"members": ["ar-01", "seasonal_naive-01", "prophet-01"]}
    assert not spec.needs_known_series


def test_members_and_rows_that_serve_nobody_are_left_out() -> None:
    made = blend(of_series=(0, 0, 1))
    assert made.names == ("ar-01", "seasonal_naive-01")
    assert made.table.weights.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert made.weights_of(DATA.ids[2]) == {"ar-01": 1.0}
    assert made.weights_of("new") == {"ar-01": 0.25, "seasonal_naive-01": 0.75}


def test_a_batch_equals_its_windows_one_by_one_and_more_history_changes_nothing() -> None:
    made = blend(shift=np.linspace(-0.2, 0.2, 30).reshape(6, 5))
    asked = windows(made.spec.lookback + 5, stride=31)
    whole = made.forecast(asked)
    for i in range(len(asked)):
        alone = made.forecast(asked.part(slice(i, i + 1)).last(made.spec.lookback))
        np.testing.assert_allclose(alone.quantiles[0], whole.quantiles[i], rtol=1e-9)
        np.testing.assert_allclose(alone.mean[0], whole.mean[i], rtol=1e-9)
    assert made.forecast(asked).quantiles.tobytes() == whole.quantiles.tobytes()
    assert made.forecast(asked.part(slice(0, 0))).quantiles.shape == (0, 6, 5)


def test_the_correction_is_in_units_of_the_series() -> None:
    shift = np.broadcast_to(np.array([-1.0, -0.5, 0.0, 0.5, 1.0]), (6, 5))
    plain, shifted = blend(), blend(shift=shift)
    asked = windows(plain.spec.lookback)
    before, after = plain.forecast(asked), shifted.forecast(asked)
    wider = (after.quantiles - before.quantiles)[..., -1]
    np.testing.assert_allclose(wider, np.broadcast_to(asked.scale[:, None], wider.shape), rtol=1e-9)
    assert after.mean.tobytes() == before.mean.tobytes()


def test_a_new_series_is_served_by_the_members_that_take_any() -> None:
    made = blend(rows=np.array([[0.3, 0.1, 0.6]]), of_series=(0, 0, 0))
    asked = windows(made.spec.lookback, stride=31)
    unseen = replace(asked, ids=("new", *asked.ids[1:]), scale=np.r_[np.nan, asked.scale[1:]])
    found = made.forecast(unseen)
    ar, naive = (
        member(kind).forecast(unseen.last(member(kind).spec.lookback))
        for kind in ("ar", "seasonal_naive")
    )
    np.testing.assert_allclose(found.mean[0], 0.75 * ar.mean[0] + 0.25 * naive.mean[0])
    np.testing.assert_allclose(found.mean[1:], made.forecast(asked).mean[1:], rtol=1e-9)


def test_a_blend_of_members_that_know_only_their_series_says_so() -> None:
    made = blend(rows=np.array([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]), of_series=(0, 0, 1))
    assert made.spec.needs_known_series
    asked = windows(made.spec.lookback).part(slice(0, 1))
    with pytest.raises(DataError, match="series 'new' was not there"):
        made.forecast(replace(asked, ids=("new",)))


def test_too_short_a_history_is_refused() -> None:
    made = blend()
    with pytest.raises(DataError, match=rf"blend needs {made.spec.lookback} past steps"):
        made.forecast(windows(made.spec.lookback - 1))


def test_a_saved_blend_gives_the_same_bits(tmp_path: Path) -> None:
    made = blend(shift=np.linspace(-0.2, 0.2, 30).reshape(6, 5))
    digest = artifact.save(made, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(
        [artifact.MANIFEST, artifact.MODEL, artifact.ARRAYS]
    )
    loaded = artifact.load(tmp_path / "model")
    asked = windows(made.spec.lookback)
    expected, found = made.forecast(asked), loaded.forecast(asked)
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()
    assert artifact.save(loaded, tmp_path / "again") == digest


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from([artifact.MODEL, artifact.ARRAYS]), at=st.floats(0, 0.999))
def test_no_byte_of_a_blend_can_change_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: float
) -> None:
    folder = tmp_path_factory.mktemp("blend") / "model"
    artifact.save(blend(), folder)
    body = bytearray((folder / name).read_bytes())
    body[int(at * len(body))] ^= 1
    (folder / name).write_bytes(body)
    with pytest.raises(ArtifactError, match=name):
        artifact.load(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw["state"]["members"].pop(), "weights is"),
        (lambda raw: raw["state"]["members"][0]["spec"].update(kind="blend"), "unknown model kind"),
        (lambda raw: raw["state"]["members"][1]["spec"].update(horizon=7), "another task"),
        (lambda raw: raw["state"]["members"][0].pop("spec"), "hold no blend"),
        (lambda raw: raw["state"].pop("members"), "hold no blend"),
        (lambda raw: raw.update(lookback=3), "does not fit"),
    ],
)
def test_a_sealed_folder_that_is_no_blend_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    artifact.save(blend(), tmp_path / "model")
    edit(tmp_path / "model", change)
    with pytest.raises(ArtifactError, match=told):
        artifact.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": np.array([[0.5, 0.6, -0.1]])}, "not negative"),
        ({"weights": np.array([[0.5, 0.4, 0.0]])}, "sum to one"),
        ({"weights": np.full((1, 3), np.nan)}, "finite"),
        ({"row_of_series": np.array([0, 0, 1])}, "row_of_series points outside"),
        ({"shift_owner": np.array([3])}, "shift_owner points outside"),
        ({"shifts": np.zeros((1, 6, 4))}, "shifts is"),
    ],
)
def test_a_table_that_is_none_is_refused(changes: dict[str, np.ndarray], told: str) -> None:
    made = blend(rows=np.array([[0.4, 0.3, 0.3]]), of_series=(0, 0, 0))
    values, arrays = made.state()
    from flts_ray.models.blend import Blends

    with pytest.raises(ArtifactError, match=told):
        Blends().restore(made.spec, made.stats, values, {**arrays, **changes})


def test_the_members_keep_their_own_statistics(tmp_path: Path) -> None:
    other = replace(member("seasonal_naive").stats, scale=2 * DATA.stats.scale)
    naive = member("seasonal_naive")
    assert hasattr(naive, "band")
    foreign = replace(naive, stats=other)  # type: ignore[type-var]
    table = WeightTable.of(np.array([[0.5, 0.5]]), np.zeros(3), NO_SHIFT)
    made = blend_of([("ar-01", member("ar")), ("old", foreign)], table)
    artifact.save(made, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    assert isinstance(loaded, Blend)
    raw = json.loads((tmp_path / "model" / artifact.MODEL).read_text())
    assert [one["stats"] for one in raw["state"]["members"]] == [False, True]
    np.testing.assert_array_equal(loaded.members[1].stats.scale, other.scale)
    asked = windows(made.spec.lookback)
    assert loaded.forecast(asked).quantiles.tobytes() == made.forecast(asked).quantiles.tobytes()


def test_a_blend_of_linear_models_loads_nothing_heavy(tmp_path: Path) -> None:
    table = WeightTable.of(np.array([[0.5, 0.5]]), np.zeros(3), NO_SHIFT)
    artifact.save(blend_of(members()[:2], table), tmp_path / "model")
    code = (
        "import sys, pathlib; from flts_ray.models import artifact; "
        f"artifact.load(pathlib.Path({str(tmp_path / 'model')!r})); "
        "print(*sorted({'torch', 'prophet', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
