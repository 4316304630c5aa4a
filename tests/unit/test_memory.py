"""How far a model has seen its series, in any set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flts_ray.models.base import Task, fit_fully
from flts_ray.models.memory import NEVER, Memory, positions_of, split_memory, until_of
from flts_ray.panel import Contract, steps_after
from tests.synthetic import seasonal_set

TASK = Task(6, (0.1, 0.5, 0.9))
DATA = seasonal_set()
START = int(np.datetime64("2024-03-20T23:00", "us").astype(np.int64))


@pytest.mark.parametrize("freq", ["1h", "1D", "15min"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna"])
def test_a_position_is_found_again_across_a_clock_change(freq: str, zone: str) -> None:
    contract = Contract(freq=freq, season=7, time_zone=zone)
    start, steps = np.full(40, START), np.arange(40)
    until = steps_after(start, steps, contract)
    np.testing.assert_array_equal(positions_of(until, start, contract), steps)


def test_a_step_that_was_seen_in_part_counts_as_seen() -> None:
    contract, start = Contract(freq="1h", season=24), np.array([0, 0, 0])
    until = np.array([3_600_000_001, 7_200_000_000, -5])
    np.testing.assert_array_equal(positions_of(until, start, contract), [2, 2, 0])


def test_a_series_nobody_has_seen_was_seen_never() -> None:
    memory = Memory.of(DATA, TASK)
    found = until_of(memory, DATA.stats, ["s2", "other"])
    assert found[1] == NEVER
    assert found[0] == steps_after(DATA.start_us[2], DATA.valid_end[2], DATA.contract)
    positions = positions_of(found, DATA.start_us[:2], DATA.contract)
    np.testing.assert_array_equal(positions, [480, 0])


def test_windows_of_the_validation_span_stand_behind_the_first_bands() -> None:
    assert Memory.of(DATA, TASK).base == 3 * (120 - 6 + 1)


def test_a_memory_comes_back_from_its_arrays() -> None:
    arrays = {"other": np.zeros(2), **Memory.of(DATA, TASK).arrays()}
    rest, found = split_memory(arrays, DATA.stats, TASK)
    assert rest.keys() == {"other"} and found is not None
    np.testing.assert_array_equal(found.until_us, Memory.of(DATA, TASK).until_us)
    assert split_memory({"other": np.zeros(2)}, DATA.stats, TASK)[1] is None


def test_a_memory_of_other_series_or_another_task_is_refused() -> None:
    arrays = Memory.of(DATA, TASK).arrays()
    with pytest.raises(ValueError, match="not of 2"):
        split_memory(arrays, DATA.stats.take(np.array([0, 1])), TASK)
    with pytest.raises(ValueError, match="another task"):
        split_memory(arrays, DATA.stats, Task(7, TASK.levels))


def test_forecasts_do_not_read_the_memory() -> None:
    from flts_ray.models.seasonal_naive import FittedSeasonalNaive
    from flts_ray.prepare.arrays import windows_at

    fitted = fit_fully("seasonal_naive", DATA, TASK)
    assert isinstance(fitted, FittedSeasonalNaive)
    windows = windows_at(DATA, np.arange(3), np.full(3, 500), 24, 6)
    other = replace(fitted, memory=None).forecast(windows)
    assert other.quantiles.tobytes() == fitted.forecast(windows).quantiles.tobytes()
