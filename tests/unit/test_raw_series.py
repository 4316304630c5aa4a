from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.jobs.histories import About, data_at, histories
from flts_ray.jobs.raw_series import RawSeries
from flts_ray.panel import Contract
from flts_ray.serve.history import parse_stamps
from flts_ray.serve.regular import Block
from flts_ray.serve.rows import AskedSeries
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_input
from tests.served import stamps

ROLES = {"event": "known_future", "lagged": "past", "number": "static"}
CONTRACT = Contract(
    freq="1h", season=24, max_gap=3, known_future=("event",), past=("lagged",), static=("number",)
)
ABOUT = About(horizon=4, lookback=24, contract=CONTRACT)


def config_of(**data: Any) -> Config:
    columns = {"time": "ds", "id": "unique_id", "covariates": ROLES, "frequency": "1h"}
    return parse_config({"name": "demo", "data": {"path": "unused.csv", **columns, **data}})


def maybe(rng: np.random.Generator, value: object, share: float) -> object:
    return "" if rng.random() < share else value


def write_rough(path: Path, seed: int) -> None:
    """Series of all lengths with gaps, repeats, rows out of order and some known ahead."""
    rng = np.random.default_rng(seed)
    every = stamps(120)
    rows = []
    for name in ("b", "a", "d", "c"):
        length = int(rng.integers(1, 90))
        for i in range(length + int(rng.integers(0, 7))):
            if rng.random() < 0.95 or i == 0:
                late = i >= length
                y = "" if late else maybe(rng, rng.normal(), 0.1 if i else 0)
                event, lagged = maybe(rng, i, 0.2), maybe(rng, -i, 0.6)
                for _ in range(1 + int(rng.random() < 0.05)):
                    rows.append((name, every[i], y, event, lagged, maybe(rng, 7, 0.5)))
    if seed % 3:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    lines = ["unique_id,ds,y,event,lagged,number", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def table_of(path: Path, config: Config | None = None) -> pa.Table:
    data = data_at((config or config_of()).data, str(path))
    return pa.concat_tables(
        [read_input(item, data, i * 10**6) for i, item in enumerate(find_inputs(data))]
    )


def one_by_one(asked: object) -> list[AskedSeries]:
    if isinstance(asked, Block):
        return [asked.series(i) for i in range(len(asked))]
    assert isinstance(asked, list)
    return asked


@pytest.mark.parametrize("seed", range(12))
def test_series_are_cut_as_the_bodies_of_requests_are(tmp_path: Path, seed: int) -> None:
    write_rough(tmp_path / "rough.csv", seed)
    bodies = histories(config_of(), str(tmp_path / "rough.csv"), ABOUT)
    series = RawSeries(table_of(tmp_path / "rough.csv"), ABOUT)
    part = series.part(0, 9)
    assert (series.count, part.ids, part.refused) == (4, ["a", "b", "c", "d"], {})
    for body, one in zip(bodies, one_by_one(part.asked), strict=True):
        assert (one.id, one.named, one.field) == (body["unique_id"], True, "")
        np.testing.assert_array_equal(one.ds, parse_stamps(body["ds"], "UTC", "ds"))
        assert one.static == body["static"]
        for name, sent in (
            ("y", body["y"]),
            ("event", body["known_future"]["event"]),
            ("lagged", body["past"]["lagged"]),
        ):
            given = one.y if name == "y" else {**one.known_future, **one.past}[name]
            np.testing.assert_array_equal(given, np.array(sent, dtype=float), err_msg=name)


def rows_of(count: int, name: str = "s", begin: int = 0, **columns: Any) -> pa.Table:
    ds = pa.array(stamps(begin + count)[begin:]).cast(pa.timestamp("us", "UTC"))
    given = {"event": [0.0] * count, "lagged": [1.0] * count, "number": [7.0] * count, **columns}
    y = given.pop("y", [float(i) for i in range(count)])
    order = np.arange(begin, begin + count)
    return pa.table({"unique_id": [name] * count, "ds": ds, "y": y, **given, "order": order})


def test_series_of_one_length_are_one_block() -> None:
    table = pa.concat_tables([rows_of(80, "b"), rows_of(200, "a"), rows_of(20, "c")])
    series = RawSeries(table, ABOUT)
    block = series.part(0, 2).asked
    assert isinstance(block, Block)
    assert block.y.shape == (2, ABOUT.reach + 1)
    assert block.y[:, -1].tolist() == [199.0, 79.0]
    assert isinstance(series.part(0, 3).asked, list)


def assert_same_parts(one: RawSeries, other: RawSeries) -> None:
    assert one.ids == other.ids
    for i in range(one.count):
        have, want = one.part(i, i + 1).asked, other.part(i, i + 1).asked
        assert isinstance(have, Block)
        assert isinstance(want, Block)
        for name in ("y", "ds_us"):
            np.testing.assert_array_equal(getattr(have, name), getattr(want, name))
        for role in ("known_future", "past", "static"):
            columns, expected = getattr(have, role), getattr(want, role)
            for column in expected:
                np.testing.assert_array_equal(columns[column], expected[column])


@pytest.mark.parametrize("names", ["abc", "cab", "aba", "a"])
@pytest.mark.parametrize("doubled", [False, True])
def test_the_order_of_rows_in_a_file_changes_nothing(names: str, doubled: bool) -> None:
    tables = [
        rows_of(60, name, begin=70 * i, y=list(np.sin(np.arange(60.0) + i)))
        for i, name in enumerate(names)
    ]
    if doubled:  # the later of two rows of one stamp counts
        tables.append(rows_of(5, names[0], begin=10, y=[9.0] * 5))
    table = pa.concat_tables(tables)
    table = table.set_column(table.schema.get_field_index("order"), "order",
                             pa.array(np.arange(len(table))))  # fmt: skip
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    assert_same_parts(RawSeries(table, ABOUT), RawSeries(shuffled, ABOUT))


def test_histories_of_one_distance_are_not_copied_and_cannot_be_written() -> None:
    table = pa.concat_tables([rows_of(80, name) for name in "abc"])
    block = RawSeries(table, ABOUT).part(0, 3).asked
    assert isinstance(block, Block)
    assert not block.y.flags.owndata
    assert not block.y.flags.writeable
    np.testing.assert_array_equal(block.y[:, -1], [79.0] * 3)


def test_a_series_without_any_value_is_refused_alone() -> None:
    empty = rows_of(3, "b", y=[np.nan] * 3)
    series = RawSeries(pa.concat_tables([rows_of(30, "a"), empty, rows_of(30, "c")]), ABOUT)
    part = series.part(0, 3)
    assert list(part.at) == [0, 2]
    assert str(part.refused[1]).startswith("y: every value is missing")
    later = series.part(1, 3)
    assert (list(later.at), list(later.refused), later.ids) == ([1], [0], ["b", "c"])


def test_labels_become_their_codes_and_a_missing_one_is_not_sent() -> None:
    contract = replace(CONTRACT, categories=(("rural", "urban"),))
    given = {"a": "urban", "b": None, "c": "polar"}
    tables = [
        rows_of(30, name, number=pa.array([label] * 30, pa.string()))
        for name, label in given.items()
    ]
    series = RawSeries(pa.concat_tables(tables), replace(ABOUT, contract=contract))
    found = [one.static for one in one_by_one(series.part(0, 3).asked)]
    assert found == [{"number": 1.0}, {}, {"number": -1.0}]


def test_a_static_column_of_the_other_kind_is_told() -> None:
    labelled = replace(ABOUT, contract=replace(CONTRACT, categories=(("a",),)))
    with pytest.raises(DataError, match="number: numbers, but the model knows labels"):
        RawSeries(rows_of(30), labelled)
    text = rows_of(30, number=pa.array(["a"] * 30))
    with pytest.raises(DataError, match="number: text, but the model knows numbers"):
        RawSeries(text, ABOUT)


def test_daily_rows_ahead_keep_their_place_over_a_change_of_the_clock(tmp_path: Path) -> None:
    days = [f"2024-03-{day:02} 00:00" for day in range(1, 32)]  # the clock changes on the 31st
    lines = [f"s,{ds},{i},0,0,7" for i, ds in enumerate(days[:29])]
    lines += [f"s,{ds},,{i},,7" for i, ds in enumerate([*days[29:], "2024-04-01"], 1)]
    path = tmp_path / "daily.csv"
    path.write_text("\n".join(["unique_id,ds,y,event,lagged,number", *lines]))
    contract = replace(CONTRACT, freq="1D", season=7, time_zone="Europe/Berlin")
    config = config_of(time_zone="Europe/Berlin", frequency="1D")
    series = RawSeries(table_of(path, config), About(3, 7, contract))
    (one,) = one_by_one(series.part(0, 1).asked)
    assert list(one.known_future["event"])[-3:] == [1.0, 2.0, 3.0]
