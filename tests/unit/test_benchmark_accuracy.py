"""The judge of the accuracy benchmark, its rows and its tables, on made data."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy_rows
from benchmarks.accuracy import stages
from benchmarks.accuracy_judge import judge
from benchmarks.accuracy_ours import OURS as FITTED_HERE
from benchmarks.accuracy_report import cost, draw, markdown
from benchmarks.accuracy_rows import OUR_MODELS, Cell, Row, Setting, Table, cells, row_key, run_cell
from benchmarks.peers.protocol import LEVELS, ForecastData, TaskData
from flts_ray.errors import DataError
from tests.unit.test_benchmark_protocol import HORIZON, make_task

NHITS = Cell("demo-48", "neuralforecast", "NHITS")


def perfect(task: TaskData, windows: np.ndarray | None = None, shift: float = 0.0) -> ForecastData:
    """What happened plus `shift`; bands half a unit and a unit wide each way."""
    chosen = np.arange(len(task.series)) if windows is None else windows
    mean = task.actual(chosen) + shift
    steps = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    about = {"fit_cpu_s": 2.0, "predict_cpu_s": 1.0, "cut_off": False, "notes": ["a note"]}
    return ForecastData(chosen, mean, mean[..., None] + steps, about)


def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, Path("python"), 10.0)


def test_scores_are_those_of_the_definitions() -> None:
    task = make_task()
    found = judge(task, perfect(task, shift=0.75), scaled=False)["all"]
    assert found["windows"] == len(task.series)
    assert found["values"] == len(task.series) * HORIZON
    assert found["mse"] == pytest.approx(0.75**2, rel=1e-5)
    assert found["mae"] == pytest.approx(0.75, rel=1e-5)
    assert (found["coverage_80"], found["coverage_95"]) == (0.0, 1.0)
    error = -0.75 - np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    losses = np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error)
    assert found["pinball"] == pytest.approx(losses.mean(), rel=1e-5)


def test_a_scaled_task_counts_in_deviations_of_the_training_span() -> None:
    task = make_task(n_series=1)
    std = task.y[: int(task.train_end[0])].std()
    plain, scaled = (judge(task, perfect(task, shift=1.0), scaled=s)["all"] for s in (False, True))
    assert scaled["mae"] == pytest.approx(plain["mae"] / std, rel=1e-5)
    assert scaled["mse"] == pytest.approx(plain["mse"] / std**2, rel=1e-5)
    assert scaled["coverage_80"] == plain["coverage_80"]


def test_values_that_were_not_observed_count_nowhere() -> None:
    task = make_task(n_series=1)
    observed, y = task.observed.copy(), task.y.copy()
    observed[305], y[305] = False, 1e9
    holed = dataclasses.replace(task, observed=observed, y=y)
    whole = perfect(task, shift=0.5)
    found = judge(holed, whole, scaled=False)["all"]
    assert found["values"] == len(task.series) * HORIZON - HORIZON
    assert found["mae"] == pytest.approx(0.5, rel=1e-5)


def test_everybody_is_also_judged_on_the_subsample() -> None:
    task = make_task()
    few = np.flatnonzero(task.few)
    spoilt = perfect(task)
    spoilt.mean[few] += 2.0
    found = judge(task, dataclasses.replace(spoilt, quantiles=None), scaled=False)
    assert found["few"]["mae"] == pytest.approx(2.0, rel=1e-5)
    assert found["all"]["mae"] == pytest.approx(2.0 * len(few) / len(task.series), rel=1e-5)
    alone = judge(task, perfect(task, few), scaled=False)
    assert alone["all"] is None and alone["few"]["windows"] == len(few)


def test_without_quantiles_there_is_no_word_on_bands() -> None:
    task = make_task()
    found = judge(task, dataclasses.replace(perfect(task), quantiles=None), scaled=False)["all"]
    assert (found["pinball"], found["coverage_80"], found["coverage_95"]) == (None, None, None)


@pytest.mark.parametrize("spoil", ["windows", "steps", "levels", "finite"])
def test_forecasts_of_something_else_are_refused(spoil: str) -> None:
    task = make_task()
    good = perfect(task)
    assert good.quantiles is not None
    bad = {
        "windows": perfect(task, np.array([0, 1])),
        "steps": dataclasses.replace(good, mean=good.mean[:, 1:]),
        "levels": dataclasses.replace(good, quantiles=good.quantiles[..., 1:]),
        "finite": dataclasses.replace(good, mean=np.where(good.mean > 11, np.nan, good.mean)),
    }[spoil]
    with pytest.raises(DataError, match="made"):
        judge(task, bad, scaled=False)


def test_peers_come_before_ours_and_a_blend_after_its_members() -> None:
    found = cells(["demo-48", "lte-1"])
    libraries = [cell.library for cell in found]
    assert libraries == sorted(libraries, key=lambda name: name == "ours")
    assert OUR_MODELS == FITTED_HERE
    numbers = [{cell.model for cell in stage} for stage in stages(found)]
    assert {"gru", "lstm", "ar"} <= numbers[1]
    assert numbers[2:] == [{"blend"}, {"champion"}]
    assert [cell.model for cell in cells(["lte-1"], ["ours"], ["gru"])] == ["gru"]


def answering(task: TaskData, code: int = 0, said: str = "") -> accuracy_rows.Start:
    """A process that forecasts perfectly, or fails."""

    def start(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if code == 0:
            perfect(task).save(Path(words[list(words).index("--output") + 1]))
        return subprocess.CompletedProcess(list(words), code, said)

    return start


def test_a_row_holds_scores_and_cost(tmp_path: Path) -> None:
    task = make_task()
    row = run_cell(NHITS, task, setting(tmp_path), answering(task))
    assert row["error"] is None
    assert row["scores"]["all"]["mae"] == pytest.approx(0.0, abs=1e-5)
    assert (row["fit_cpu_s"], row["predict_cpu_s"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [(1, "trace\nValueError: no\n", "ValueError: no"), (-24, "", "out of CPU seconds (signal 24)")],
)
def test_a_model_that_fails_is_a_row_with_its_error(
    tmp_path: Path, code: int, said: str, error: str
) -> None:
    task = make_task()
    row = run_cell(NHITS, task, setting(tmp_path), answering(task, code, said))
    assert row["error"] == error
    assert "scores" not in row


def test_a_row_is_known_by_what_it_depends_on(tmp_path: Path) -> None:
    task = make_task()
    here = setting(tmp_path)
    key = row_key(NHITS, task, here)
    assert key == row_key(NHITS, task, here)
    other = dataclasses.replace(task, y=task.y + 1)
    assert row_key(NHITS, other, here) != key
    assert row_key(NHITS, task, dataclasses.replace(here, budget_s=11.0)) != key
    assert row_key(Cell("demo-48", "neuralforecast", "GRU"), task, here) != key


def test_rows_last_and_failed_ones_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    task = make_task()
    good = run_cell(NHITS, task, setting(tmp_path), answering(task))
    gru = Cell("demo-48", "neuralforecast", "GRU")
    bad = run_cell(gru, task, setting(tmp_path), answering(task, 1, "no"))
    table = Table(path)
    table.put(bad, {"budget_s": 10})
    table.put(good, {"budget_s": 10})
    again = Table(path)
    assert again.has(NHITS, good["key"]) and not again.has(NHITS, "another")
    assert not again.has(gru, bad["key"])
    assert json.loads(path.read_text(encoding="utf-8"))["budget_s"] == 10
    assert list(tmp_path.glob("*.part")) == []


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="move it away"):
        Table(path)


def described() -> dict[str, Any]:
    about = {
        "title": "Made", "units": "MW", "short_units": "MW", "apart": False, "series": ["s0", "s1"],
        "horizon": HORIZON, "windows": 194, "few": 4, "stride": 49,
    }  # fmt: skip
    return {
        "method": ["How."], "commands": ["make bench-setup"], "machine": "one", "levels": "0.5",
        "tasks": {"demo-48": about},
    }  # fmt: skip


def made_rows(tmp_path: Path) -> list[Row]:
    task = make_task()
    here = setting(tmp_path)
    rows = [
        run_cell(Cell("demo-48", "ours", "ar"), task, here, answering(task)),
        run_cell(NHITS, task, here, answering(task)),
        run_cell(Cell("demo-48", "darts", "BlockRNN"), task, here, answering(task, 1, "no memory")),
    ]
    rows[1]["cut_off"] = True
    return rows


def test_tables_show_every_row_and_what_failed(tmp_path: Path) -> None:
    text = markdown(described(), made_rows(tmp_path))
    assert text.count("| **ar** |") == 2  # every window, and the subsample
    assert "| neuralforecast/NHITS |" in text and "**training cut off by the budget**" in text
    assert "- darts/BlockRNN: no result, no memory" in text
    assert "Errors in MW." in text


def test_a_series_apart_has_a_table_of_its_own(tmp_path: Path) -> None:
    about = described()
    about["tasks"]["demo-48"]["apart"] = True
    text = markdown(about, made_rows(tmp_path))
    assert "## Made: s0" in text and "## Made: s1" in text


def test_a_picture_is_drawn_of_whatever_is_there(tmp_path: Path) -> None:
    for number, rows in enumerate(([], made_rows(tmp_path))):
        path = tmp_path / f"{number}.png"
        draw(described(), rows, path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_cost_of_a_subsample_is_scaled_up() -> None:
    task = {"windows": 100, "few": 10}
    row = {"fit_cpu_s": 1.0, "predict_cpu_s": 2.0, "scores": {"all": None, "few": {}}}
    assert cost(row, task) == pytest.approx(21.0)
    assert cost({**row, "scores": {"all": {}, "few": {}}}, task) == pytest.approx(3.0)
