"""The API document and its page, without anything from outside.

Design choices: schemas come from the structs that decode the bodies, so the document cannot differ
from the code; scripts and styles of the page come from an installed package, because it must work
where no content network is reachable; addresses in it are relative, so that it works under any
prefix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flts_ray import __version__
from flts_ray.serve import schemas, wire_kserve
from flts_ray.serve.asgi import ARROW, JSON, MSGPACK

_REFERENCE = "#/components/schemas/{name}"
_WHY = {
    401: "No token, or one that is not known",
    403: "The token's scope does not reach here",
    404: "No such model",
    413: "The body is too large",
    415: "A body of a kind that this route does not read",
    422: "The request cannot be used; `field` says where",
    429: "Too many requests wait, or the token asks too often; `retry-after` says when to repeat",
    500: "The server failed; its log tells why under the request id",
    503: "No champion is loaded, or the data of a series cannot be read now. Without a champion no "
    "plain forecast stands in, because step, season, time zone, units and levels are in its "
    "contract",
    504: "The deadline passed before the forecast was made",
}
_ASKED = (401, 403, 413, 422, 429, 500, 503, 504)
_HEADERS = (
    ("x-request-timeout-ms", {"type": "number", "exclusiveMinimum": 0},
     "Give up after so many milliseconds with 504."),
    ("x-allow-degraded", {"type": "string", "enum": ["true", "false"]},
     "Rather a plain forecast, marked `degraded`, than 429, 503 or 504."),
    ("x-request-id", {"type": "string"},
     "Sent back and logged, if it is 1 to 128 letters, digits, dots, colons, dashes."),
)  # fmt: skip
_BULK_QUERY = (
    ("horizon", {"type": "integer", "minimum": 1, "maximum": 9999999},
     "For bodies that do not say it."),
    ("quantiles", {"type": "string", "pattern": r"^0?\.\d+(,0?\.\d+)*$"},
     "The same: levels with commas between."),
)  # fmt: skip
_PREDICT_QUERY = (
    ("inference_length", {"type": "integer", "minimum": 1, "maximum": schemas.MAX_LENGTH},
     "In place of the body's."),
)  # fmt: skip
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon-32x32.png"></head>
<body><div id="swagger-ui"></div><script src="docs/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "openapi.json", dom_id: "#swagger-ui", validatorUrl: null}})</script>
</body></html>
"""


@dataclass(frozen=True)
class Described:
    """One route of the document. `bodies` and `answers`: struct by media type."""

    method: str
    path: str
    summary: str
    answers: dict[bytes, Any]
    bodies: dict[bytes, Any] = field(default_factory=dict)
    statuses: Sequence[int] = (401, 403, 429, 500)
    error: Any = schemas.ErrorAnswer
    headers: bool = False
    query: Sequence[tuple[str, dict[str, Any], str]] = ()
    told: str = ""


