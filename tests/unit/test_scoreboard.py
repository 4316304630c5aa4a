from __future__ import annotations

import json

import numpy as np
import pytest

from flts_ray.errors import DataError
from flts_ray.evaluate import metrics
from flts_ray.evaluate.backtest import Backtest, Origins
from flts_ray.evaluate.calibration import (
    calibration_error,
    coverage_table,
    level_coverage,
    pit_table,
)
from flts_ray.evaluate.scoreboard import comparison_table, score_board
from flts_ray.prepare.arrays import SeriesStats

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


def some_stats() -> SeriesStats:
    ones = np.ones(3)
    return SeriesStats(
        ("north", "south", "west"), ones, ones, np.array([1.0, 2.0, 10.0]), -ones, ones
    )


def some_backtest(error: float = 1.0, levels: tuple[float, ...] = LEVELS) -> Backtest:
    """Windows of series 2, 0, 2; every forecast is too high by `error` times the step."""
    actual = np.array([[100.0, 200.0], [10.0, np.nan], [100.0, 100.0]])
    mean = np.nan_to_num(actual, nan=5.0) + error * np.array([1.0, 2.0])
    return Backtest(
        origins=Origins(np.array([2, 0, 2]), np.array([5, 5, 7])),
        origin_us=np.array([5, 5, 7]),
        levels=levels,
        mean=mean,
        quantiles=mean[..., None] + np.array([-4.0, -1.5, 0.0, 1.5, 4.0])[: len(levels)],
        actual=actual,
    )


def test_overall_numbers_average_over_observed_values() -> None:
    overall = score_board("a", "ar", some_backtest(), some_stats()).overall
    assert overall["mae"] == pytest.approx((1 + 2 + 1 + 1 + 2) / 5)
    assert overall["rmse"] == pytest.approx(np.sqrt((1 + 4 + 1 + 1 + 4) / 5))
    assert overall["mase"] == pytest.approx((0.1 + 0.2 + 1 + 0.1 + 0.2) / 5)
    assert overall["wape"] == pytest.approx(7 / 510)
    assert overall["coverage_80"] == pytest.approx(3 / 5)
    assert overall["coverage_95"] == 1.0
    assert overall["width_80"] == pytest.approx(3.0)
    assert (overall["windows"], overall["series"], overall["values"]) == (3, 2, 5)


def test_numbers_that_share_their_work_are_those_of_each_alone() -> None:
    bt, scale = some_backtest(0.7), some_stats().scale[[2, 0, 2]]
    board = score_board("a", "ar", bt, some_stats())
    average = metrics.together(metrics.overall, metrics.by_step)
    covered = level_coverage(bt.actual, bt.quantiles, LEVELS, average)
    alone = {
        "pinball": metrics.pinball(bt.actual, bt.quantiles, LEVELS),
        "scaled_pinball": metrics.overall(
            metrics.over_levels(bt.actual, bt.quantiles, LEVELS) / scale[:, None]
        ),
        "calibration_error": calibration_error(covered[0], LEVELS),
    }
    assert {name: board.overall[name] for name in alone} == {k: float(v) for k, v in alone.items()}
    assert board.pit == pit_table(LEVELS, covered[0])
    assert board.coverage == coverage_table(LEVELS, covered)


def test_every_step_is_judged_alone() -> None:
    table = score_board("a", "ar", some_backtest(), some_stats()).per_step
    assert table["step"].to_pylist() == [1, 2]
    assert table["mae"].to_pylist() == pytest.approx([1.0, 2.0])
    assert table["coverage_80"].to_pylist() == pytest.approx([1.0, 0.0])


def test_every_series_is_judged_alone() -> None:
    bt = some_backtest()
    table = score_board("a", "ar", bt, some_stats()).per_series
    assert table["unique_id"].to_pylist() == ["north", "west"]
    assert table["windows"].to_pylist() == [1, 2]
    assert table["values"].to_pylist() == [1, 4]
    west = np.array([0, 2])
    alone = metrics.pinball(bt.actual[west], bt.quantiles[west], LEVELS)
    assert table["pinball"].to_pylist()[1] == pytest.approx(float(alone))
    assert table["mase"].to_pylist() == pytest.approx([1.0, 0.15])


def test_the_scoreboard_is_plain_json_with_null_for_undefined_numbers() -> None:
    bt = some_backtest()
    bt.actual[1, 0] = np.nan
    raw = score_board("a", "ar", bt, some_stats()).to_json()
    again = json.loads(json.dumps(raw, allow_nan=False))
    assert again == raw
    assert again["per_series"]["mae"][0] is None
    assert again["model"] == "a" and again["kind"] == "ar"


def test_a_backtest_without_the_band_levels_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.quantiles"):
        score_board("a", "ar", some_backtest(levels=LEVELS[:4]), some_stats())


def test_an_empty_backtest_is_refused() -> None:
    none = np.zeros(0, np.int64)
    bt = Backtest(
        Origins(none, none), none, LEVELS, np.zeros((0, 2)), np.zeros((0, 2, 5)), np.zeros((0, 2))
    )
    with pytest.raises(DataError, match="no windows"):
        score_board("a", "ar", bt, some_stats())


def test_candidates_are_sorted_by_the_score_undefined_last() -> None:
    boards = [
        score_board(name, "ar", some_backtest(error), some_stats())
        for name, error in (("far", 3.0), ("near", 0.1), ("middle", 1.0))
    ]
    undefined = some_backtest()
    undefined.actual[:] = 0.0
    boards.insert(0, score_board("zero", "ar", undefined, some_stats()))
    table = comparison_table(boards, "wape")
    assert table["model"].to_pylist() == ["near", "middle", "far", "zero"]
    assert table.column_names[:2] == ["model", "kind"] and "scaled_pinball" in table.column_names


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(DataError, match="'smape' is no measure"):
        comparison_table([score_board("a", "ar", some_backtest(), some_stats())], "smape")
