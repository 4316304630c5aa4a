from __future__ import annotations

import json
import re

from flts_ray.config_serve import ServeConfig
from flts_ray.serve.app import Api, build_app
from flts_ray.serve.docs import openapi
from flts_ray.serve.engine import ModelSlot
from tests.served import KnownSet, known_set, served, transparent

ROUTES = {
    "/healthz", "/readyz", "/v1/model", "/v1/forecast", "/v1/forecast:batch",
    "/v1/timeseries/forecast", "/v1/timeseries/models", "/predict", "/v1/admin/state",
}  # fmt: skip


def app() -> Api:
    data = known_set()
    slot = ModelSlot("demo", ServeConfig())
    slot.install(served(transparent(data.contract, data.ids), known=KnownSet(data)))
    return build_app(slot)


def test_every_route_is_described() -> None:
    document = openapi("demo forecasts", locked=False)
    assert set(document["paths"]) == ROUTES == set(app()._served)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert "security" not in document


def test_the_older_route_tells_its_query_and_what_it_needs() -> None:
    document = openapi("demo forecasts", locked=False)
    parameters = document["paths"]["/predict"]["post"]["parameters"]
    (length,) = [one for one in parameters if one["in"] == "query"]
    assert (length["name"], length["required"]) == ("inference_length", False)
    assert length["schema"] == {"type": "integer", "minimum": 1, "maximum": 10_000}
    request, answer = (
        document["components"]["schemas"][name] for name in ("PredictRequest", "PredictAnswer")
    )
    assert request["required"] == ["data"]
    assert "additionalProperties" not in request
    assert set(answer["required"]) == {
        "status", "identifier", "run_id", "predictions", "req_id", "cached",
    }  # fmt: skip


def test_a_locked_service_says_which_routes_are_open() -> None:
    document = openapi("demo forecasts", locked=True)
    assert document["security"] == [{"token": []}]
    opened = [
        path
        for path, item in document["paths"].items()
        if any(operation.get("security") == [] for operation in item.values())
    ]
    assert opened == ["/healthz", "/readyz"]
