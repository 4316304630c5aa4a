from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.serve.engine import ServedModel
from tests.calling import call
from tests.served import (
    HORIZON,
    LOOKBACK,
    KnownSet,
    known_set,
    plain_contract,
    served,
    stamps,
    transparent,
)

PATH = "/v1/timeseries/forecast"


def one_input(points: int = 30, **changes: Any) -> dict[str, Any]:
    return {
        "type": "univariate_time_series",
        "name": "humidity",
        "series": [float(i) for i in range(points)],
        "frequency": "H",
        "start_timestamp": stamps(1)[0],
        **changes,
    }


def ask(
    *inputs: dict[str, Any], champion: ServedModel | None = None, **changes: Any
) -> httpx.Response:
    body = {
        "model": "demo",
        "inputs": list(inputs),
        "options": {"horizon": 2, "quantiles": [0.1, 0.5]},
        **changes,
    }
    made = champion or served(transparent(plain_contract()), version="7")
    return call(lambda http: http.post(PATH, json=body), made, ServeConfig(max_points=100))


def test_an_answer_has_the_fields_of_the_protocol() -> None:
    answer = ask(one_input(), metadata={"request_id": "mine"}, other_properties=[1])
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("resp_")
    assert body["status"] == "completed"
    assert body["error"] is None
    assert body["model"] == "demo"
    assert isinstance(body["created_at"], int)
    assert body["metadata"] == {"request_id": "mine"}
    (output,) = body["outputs"]
    assert output["id"].startswith("ts_")
    assert output["type"] == "time_series_forecast"
    assert output["status"] == "completed"
    assert output["error"] is None
    (content,) = output["content"]
    assert content == {
        "type": "univariate_time_series",
        "name": "humidity",
        "mean_forecast": [29.0, 29.0],
        "frequency": "H",
        "start_timestamp": stamps(31)[30],
        "quantiles": {"0.1": [29.1, 29.1], "0.5": [29.5, 29.5]},
        "cold_start": True,
        "step": 1,
    }


def test_without_quantiles_only_the_mean_is_answered() -> None:
    answer = ask(one_input(), options={"horizon": HORIZON, "other": 1})
    (content,) = answer.json()["outputs"][0]["content"]
    assert content["quantiles"] is None
    assert len(content["mean_forecast"]) == HORIZON


def test_a_bad_input_does_not_refuse_the_others() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        (one_input(3), "series"),
        (one_input(200), "series"),
        (one_input(frequency="D"), "frequency"),
        (one_input(frequency="Y"), "frequency"),
        (one_input(start_timestamp="now"), "start_timestamp"),
        (one_input(series=[[1.0]] * 30), "series[0]"),
        (one_input(type="multivariate_time_series"), "series"),
        (one_input(type="multivariate_time_series", series=[[1.0]] * 29 + [[]]), "series[29]"),
        (one_input(series=[1e31] * 30), "series[0]"),
        (one_input(known_future={"x": [1.0]}), "known_future.x"),
    ]
    body = ask(one_input(), *(wrong for wrong, _ in bad)).json()
    assert body["status"] == "partial"
    assert body["outputs"][0]["status"] == "completed"
    for i, (_, field) in enumerate(bad, 1):
        output = body["outputs"][i]
        assert output["status"] == "error"
        assert output["content"] == []
        assert output["error"]["param"] == f"inputs[{i}].{field}"
        assert output["error"]["message"].startswith(f"inputs[{i}].{field}")
        assert output["error"]["type"] == "BadRequestError"
        assert output["error"]["code"] == "422"


def test_when_every_input_fails_the_whole_answer_says_so() -> None:
    body = ask(one_input(3)).json()
    assert body["status"] == "error"
    assert body["error"] == body["outputs"][0]["error"]


def test_a_multivariate_input_is_forecast_variable_by_variable() -> None:
    rows = [[float(i), 100.0 + i] for i in range(30)]
    output = ask(one_input(type="multivariate_time_series", series=rows)).json()["outputs"][0]
    (content,) = output["content"]
    assert content["mean_forecast"] == [[29.0, 129.0], [29.0, 129.0]]
    assert content["quantiles"]["0.1"] == [[29.1, 129.1], [29.1, 129.1]]


def test_a_known_name_is_no_cold_start() -> None:
    (content,) = ask(one_input(name="s1")).json()["outputs"][0]["content"]
    assert content["cold_start"] is False


def test_a_step_of_several_units_is_told() -> None:
    model = served(transparent(plain_contract(freq="30min", season=48)))
    refused = ask(one_input(frequency="T"), champion=model).json()
    assert "30min" in refused["error"]["message"]
    body = ask(one_input(frequency="minute", step=30), champion=model).json()
    assert body["outputs"][0]["content"][0]["step"] == 30
    assert body["outputs"][0]["content"][0]["frequency"] == "minute"


def test_without_a_start_the_history_ends_now() -> None:
    answer = ask(one_input(start_timestamp=None)).json()
    start = np.datetime64(answer["outputs"][0]["content"][0]["start_timestamp"].rstrip("Z"))
    ahead = start - np.datetime64(answer["created_at"], "s")
    assert np.timedelta64(0, "s") <= ahead <= np.timedelta64(3600, "s")


def test_covariates_travel_in_fields_of_their_own() -> None:
    data = known_set()
    model = served(transparent(data.contract, data.ids), known=KnownSet(data))
    asked = one_input(
        LOOKBACK,
        known_future={"event": [2.0] * (LOOKBACK + HORIZON)},
        past={"lagged": [1.0] * LOOKBACK},
        static={"number": 1},
    )
    (content,) = ask(asked, champion=model).json()["outputs"][0]["content"]
    assert content["mean_forecast"] == [LOOKBACK + 1.0] * 2


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "timesfm"}, 404, None),
        ({"inputs": []}, 422, "inputs"),
        ({"options": {}}, 422, "options.horizon"),
        ({"options": {"horizon": 7}}, 422, "options.horizon"),
        ({"options": {"horizon": 0}}, 422, "options.horizon"),
        ({"options": {"horizon": 1, "quantiles": [0.999]}}, 422, "options.quantiles[0]"),
        ({"inputs": [{"type": "univariate"}]}, 422, "inputs[0].type"),
        ({"inputs": [one_input(frequency="5min")]}, 422, "inputs[0].frequency"),
        ({"metadata": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, 422, "body"),
    ],
)
def test_a_request_that_is_none_is_refused_in_the_protocols_shape(
    changes: dict[str, Any], status: int, param: str | None
) -> None:
    answer = ask(one_input(), **changes)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "param", "type"}
    assert error["param"] == param
    assert error["code"] == str(status)


def test_the_models_are_listed() -> None:
    model = served(transparent(plain_contract()))
    answer = call(lambda http: http.get("/v1/timeseries/models"), model)
    assert answer.json() == ["demo"]
