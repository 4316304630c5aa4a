"""What goes over the wire: request and answer models.

Design choices: bodies are parsed by pydantic straight from bytes, strictly (no text where a
number belongs), because that is several times faster than parsing JSON into objects first; a
list stops at its first bad element, because a body of a million bad elements must not become a
million error records; shapes that depend on the champion are checked in `predictor.py`. Answers
are written by orjson; their models here only describe them in the API page.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from flts_ray.errors import DataError

Number = Annotated[float, Field(strict=True)]
Column = Annotated[list[Number | None], Field(fail_fast=True)]
Stamps = Annotated[list[StrictStr], Field(fail_fast=True)]
Mask = Annotated[list[Annotated[bool, Field(strict=True)]], Field(fail_fast=True)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=500)]
MAX_SERIES = 10_000
"""Beyond any `serve.max_series`: one more object costs more than the bytes it is sent in."""
MAX_COLUMNS = 1_000
MAX_PROBLEMS = 10_000
"""More are counted, not described: describing a million takes seconds."""
Columns = Annotated[dict[Name, Column], Field(max_length=MAX_COLUMNS)]
Horizon = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SeriesRequest(Request):
    """One series: its history, or only the name of a series the champion was trained on."""

    unique_id: Name | None = None
    """Name of the series; a name the champion knows brings its scale and clipping bounds."""
    ds: Stamps | None = None
    """ISO 8601 stamps of the history; without an offset they are in the contract's time zone."""
    start: StrictStr | None = None
    """First stamp of a history without gaps, in place of `ds`."""
    y: Column | None = None
    """Values at the stamps; null, NaN and infinities are missing values."""
    observed: Mask | None = None
    """False marks a value of `y` that was filled in rather than measured."""
    origin: StrictStr | None = None
    """Without a history: first step to forecast, within or right after the prepared data."""
    known_future: Columns = {}
    """Values at each stamp of the history, then at each step of the model's horizon. Without a
    history: values at each step of the horizon."""
    past: Columns = {}
    """Values at each stamp of the history."""
    static: Annotated[dict[Name, Number], Field(max_length=MAX_COLUMNS)] = {}


class ForecastRequest(SeriesRequest):
    """Many series in `series`, or the fields of a single one at the top level."""

    series: Annotated[list[SeriesRequest], Field(max_length=MAX_SERIES, fail_fast=True)] | None = (
        None
    )
    horizon: Horizon | None = None
    """Steps wanted, at most the model's; None: all of them."""
    quantiles: Annotated[list[Number], Field(max_length=200, fail_fast=True)] | None = None
    """Levels in the model's range; None: 0.025, 0.1, 0.5, 0.9, 0.975."""


class PredictRequest(Request):
    """The older body: columns of one table, of which one holds the stamps."""

    index_col: Name
    data: Annotated[
        dict[Name, Annotated[list[StrictStr | Number | None], Field(fail_fast=True)]],
        Field(max_length=MAX_COLUMNS),
    ]
    inference_length: Horizon | None = None


class ModelInfo(BaseModel):
    name: str
    version: str
    kind: str


class SeriesForecast(BaseModel):
    unique_id: str
    ds: list[str]
    mean: list[float]
    median: list[float]
    quantiles: dict[str, list[float]]


class ForecastAnswer(BaseModel):
    forecast_id: str
    model: ModelInfo
    units: str
    forecasts: list[SeriesForecast]


class PredictAnswer(BaseModel):
    status: str
    run_id: str
    predictions: list[dict[str, str | float]]


class Problem(BaseModel):
    code: str
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    error: Problem


Body = TypeVar("Body", bound=Request)


def parse_body(model: type[Body], body: bytes) -> Body:
    """Read a JSON body. Raises DataError that names the first offending field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MAX_PROBLEMS:
            raise DataError(
                f"body: {error.error_count()} problems in it; see /docs for its shape", field="body"
            ) from None
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise _refusal(problems[0], len(problems)) from None


def _refusal(problem: ErrorDetails, count: int) -> DataError:
    if problem["type"] == "json_invalid":
        return DataError(f"body: {problem['msg']}; send one JSON object", field="body")
    field = field_path(problem["loc"]) or "body"
    more = f" (and {count - 1} more)" if count > 1 else ""
    return DataError(f"{field}: {problem['msg']}{more}", field=field)


def field_path(loc: tuple[int | str, ...]) -> str:
    """`("series", 3, "y", 0)` becomes `series[3].y[0]`; a union's branch at the end is left out."""
    if len(loc) > 1 and isinstance(loc[-2], int) and loc[-1] in ("float", "str"):
        loc = loc[:-1]
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:60]}" if path else part[:60]
    return path
