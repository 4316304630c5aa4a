"""What goes over the wire: request and answer bodies, the one source of the published schemas.

Design choices: bodies are decoded by msgspec straight into these structs, strictly (no text
where a number belongs), because that is several times faster than parsing JSON into objects
first; unknown fields are refused, so nothing deeper than a struct can be sent; shapes that depend
on the champion are checked in `predictor.py`. Answers are written by orjson; their structs only
describe them in the API document.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from flts_ray.errors import DataError

MAX_SERIES = 10_000
"""Beyond any `serve.max_series`: one more object costs more than the bytes it is sent in."""
MAX_COLUMNS = 1_000
MAX_DEPTH = 16
MAX_LENGTH = 10_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.S)
_OPEN, _CLOSE = [ord("["), ord("{")], [ord("]"), ord("}")]
_PLACE = re.compile(r"^(.*?)(?: - at `(?:key` in `)?\$(.*)`)?$", re.S)

Number = float
Column = list[float | None]
Stamps = list[str]
Name = Annotated[str, Meta(min_length=1, max_length=500)]
Columns = Annotated[dict[Name, Column], Meta(max_length=MAX_COLUMNS)]
Packed = list[float | None] | bytes
PackedColumns = Annotated[dict[Name, Packed], Meta(max_length=MAX_COLUMNS)]
Statics = Annotated[dict[Name, float | str], Meta(max_length=MAX_COLUMNS)]
Horizon = Annotated[
    int, Meta(ge=1, le=1_000_000, description="Steps wanted, at most the model's; all by default.")
]
Levels = Annotated[
    list[float],
    Meta(max_length=200, description="Levels within the model's; both usual bands by default."),
]
Cells = list[str | float | None]
Why = Literal["overloaded", "expired", "unavailable"]
How = Literal["seasonal_naive", "last_forecast"]


class Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A body that is refused when it holds anything that is not described."""


class SeriesHead(Request, frozen=True):
    """What a series has on every wire."""

    unique_id: Annotated[
        Name | None, Meta(description="A name the champion knows brings its scale and bounds.")
    ] = None
    ds: Annotated[
        Stamps | None,
        Meta(description="ISO 8601 stamps; without an offset in the contract's time zone."),
    ] = None
    start: Annotated[
        str | None, Meta(description="First stamp of a history without gaps, in place of `ds`.")
    ] = None
    observed: Annotated[
        list[bool] | None, Meta(description="False marks a value that was filled in.")
    ] = None
    origin: Annotated[
        str | None,
        Meta(description="Without a history: first step to forecast, within the prepared data."),
    ] = None
    static: Annotated[
        Statics, Meta(description="Numbers, or labels where the model's column holds text.")
    ] = {}


class SeriesRequest(SeriesHead, frozen=True):
    """One series: its history, or only the name of a series the champion was trained on."""

    y: Annotated[
        Column | None, Meta(description="Values at the stamps; null is a missing value.")
    ] = None
    known_future: Annotated[
        Columns,
        Meta(description="Values at each stamp of the history, then at each step of the horizon."),
    ] = {}
    past: Annotated[Columns, Meta(description="Values at each stamp of the history.")] = {}


class PackedSeries(SeriesHead, frozen=True):
    """A series in msgpack: columns may be little-endian numbers as raw bytes, NaN is missing."""

    y: Packed | None = None
    known_future: PackedColumns = {}
    past: PackedColumns = {}
    dtype: Annotated[Literal["float32", "float64"], Meta(description="What raw bytes are.")] = (
        "float64"
    )


class ForecastRequest(SeriesRequest, frozen=True):
    """Many series in `series`, or the fields of a single one at the top level."""

    series: Annotated[list[SeriesRequest], Meta(max_length=MAX_SERIES)] | None = None
    horizon: Horizon | None = None
    quantiles: Levels | None = None

    @property
    def alone(self) -> SeriesRequest:
        """The single series at the top level."""
        return self


