from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from flts_ray.errors import DataError
from flts_ray.panel import US_PER_DAY, US_PER_SECOND, to_local_us
from flts_ray.sources.infer import infer_frequency

HOUR = 3600 * US_PER_SECOND


def series(name: str, ds_us: np.ndarray) -> tuple[list[str], np.ndarray]:
    return [name] * ds_us.size, ds_us


def infer(*parts: tuple[list[str], np.ndarray], seed: int = 0) -> str:
    ids = np.array([name for names, _ in parts for name in names])
    ds_us = np.concatenate([ds for _, ds in parts])
    mixed = np.random.default_rng(seed).permutation(ds_us.size)
    return infer_frequency(pa.array(ids[mixed]), ds_us[mixed]).text


@pytest.mark.parametrize(
    ("step", "text"), [(120, "2min"), (1800, "30min"), (3600, "1h"), (86400, "1D"), (604800, "1W")]
)
def test_regular_steps(step: int, text: str) -> None:
    assert infer(series("a", np.arange(50) * step * US_PER_SECOND)) == text


def test_gaps_repeats_and_disorder_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    stamps = np.sort(rng.permutation(np.arange(300))[:220]) * HOUR
    assert infer(series("a", np.append(stamps, stamps[:40]))) == "1h"


def test_each_series_has_one_vote() -> None:
    dense = series("dense", np.arange(5000) * 60 * US_PER_SECOND)
    sparse = [series(f"s{i}", np.arange(20) * HOUR) for i in range(3)]
    assert infer(dense, *sparse) == "1h"


def test_series_do_not_touch_each_other() -> None:
    offset = 7 * 60 * US_PER_SECOND
    parts = [series("a", np.arange(9) * HOUR), series("b", np.arange(9) * HOUR + offset)]
    assert infer(*parts) == "1h"


def test_daily_series_in_wall_clock_across_daylight_saving() -> None:
    midnights = np.array(
        [f"2020-03-{day:02d}T{hour}:00" for day, hour in ((27, 23), (28, 23), (29, 22), (30, 22))],
        dtype="datetime64[us]",
    ).astype(np.int64)
    wall = to_local_us(midnights, "Europe/Berlin")
    assert infer(series("a", wall)) == "1D"
    assert (np.diff(wall) == US_PER_DAY).all() and not (np.diff(midnights) == US_PER_DAY).all()


@pytest.mark.parametrize(
    "stamps",
    [
        np.array([5]) * HOUR,
        np.array([5, 5, 5]) * HOUR,
        np.cumsum(np.array([61, 75, 61, 80, 93, 61, 77])) * US_PER_SECOND,
        np.arange(9) * 250_000,
        np.array([], np.int64),
    ],
    ids=["one", "repeated", "irregular", "below a second", "none"],
)
def test_what_cannot_be_inferred_asks_for_the_setting(stamps: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"set data\.frequency") as error:
        infer_frequency(np.array(["a"] * stamps.size, dtype=object), stamps)
    assert error.value.field == "data.frequency"


def test_months_are_told_to_be_no_fixed_step() -> None:
    months = np.arange("2020-01", "2024-01", dtype="datetime64[M]").astype("datetime64[us]")
    for stamps, name in ((months, "months"), (months[::3], "quarters"), (months[::12], "years")):
        with pytest.raises(DataError, match=f"calendar {name}.*fixed step"):
            infer(series("a", stamps.astype(np.int64)))
    assert infer(series("a", np.arange(12) * 30 * US_PER_DAY)) == "30D"


def test_series_that_disagree_are_ambiguous() -> None:
    with pytest.raises(DataError, match=r"30min|1h|2h"):
        infer(*(series(str(n), np.arange(9) * n * HOUR // 2) for n in (1, 2, 4, 6)))