_OPEN = (500,)
ROUTES: tuple[Described, ...] = (
    Described("get", "/healthz", "The process is alive", {JSON: schemas.Health}, statuses=_OPEN),
    Described(
        "get", "/readyz", "A champion is loaded", {JSON: schemas.Readiness}, statuses=(500, 503)
    ),
    Described(
        "get", "/v1/model", "The champion and its contract", {JSON: schemas.ModelAnswer},
        statuses=(401, 403, 429, 500, 503),
    ),
    Described(
        "post", "/v1/forecast", "Forecast one or many series, all or none",
        {JSON: schemas.ForecastAnswer, MSGPACK: schemas.ForecastAnswer},
        {JSON: schemas.ForecastRequest, MSGPACK: schemas.PackedForecastRequest},
        (*_ASKED, 415), headers=True,
        told="While a challenger is tried as a canary, the id of the first series says which "
        "model answers the whole request; it is the same one every time.",
    ),
    Described(
        "post", "/v1/forecast:batch", "Forecast thousands of series, each with its own status",
        {JSON: schemas.BulkAnswer, MSGPACK: bytes, ARROW: bytes},
        {JSON: schemas.BulkRequest, MSGPACK: schemas.PackedBulkRequest, ARROW: bytes},
        _ASKED, headers=True, query=_BULK_QUERY,
        told="The champion answers, never a canary: an answer does not mix versions, and so many "
        "series are never all of one share. With `x-allow-degraded` each series that finds no room "
        "or no time is answered by its last season and marked; 429 remains for a replica that "
        "holds too many such bodies, and what the model refuses is an error still.",
    ),
    Described(
        "post", "/v1/timeseries/forecast", "Forecast by KServe's time-series protocol",
        {JSON: wire_kserve.TimeSeriesAnswer}, {JSON: wire_kserve.TimeSeriesRequest},
        (*_ASKED, 404), headers=True, error=wire_kserve.TimeSeriesErrorAnswer,
        told="While a challenger is tried as a canary, the name of the first input says which "
        "model answers the whole request.",
    ),
    Described(
        "get", "/v1/timeseries/models", "Names of the models", {JSON: list[str]},
        statuses=(401, 403, 429, 500, 503),
    ),
    Described(
        "post", "/predict", "Forecast the target columns of a table (older body)",
        {JSON: schemas.PredictAnswer}, {JSON: schemas.PredictRequest}, _ASKED, headers=True,
        query=_PREDICT_QUERY,
        told="Each target column of the table is forecast under its own name. While a challenger "
        "is tried as a canary, the series of the first target column says which model answers; "
        "`x-flts-model-version` tells.",
    ),
    Described(
        "get", "/v1/admin/state", "How busy this replica is (scope admin)",
        {JSON: dict[str, Any]},
    ),
)  # fmt: skip


def openapi(title: str, locked: bool) -> dict[str, Any]:
    """The document. locked: calls need a token."""
    kinds = [one for route in ROUTES for one in (*route.answers.values(), *route.bodies.values(),
                                                 route.error) if one is not bytes]  # fmt: skip
    _, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    for name, one in (("BulkRequest", "SeriesRequest"), ("PackedBulkRequest", "PackedSeries")):
        told = "Read as one series; what cannot be read is answered with its error."
        items = [{"$ref": _REFERENCE.format(name=one)}, {"type": "object", "description": told}]
        components[name]["properties"]["series"]["items"] = {"anyOf": items}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": __version__,
            "description": "Forecasts with quantiles from the champion of the model registry.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if locked:
        scheme = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"token": scheme}
        document["security"] = [{"token": []}]
        for path in ("/healthz", "/readyz"):
            paths[path]["get"]["security"] = []
    return document


def _operation(route: Described) -> dict[str, Any]:
    answers = {
        "200": {"description": "Done", "content": _content(route.answers)},
        **{
            str(status): {
                "description": _WHY[status],
                "content": _content({JSON: _error_of(route, status)}),
            }
            for status in sorted(route.statuses)
        },
    }
    found: dict[str, Any] = {"summary": route.summary, "responses": answers}
    if route.told:
        found["description"] = route.told
    parameters = [
        {"name": name, "in": place, "required": False, "schema": schema, "description": told}
        for place, given in (("header", _HEADERS if route.headers else ()), ("query", route.query))
        for name, schema, told in given
    ]
    if parameters:
        found["parameters"] = parameters
    if route.bodies:
        found["requestBody"] = {"required": True, "content": _content(route.bodies)}
    return found


def _error_of(route: Described, status: int) -> Any:
    """Who is let in is decided before any route is asked."""
    return schemas.ErrorAnswer if status in (401, 403, 500) else route.error


def _content(kinds: dict[bytes, Any]) -> dict[str, Any]:
    return {media.decode(): {"schema": _schema(kind)} for media, kind in kinds.items()}


def _schema(kind: Any) -> dict[str, Any]:
    if kind is bytes:
        return {"type": "string", "format": "binary"}
    (found,), _ = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    return found


def page(title: str) -> bytes:
    """The page that shows the document."""
    return PAGE.format(title=json.dumps(title)[1:-1].replace("<", "")).encode()