class BulkRequest(Request, frozen=True):
    """Many series; one that cannot be used is answered with its error, the others with theirs."""

    series: Annotated[list[SeriesRequest], Meta(max_length=MAX_SERIES)]
    horizon: Horizon | None = None
    quantiles: Levels | None = None


class PackedForecastRequest(PackedSeries, frozen=True):
    """The same in msgpack."""

    series: Annotated[list[PackedSeries], Meta(max_length=MAX_SERIES)] | None = None
    horizon: Horizon | None = None
    quantiles: Levels | None = None


class PackedBulkRequest(Request, frozen=True):
    """The same in msgpack."""

    series: Annotated[list[PackedSeries], Meta(max_length=MAX_SERIES)]
    horizon: Horizon | None = None
    quantiles: Levels | None = None


class PredictRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The older body: columns of one table, of which one holds the stamps.

    Fields that are not described are ignored.
    """

    data: Annotated[
        dict[Name, Cells],
        Meta(
            max_length=MAX_COLUMNS,
            description="Columns of one length, rows in any order: stamps, in UTC unless they say "
            "otherwise, targets and covariates; others are ignored. `value` stands for the target "
            "of a model that has only one.",
        ),
    ]
    index_col: (
        Annotated[
            str,
            Meta(
                max_length=500,
                description="Column of the stamps; by default, or where there is no such column, "
                "the first of `ts`, `timestamp`, `time` and `date` that is one.",
            ),
        ]
        | None
    ) = None
    inference_length: (
        Annotated[
            int,
            Meta(ge=1, le=MAX_LENGTH, description="Steps wanted, at most the model's; 1 if null."),
        ]
        | None
    ) = None


class ModelInfo(Struct):
    name: str
    version: str
    kind: str


class Degradation(Struct, omit_defaults=True):
    """Set on an answer that the model did not make; only for callers who allowed it."""

    degraded: bool = False
    degraded_reason: Why | None = None
    degraded_method: How | None = None


class SeriesForecast(Struct):
    unique_id: str
    cold_start: Annotated[bool, Meta(description="The model was not fitted on this series.")]
    ds: list[str]
    mean: list[float]
    median: list[float]
    quantiles: dict[str, list[float]]


class ForecastAnswer(Degradation, kw_only=True):
    forecast_id: str
    model: ModelInfo
    units: str
    forecasts: list[SeriesForecast]


class Problem(Struct):
    code: str
    message: str
    field: str | None


class BulkForecast(SeriesForecast, tag_field="status", tag="ok", omit_defaults=True):
    """The forecast of one series of many, marked as `Degradation` marks a whole answer."""

    degraded: bool = False
    degraded_reason: Why | None = None
    degraded_method: How | None = None


class BulkRefusal(Struct, tag_field="status", tag="error"):
    """Why one series of many has no forecast."""

    unique_id: str
    error: Problem


class BulkAnswer(Struct):
    forecast_id: str
    model: ModelInfo
    units: str
    forecasts: Annotated[
        list[BulkForecast | BulkRefusal], Meta(description="In the order of the request.")
    ]
    failed: Annotated[int, Meta(description="How many of them are refusals.")]


class PredictAnswer(Degradation, kw_only=True):
    status: Literal["SUCCESS"]
    identifier: Annotated[str, Meta(description="Name of the configuration.")]
    run_id: Annotated[
        str, Meta(description="MLflow run of the version that answered; empty without one.")
    ]
    predictions: list[dict[str, str | float]]
    req_id: Annotated[
        str, Meta(description="`forecast_id` of this answer in the forecast log, 32 hex digits.")
    ]
    cached: Annotated[bool, Meta(description="Always false: no answer is kept.")]


class ErrorAnswer(Struct):
    error: Problem


class Health(Struct):
    status: Literal["ok"]


class Readiness(Struct):
    ready: Literal[True]
    model: ModelInfo


class ModelAnswer(Struct):
    """The champion and its data contract."""

    name: str
    version: str
    kind: str
    digest: str
    contract: dict[str, Any]
    horizon: int
    lookback: int
    quantiles: list[float]
    series: int
    needs_known_series: bool


Body = TypeVar("Body", bound=Struct)
_KEYED: dict[str, Any] = {
    "known_future": Column,
    "past": Column,
    "static": float | str,
    "data": Cells,
}
"""Objects with free names: msgspec does not say which of their members it refused."""


def parse_body(model: type[Body], body: bytes, max_depth: int = MAX_DEPTH) -> Body:
    """Read a JSON body. Raises DataError that names the first offending field."""
    too_many_objects(body, 4 * MAX_SERIES)
    try:
        return msgspec.json.decode(body, type=model)
    except msgspec.ValidationError as error:
        check_depth(body, max_depth)
        raise refusal(str(error), body) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        check_depth(body, max_depth)
        return _from_loose(model, body, error)


def unpack_body(model: type[Body], body: bytes) -> Body:
    """Read a msgpack body. Raises DataError that names the first offending field."""
    try:
        return msgspec.msgpack.decode(body, type=model)
    except msgspec.ValidationError as error:
        raise refusal(str(error), None) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"body: {str(error)[:200]}; send one msgpack map", field="body") from None


def too_many_objects(body: bytes, most: int) -> None:
    """Refuse a JSON body of more objects than any request needs, before one is made of each."""
    if body.count(b"{") <= most or _STRING.sub(b"", body).count(b"{") <= most:
        return
    raise DataError(f"series: more than {MAX_SERIES} of them; send fewer at once", field="series")


def check_depth(body: bytes, most: int) -> None:
    """Raise DataError where lists and objects of a JSON text are nested deeper than `most`."""
    if body.count(b"[") + body.count(b"{") <= most:
        return
    text = np.frombuffer(_STRING.sub(b"", body), dtype=np.uint8)
    opened = np.isin(text, _OPEN).astype(np.int32) - np.isin(text, _CLOSE)
    if int(np.cumsum(opened).max(initial=0)) > most:
        raise DataError(
            f"body: nested deeper than {most} lists and objects; see /docs for its shape",
            field="body",
        )


def _from_loose(model: type[Body], body: bytes, cause: Exception) -> Body:
    """Numbers that JSON does not have, NaN and Infinity, are read as missing values."""
    try:
        if b"NaN" not in body and b"Infinity" not in body:
            raise cause
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be answered
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise refusal(str(error), body) from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise DataError(f"body: {str(error)[:200]}; send one JSON object", field="body") from None


def refusal(problem: str, body: bytes | None) -> DataError:
    match = _PLACE.match(problem)
    told, place = (match[1], match[2] or "") if match else (problem, "")
    unknown = re.search(r"unknown field `(.*)`", told, re.S)
    missing = re.search(r"missing required field `(.*)`", told, re.S)
    if "[...]" in place and body is not None:
        place = _named_place(place, body)
    if unknown or missing:
        name = (unknown or missing)[1][:60]  # type: ignore[index]
        place += f".{name}"
        told = "not permitted" if unknown else "required, but not given"
    field = place.lstrip(".") or "body"
    return DataError(f"{field[:300]}: {told[:300]}", field=field[:300])


def _named_place(place: str, body: bytes) -> str:
    """`.past[...][1]` is `.past.wind[1]`: the first member that cannot be read."""
    before, _, after = place.partition("[...]")
    kind = before.rpartition(".")[2]
    try:
        found = json.loads(body)
        for part in re.findall(r"\w+", before):
            found = found[int(part)] if isinstance(found, list) else found[part]
        for name, value in found.items():
            try:
                msgspec.convert(value, _KEYED[kind])
            except msgspec.ValidationError:
                return f"{before}.{name[:60]}{after}"
    except (ValueError, KeyError, RecursionError):
        return before
    return before
