from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from flts_ray.config_serve import CanaryConfig, ServeConfig
from flts_ray.errors import DataError
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.older import older_answer, older_question
from flts_ray.serve.predictor import Question
from flts_ray.serve.schemas import PredictRequest, parse_body
from tests.calling import call
from tests.served import HORIZON, plain_contract, served, stamps, transparent

WIDE = plain_contract(targets=("down", "up"))


def ask(model: ServedModel, **body: Any) -> tuple[Question, tuple[str, ...]]:
    return older_question(parse_body(PredictRequest, orjson.dumps(body)), model, 200)


def table(count: int = 30, **columns: Any) -> dict[str, Any]:
    made = {"time": stamps(count), "down": [float(i) for i in range(count)]}
    return {"index_col": "time", "data": {**made, **columns}}


def test_every_target_column_is_forecast() -> None:
    model = served(transparent(WIDE, ("a/down", "a/up", "b/up")))
    question, columns = ask(model, **table(up=[1.0] * 30, rnti=[7.0] * 30), inference_length=2)
    made = model.fitted.forecast(question.windows)
    got = older_answer(question, columns, made, model, "run")
    assert got == {
        "status": "SUCCESS",
        "run_id": "run",
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
    contract = plain_contract(targets=("down",), known_future=("temp",), past=("wind",))
    model = served(transparent(contract, ("cell",)))
    count = 30 + HORIZON
    body = table(
        count,
        down=[1.0] * 30 + [None] * HORIZON,
        temp=[float(i) for i in range(count)],
        wind=[2.0] * 30 + [None] * HORIZON,
    )
    question, _ = ask(model, **body)
    np.testing.assert_array_equal(question.windows.future[0, -HORIZON:, -1], np.arange(30.0, 36.0))
    assert question.windows.past[0, -1, 0] == 2.0
    body["data"]["down"][-1] = 1.0
    with pytest.raises(DataError, match="6 steps ahead"):
        ask(model, **body)


BAD: Sequence[tuple[dict[str, Any], str, str]] = [
    ({"index_col": "t", "data": {}}, "data", "none of its columns is a target"),
    ({**table(), "index_col": "t"}, "index_col", "names no column"),
    (table(time=[1.0] * 30), "data.time", "must hold ISO 8601 stamps"),
    (table(time=["x", *stamps(29)]), "data.time[0]", "'x' is no ISO 8601 stamp"),
    (table(down=["a"] * 30), "data.down", "must hold numbers"),
    (table(down=[1.0] * 29), "data.down", "29 values for 30 stamps"),
    (table(down=[1e35] * 30), "data.down[0]", "lies beyond"),
    (table(20), "data.down", "got 20: 4 are missing"),
    (table(300), "data.time", "last 200 at most"),
    ({**table(), "inference_length": 7}, "inference_length", "more than the model's 6"),
    ({**table(), "horizon": 7}, "horizon", "not permitted"),
]


@pytest.mark.parametrize(("body", "field", "message"), BAD)
def test_a_bad_table_names_the_column(body: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ask(served(transparent(WIDE)), **body)
    assert caught.value.field == field
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{field}: ") or field == "index_col"


def test_a_missing_covariate_is_named() -> None:
    contract = plain_contract(targets=("down",), past=("wind",))
    with pytest.raises(DataError) as caught:
        ask(served(transparent(contract)), **table())
    assert caught.value.field == "data.wind"


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
