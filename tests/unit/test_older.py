from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.config_serve import CanaryConfig, ServeConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.observe import Made
from flts_ray.serve.older import asked_length, older_answer, older_question, parse_older
from flts_ray.serve.predictor import Question
from tests.calling import call
from tests.served import HORIZON, plain_contract, served, stamps, transparent

WIDE = plain_contract(targets=("down", "up"))
AHEAD = plain_contract(targets=("down",), known_future=("temp",), past=("wind",))


def ask(model: ServedModel, **body: Any) -> tuple[Question, tuple[str, ...]]:
    request = parse_older(orjson.dumps(body), 16)
    return older_question(request, asked_length(request, {}), model, 200)


def table(count: int = 30, **columns: Any) -> dict[str, Any]:
    made = {"time": stamps(count), "down": [float(i) for i in range(count)]}
    return {"index_col": "time", "data": {**made, **columns}}


def ahead(**columns: Any) -> dict[str, Any]:
    """30 hours, and the rows of the horizon."""
    count = 30 + HORIZON
    given = {
        "down": [float(i % 7) for i in range(30)] + [None] * HORIZON,
        "temp": [float(i) for i in range(count)],
        "wind": [i / 2 for i in range(30)] + [None] * HORIZON,
    }
    return table(count, **{**given, **columns})


