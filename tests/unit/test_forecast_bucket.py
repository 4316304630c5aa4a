from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError
from flts_ray.jobs.forecast_bucket import (
    REFUSED,
    Wanted,
    forecast_bucket,
    forecast_schema,
    in_halves,
)
from flts_ray.jobs.histories import About, histories
from flts_ray.models.base import Forecast, fit_fully
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import parse_stamps
from tests.calling import call
from tests.served import HORIZON, LEVELS, TASK, Transparent, known_set, served, stamps, transparent
from tests.unit.test_raw_series import config_of, table_of, write_rough

WANTED = Wanted(HORIZON, LEVELS, max_batch=3)


def filled_set() -> SeriesArrays:
    """A prepared set whose contract fills gaps of three steps."""
    data = known_set()
    return replace(data, contract=replace(data.contract, max_gap=3))


def write_mixed(path: Path) -> None:
    """Regular, short, gappy and unknown series, and one whose future is not known."""
    rng = np.random.default_rng(1)
    every = stamps(200)
    lines = ["unique_id,ds,y,event,lagged,number"]
    for name, length, gap, ahead in (
        ("s0", 150, 0, HORIZON),
        ("s1", 150, 2, HORIZON),
        ("s2", 60, 0, HORIZON),
        ("cold", 120, 0, HORIZON + 3),
        ("blind", 120, 0, HORIZON - 1),
        ("short", 5, 0, HORIZON),
        ("holed", 150, 9, HORIZON),
    ):
        for i in range(length + ahead):
            if not length - 8 - gap <= i < length - 8:
                y = 3 + np.sin(i / 4) + rng.normal() if i < length else ""
                lines.append(f"{name},{every[i]},{y},{i % 3},{i % 7 if i < length else ''},2")
    path.write_text("\n".join(lines) + "\n")


def over_http(path: Path, model: ServedModel) -> list[dict[str, Any]]:
    """The entries of the bulk route for the series of a file."""
    spec = model.fitted.spec
    about = About(spec.task.horizon, spec.lookback, spec.contract)
    body = {"series": histories(config_of(), str(path), about), "quantiles": list(LEVELS)}

    async def send(http: httpx.AsyncClient) -> list[dict[str, Any]]:
        answer = await http.post("/v1/forecast:batch", json=body)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["forecasts"]
        return found

    return call(send, model, ServeConfig(max_batch=WANTED.max_batch))


@pytest.mark.parametrize("kind", ["seasonal_naive", "ar"])
@pytest.mark.parametrize("rough", [False, True])
def test_numbers_are_those_of_the_bulk_route_bit_by_bit(
    tmp_path: Path, kind: str, rough: bool
) -> None:
    path = tmp_path / "new.csv"
    if rough:
        write_rough(path, seed=4)
    else:
        write_mixed(path)
    model = served(fit_fully(kind, filled_set(), TASK), version="7")
    entries = over_http(path, model)
    made = forecast_bucket(table_of(path), model, WANTED)
    good = [one for one in entries if one["status"] == "ok"]
    assert good or rough
    assert made.series == len(good)
    assert made.table.schema == forecast_schema(LEVELS)
    assert made.table["unique_id"].to_pylist() == [
        one["unique_id"] for one in good for _ in range(HORIZON)
    ]
    expected_us = parse_stamps([ds for one in good for ds in one["ds"]], "UTC", "ds")
    assert made.table["ds"].cast(pa.int64()).to_pylist() == expected_us.tolist()
    assert made.table["mean"].to_pylist() == [x for one in good for x in one["mean"]]
    for level in LEVELS:
        found = made.table[f"q{level}"].to_pylist()
        assert found == [x for one in good for x in one["quantiles"][str(level)]]
    cold = [one["cold_start"] for one in good]
    assert made.table["cold_start"].to_pylist() == list(np.repeat(cold, HORIZON))
    assert made.cold == sum(cold)
    told = {
        one["unique_id"]: one["error"]["message"].split(".", 1)[1]
        for one in entries
        if one["status"] == "error"
    }
    refused = made.refused.to_pylist()
    assert {row["unique_id"]: row["reason"] for row in refused} == told


