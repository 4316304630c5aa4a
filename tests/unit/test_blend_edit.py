"""One series of a blend goes back to an older model; nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Task, fit_fully
from flts_ray.models.blend import Blend, Blends, WeightTable, blend_of
from flts_ray.models.blend_edit import as_blend, with_series_from
from flts_ray.models.memory import seen_positions
from flts_ray.prepare.arrays import Windows, origins_in, windows_at
from tests.synthetic import seasonal_set
from tests.unit.test_blend import DATA, TASK, blend, member

SHIFT = np.linspace(-0.3, 0.3, 30).reshape(6, 5)


def windows(fitted: Fitted) -> Windows:
    series, origins = origins_in(DATA, "test", 100, 6, 11)
    return windows_at(DATA, series, origins, fitted.spec.lookback, 6)


def of_series(fitted: Fitted, name: str, *, but: bool = False) -> bytes:
    asked = windows(fitted)
    at = np.array([(one == name) != but for one in asked.ids])
    found = fitted.forecast(asked)
    return found.mean[at].tobytes() + found.quantiles[at].tobytes()


def test_a_single_model_is_a_blend_of_one() -> None:
    alone = as_blend(member("ar"), "ar")
    assert alone.weights_of("s0") == {"ar": 1.0}
    assert of_series(alone, "s0") == of_series(member("ar"), "s0")
    assert as_blend(alone, "other") is alone


@pytest.mark.parametrize("series", ["s0", "s2"])
def test_a_series_goes_back_and_the_others_stay(series: str) -> None:
    current, older = blend(shift=SHIFT), as_blend(member("seasonal_naive"), "naive")
    made = with_series_from(current, older, series, "@v1")
    assert of_series(made, series) == of_series(older, series)
    assert of_series(made, series, but=True) == of_series(current, series, but=True)
    assert made.weights_of(series) == {"seasonal_naive-01": 1.0}
    assert made.stats is current.stats


def test_a_correction_travels_with_its_series() -> None:
    current, older = as_blend(member("ar"), "ar"), blend(shift=SHIFT)
    made = with_series_from(current, older, "s2", "@v1")
    found, expected = made.forecast(windows(made)), older.forecast(windows(older))
    at = np.array([name == "s2" for name in expected.ids])
    np.testing.assert_allclose(found.quantiles[at], expected.quantiles[at], rtol=1e-12)
    assert of_series(made, "s0") == of_series(current, "s0")
    assert made.names == ("ar", "seasonal_naive-01@v1", "prophet-01@v1")


def test_what_the_bands_of_the_whole_have_seen_stays_seen() -> None:
    later = replace(DATA, valid_end=np.full(3, 380))
    named = as_blend(member("ar"), "ar")
    current = Blends().follow(named, later)
    made = with_series_from(current, as_blend(member("seasonal_naive"), "sn"), "s1", "@v1")
    np.testing.assert_array_equal(seen_positions(named, DATA), [320] * 3)
    np.testing.assert_array_equal(seen_positions(made, DATA), [380] * 3)


def test_what_both_hold_is_stored_once_and_what_nobody_uses_is_dropped(tmp_path: object) -> None:
    current = as_blend(member("ar"), "ar")
    patched = with_series_from(current, as_blend(member("seasonal_naive"), "sn"), "s1", "@v1")
    assert patched.names == ("ar", "sn@v1")
    back = with_series_from(patched, current, "s1", "@v2")
    assert back.names == ("ar",)
    assert of_series(back, "s1") == of_series(current, "s1")


def test_members_of_another_data_set_keep_their_scale(tmp_path: object) -> None:
    longer = seasonal_set(length=420)
    fresh = as_blend(fit_fully("ar", longer, TASK, {"lags": 24}), "ar")
    table = WeightTable.of(np.array([[0.5, 0.5]]), np.zeros(3), SHIFT)
    pairs = [("ar-01", member("ar")), ("sn-01", member("seasonal_naive"))]
    older = blend_of(pairs, table)
    made = with_series_from(fresh, older, "s1", "@v1")
    assert of_series(made, "s1") == of_series(older, "s1")
    folder = tmp_path / "model"  # type: ignore[operator]
    artifact.save(made, folder)
    assert of_series(artifact.load(folder), "s1") == of_series(older, "s1")


def test_what_cannot_go_back_is_refused() -> None:
    current = blend()
    with pytest.raises(DataError, match="series 'nobody' is not among the 3"):
        with_series_from(current, as_blend(member("ar"), "ar"), "nobody", "@v1")
    with pytest.raises(DataError, match="series 's1' is served by the same members"):
        with_series_from(current, as_blend(member("ar"), "ar"), "s1", "@v1")
    other = as_blend(fit_fully("seasonal_naive", DATA, Task(5, TASK.levels)), "sn")
    with pytest.raises(DataError, match="different tasks"):
        with_series_from(current, other, "s1", "@v1")
    unknown: Blend = replace(current, stats=replace(current.stats, ids=("a", "b", "c")))
    with pytest.raises(DataError, match="series 's0'"):
        with_series_from(current, unknown, "s0", "@v1")