def refused(model: ServedModel, **body: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        ask(model, **body)
    return caught.value


def test_every_target_column_is_forecast() -> None:
    model = replace(served(transparent(WIDE, ("a/down", "a/up", "b/up"))), run_id="run")
    question, columns = ask(model, **table(up=[1.0] * 30, rnti=[7.0] * 30), inference_length=2)
    made = model.fitted.forecast(question.windows)
    got = older_answer(question, columns, made, model, "forecast")
    assert got == {
        "status": "SUCCESS",
        "identifier": "demo",
        "run_id": "run",
        "req_id": "forecast",
        "cached": False,
        "predictions": [
            {"ts": stamps(31)[30], "down": 29.0, "up": 1.0},
            {"ts": stamps(32)[31], "down": 29.0, "up": 1.0},
        ],
    }


def test_a_column_means_the_only_series_of_its_name() -> None:
    model = served(transparent(WIDE, ("a/down", "a/up", "b/up")))
    question, _ = ask(model, **table(up=[1.0] * 30))
    assert question.windows.ids == ("a/down", "up")
    np.testing.assert_array_equal(question.windows.scale, [1.0, np.nan])


def test_one_target_and_one_series_belong_together() -> None:
    model = served(transparent(plain_contract(targets=("down",)), ("cell",)))
    question, _ = ask(model, **table())
    assert question.windows.ids == ("cell",)


def test_covariates_ahead_come_from_rows_without_targets() -> None:
    model, body = served(transparent(AHEAD, ("cell",))), ahead()
    question, _ = ask(model, **body)
    np.testing.assert_array_equal(question.windows.future[0, -HORIZON:, -1], np.arange(30.0, 36.0))
    assert question.windows.past[0, -1, 0] == 14.5
    body["data"]["down"][-1] = 1.0
    with pytest.raises(DataError, match="6 steps ahead"):
        ask(model, **body)


BAD: Sequence[tuple[dict[str, Any], str, str]] = [
    ({"index_col": "t", "data": {}}, "data", "none of its columns is a target"),
    ({"index_col": "time"}, "data", "send the history as `data`"),
    ({"index_col": "time", "data": None}, "data", "send the history as `data`"),
    ({"data": {"t": stamps(30), "down": [1.0] * 30}}, "index_col", "none of ts, timestamp,"),
    ({"index_col": "x", "data": {"down": [1.0]}}, "index_col", "'x' is no column"),
    (table(time=[]), "data.time", "must hold ISO 8601 stamps"),
    (table(time=[*stamps(29), "9999-12-31"]), "data.time[29]", "lies outside the years"),
    (table(time=[*stamps(29), stamps(1)[0]]), "data.time", f"in more than one row ({stamps(1)[0]}"),
    (table(rnti=[1.0]), "data.rnti", "1 values for 30 stamps"),
    (table(down=[1.0] * 28 + ["2", None]), "data.down", "must hold numbers"),
    ({**table(), "inference_length": 0}, "inference_length", ">= 1"),
    ({**table(), "inference_length": 10_001}, "inference_length", "<= 10000"),
    ({**table(), "inference_length": "3"}, "inference_length", "Expected `int | null`"),
    ({**table(), "index_col": 3}, "index_col", "Expected `str | null`"),
    (table(time=[1.0] * 30), "data.time", "must hold ISO 8601 stamps"),
    (table(time=["x", *stamps(29)]), "data.time[0]", "'x' is no ISO 8601 stamp"),
    (table(down=["a"] * 30), "data.down", "must hold numbers"),
    (table(down=[1.0] * 29), "data.down", "29 values for 30 stamps"),
    (table(down=[1e35] * 30), "data.down[0]", "lies beyond"),
    (table(20), "data.down", "got 20: 4 are missing"),
    (table(300), "data.time", "last 200 at most"),
    ({**table(), "inference_length": 7}, "inference_length", "more than the model's 6"),
]


@pytest.mark.parametrize(("body", "field", "message"), BAD)
def test_a_bad_table_names_the_column(body: dict[str, Any], field: str, message: str) -> None:
    error = refused(served(transparent(WIDE)), **body)
    assert error.field == field
    assert message in str(error)
    assert str(error).startswith(f"{field}: ")


def test_a_missing_covariate_is_named() -> None:
    contract = plain_contract(targets=("down",), past=("wind",))
    assert refused(served(transparent(contract)), **table()).field == "data.wind"


@given(st.permutations(range(30 + HORIZON)))
def test_rows_may_come_in_any_order(rows: list[int]) -> None:
    model, body = served(transparent(AHEAD, ("cell",))), ahead()
    wanted, _ = ask(model, **body)
    mixed = {name: [values[i] for i in rows] for name, values in body["data"].items()}
    found, _ = ask(model, index_col="time", data=mixed)
    for name in ("y", "observed", "past", "future", "scale", "origin_us"):
        one, other = getattr(found.windows, name), getattr(wanted.windows, name)
        np.testing.assert_array_equal(one, other)


@given(st.permutations(range(30 + HORIZON)), st.integers(0, 29), st.integers(30, 29 + HORIZON))
def test_a_refusal_names_the_row_as_it_was_sent(rows: list[int], past: int, later: int) -> None:
    model = served(transparent(AHEAD, ("cell",)))
    for column, row, value in (("down", past, 1e35), ("temp", later, None)):
        data = ahead()["data"]
        data[column][row] = value
        mixed = {name: [values[i] for i in rows] for name, values in data.items()}
        error = refused(model, index_col="time", data=mixed)
        assert error.field == f"data.{column}[{rows.index(row)}]"


def test_every_stamp_that_comes_twice_is_named_and_many_are_cut() -> None:
    model, times = served(transparent(WIDE)), stamps(30)
    one_hour_on = times[3].replace("Z", "+00:00")
    error = refused(model, **table(time=[*times[:28], one_hour_on, times[7]]))
    assert f"2 stamps stand in more than one row ({times[3]}, {times[7]});" in str(error)
    error = refused(model, **table(time=times[:15] * 2))
    assert f"{times[4]}, ...)" in str(error)
    assert times[5] not in str(error)


@pytest.mark.parametrize(
    ("index_col", "columns", "used"),
    [
        (None, ("date", "time", "timestamp", "ts"), "ts"),
        (None, ("date", "time", "timestamp"), "timestamp"),
        (None, ("date", "time"), "time"),
        (None, ("date",), "date"),
        ("", ("date",), "date"),
        ("hour", ("date", "time"), "time"),
        ("hour", ("hour", "ts"), "hour"),
    ],
)
def test_the_column_of_the_stamps(
    index_col: str | None, columns: tuple[str, ...], used: str
) -> None:
    first = {name: stamps(30, 3_600_000_000 * 24 * i) for i, name in enumerate(columns, 1)}
    model, down = served(transparent(WIDE)), [1.0] * 30
    question, _ = ask(model, index_col=index_col, data={**first, "down": down})
    left_out, _ = ask(model, data={"ts": first[used], "down": down})
    assert question.windows.origin_us == left_out.windows.origin_us


def test_a_stamp_without_a_zone_is_utc_in_every_contract() -> None:
    model = served(transparent(plain_contract(targets=("down",), time_zone="Asia/Tokyo")))
    wanted, _ = ask(model, **table())
    for zone in ("", "+00:00"):
        question, _ = ask(model, **table(time=[t.replace("Z", zone) for t in stamps(30)]))
        assert question.windows.origin_us == wanted.windows.origin_us
    question, _ = ask(model, **table(time=[t.replace("Z", "+09:00") for t in stamps(30)]))
    assert question.windows.origin_us == wanted.windows.origin_us - 9 * 3_600_000_000


@pytest.mark.parametrize(
    ("query", "sent", "steps"),
    [({}, None, 1), ({}, 3, 3), ({"inference_length": "2"}, 3, 2),
     ({"inference_length": "10000"}, None, 10_000), ({"other": "2"}, None, 1)],
)  # fmt: skip
def test_the_query_decides_on_the_steps_then_the_body(
    query: dict[str, str], sent: int | None, steps: int
) -> None:
    request = parse_older(orjson.dumps({**table(), "inference_length": sent}), 16)
    assert asked_length(request, query) == steps


@pytest.mark.parametrize("given", ["", "0", "10001", "-1", "1.5", "x", "null", "\u0664", "9" * 30])
def test_a_query_that_is_no_number_of_steps_is_refused(given: str) -> None:
    request = parse_older(orjson.dumps(table()), 16)
    with pytest.raises(DataError) as caught:
        asked_length(request, {"inference_length": given})
    assert caught.value.field == "inference_length"


def test_fields_that_are_not_known_are_ignored() -> None:
    model = served(transparent(WIDE))
    wanted, _ = ask(model, **table())
    question, _ = ask(model, **table(), horizon=7, user={"a": [{}, None]}, series="x")
    np.testing.assert_array_equal(question.windows.y, wanted.windows.y)
    assert question.horizon == wanted.horizon == 1


def test_value_stands_for_the_only_target() -> None:
    model = served(transparent(plain_contract(targets=("down",)), ("a/down", "b/up")))
    rising = [float(i) for i in range(30)]
    question, columns = ask(model, data={"ts": stamps(30), "value": rising})
    assert question.windows.ids == ("a/down",)
    made = model.fitted.forecast(question.windows)
    (row,) = older_answer(question, columns, made, model, "f")["predictions"]
    assert row == {"ts": stamps(31)[30], "value": 29.0}
    huge = refused(model, data={"ts": stamps(30), "value": [*rising[:29], 1e35]})
    assert huge.field == "data.value[29]"
    assert refused(model, data={"ts": stamps(20), "value": rising[:20]}).field == "data.value"


def test_value_is_another_column_beside_the_target() -> None:
    model = served(transparent(plain_contract(targets=("down",))))
    _, columns = ask(model, **table(value=["x"] * 30))
    assert columns == ("down",)


@pytest.mark.parametrize(
    "contract", [WIDE, plain_contract(targets=("down",), past=("value",))], ids=["two", "covariate"]
)
def test_value_is_no_target_of_such_a_model(contract: Contract) -> None:
    error = refused(served(transparent(contract)), data={"ts": stamps(30), "value": [1.0] * 30})
    assert (error.field, "none of its columns is a target" in str(error)) == ("data", True)


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.made: list[Made] = []

    def request(self, route: str, status: int, seconds: float) -> None:
        assert (route, status) == ("/predict", 200)

    def forecast(self, made: Made) -> None:
        self.made.append(made)


@pytest.mark.parametrize("run_id", ["a3f9", ""])
def test_an_answer_over_http_names_run_and_forecast(run_id: str) -> None:
    heard, model = Heard(), replace(served(transparent(WIDE), "7"), run_id=run_id)

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        body = {**table(), "inference_length": 4}
        return await http.post("/predict?inference_length=3&cache=no", json=body)

    answer = call(work, model, observer=heard)
    (told,) = heard.made
    assert answer.headers["x-flts-model-version"] == "7"
    assert answer.json() == {
        "status": "SUCCESS",
        "identifier": "demo",
        "run_id": run_id,
        "predictions": [{"ts": ts, "down": 29.0} for ts in stamps(33)[30:]],
        "req_id": told.forecast_id,
        "cached": False,
    }
    assert told.horizon == 3


CELLS = st.none() | st.floats() | st.integers() | st.sampled_from(["", "x", *stamps(40)])
CHANGES = st.dictionaries(
    st.sampled_from(["ts", "time", "down", "temp", "wind", "value", "x"]),
    st.lists(CELLS, max_size=40) | st.none() | st.text(max_size=3) | st.permutations(stamps(36)),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.sampled_from(["", "?inference_length=2", "?inference_length=&a=" + "&b=" * 30]))
def test_no_table_makes_a_server_error(changes: dict[str, Any], query: str) -> None:
    content = json.dumps({"data": {**ahead()["data"], **changes}}).encode()
    model = served(transparent(AHEAD, ("cell",)))
    answer = call(lambda http: http.post("/predict" + query, content=content), model)
    assert answer.status_code in (200, 422)
    if answer.status_code == 422:
        assert answer.json()["error"]["field"]


@pytest.mark.parametrize("deep", [b"[" * 100_000, b"[" * 900 + b"]" * 900])
def test_an_unknown_field_may_not_be_a_trap(deep: bytes) -> None:
    content = orjson.dumps(table())[:-1] + b', "x": ' + deep + b"}"
    answer = call(lambda http: http.post("/predict", content=content), served(transparent(WIDE)))
    assert answer.status_code in (200, 422)


@pytest.mark.parametrize("shift", [1.0, float("nan")])
def test_a_table_is_answered_by_whoever_its_first_target_belongs_to(shift: float) -> None:
    named = [f"n{i}" for i in range(99)]
    mine = next(name for name in named if belongs_to_challenger(f"cell/{name}", 0.5))
    other = next(name for name in named if not belongs_to_challenger(f"cell/{name}", 0.5))
    contract, known = plain_contract(targets=(mine, other)), (f"cell/{mine}", f"cell/{other}")
    champion = served(transparent(contract, known), "1")
    challenger = served(transparent(contract, known, shift=shift), "2")
    values = [float(i) for i in range(30)]

    async def work(http: httpx.AsyncClient) -> list[tuple[str, float, float]]:
        seen = []
        for columns in ((mine, other), (other, mine)):
            data = {"t": stamps(30), **dict.fromkeys(columns, values)}
            answer = await http.post("/predict", json={"index_col": "t", "data": data})
            row = answer.json()["predictions"][0]
            seen.append((answer.headers["x-flts-model-version"], row[mine], row[other]))
        return seen

    limits = ServeConfig(canary=CanaryConfig(share=0.5))
    first, second = call(work, champion, limits, challenger=challenger)
    # What the challenger cannot answer, the champion does.
    assert first == (("2", 30.0, 30.0) if shift == 1.0 else ("1", 29.0, 29.0))
    assert second == ("1", 29.0, 29.0)