def test_series_that_cannot_be_forecast_are_told_and_stop_no_other(tmp_path: Path) -> None:
    write_mixed(tmp_path / "new.csv")
    data = filled_set()
    model = served(transparent(data.contract, data.ids), version="7")
    made = forecast_bucket(table_of(tmp_path / "new.csv"), model, WANTED)
    assert made.refused.schema == REFUSED
    assert [(row["unique_id"], row["field"]) for row in made.refused.to_pylist()] == [
        ("blind", "known_future.event[55]"), ("holed", "y"), ("short", "y"),
    ]  # fmt: skip
    assert made.table["unique_id"].unique().to_pylist() == ["cold", "s0", "s1", "s2"]
    assert set(made.table["version"].to_pylist()) == {"7"}


class Fragile(Transparent):
    """Raises for one series what no model should, and forecasts no number for another."""

    def forecast(self, windows: Windows) -> Forecast:
        if "s1" in windows.ids:
            raise ZeroDivisionError("in the model")
        made = super().forecast(windows)
        made.mean[[name == "s2" for name in windows.ids]] = np.nan
        return made


def test_a_model_that_fails_on_a_series_forecasts_the_others(tmp_path: Path) -> None:
    write_mixed(tmp_path / "new.csv")
    data = filled_set()
    good = transparent(data.contract, data.ids)
    fragile = Fragile(good.spec, good.stats)
    table = table_of(tmp_path / "new.csv")
    made = forecast_bucket(table, served(fragile), Wanted(2, (0.5,), 100))
    reasons = {row["unique_id"]: row["reason"] for row in made.refused.to_pylist()}
    assert reasons["s1"] == "ZeroDivisionError: in the model"
    assert "not finite" in reasons["s2"]
    whole = forecast_bucket(table, served(good), Wanted(2, (0.5,), 100)).table
    kept = [name in ("cold", "s0") for name in whole["unique_id"].to_pylist()]
    assert made.table.equals(whole.filter(pa.array(kept)))


def test_the_batches_of_the_model_are_bounded(tmp_path: Path) -> None:
    write_mixed(tmp_path / "new.csv")
    data, seen = filled_set(), list[Windows]()
    model = served(transparent(data.contract, data.ids, seen=seen))
    forecast_bucket(table_of(tmp_path / "new.csv"), model, Wanted(6, (0.5,), 2))
    assert [windows.ids for windows in seen] == [("cold",), ("s0",), ("s1", "s2")]
    seen.clear()
    forecast_bucket(table_of(tmp_path / "new.csv"), model, Wanted(6, (0.5,), 100))
    assert [len(windows) for windows in seen] == [4]


def test_without_any_forecast_the_table_is_empty(tmp_path: Path) -> None:
    write_mixed(tmp_path / "new.csv")
    table = table_of(tmp_path / "new.csv")
    short = table.filter(pa.array([name == "short" for name in table["unique_id"].to_pylist()]))
    made = forecast_bucket(short, served(transparent(filled_set().contract)), WANTED)
    assert made.table.equals(forecast_schema(LEVELS).empty_table())
    assert (made.series, len(made.refused)) == (0, 1)


def test_work_is_halved_until_the_culprits_are_alone() -> None:
    tried: list[tuple[int, int]] = []

    def work(some: slice) -> list[int]:
        tried.append((some.start, some.stop))
        if some.start <= 5 < some.stop:
            raise DataError("five", field="y")
        return list(range(some.start, some.stop))

    failed: dict[int, Exception] = {}
    found = [made for _, made in in_halves(work, 0, 8, failed)]
    assert found == [[0, 1, 2, 3], [4], [6, 7]]
    assert list(failed) == [5]
    assert tried[:2] == [(0, 8), (0, 4)]
