"""The kinds of values a configuration is made of: addresses, zones, shares, search spaces."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, get_args
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flts_ray.errors import ConfigError
from flts_ray.panel import Frequency


def _expand(text: str) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; raises ValueError for an unset name."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise ValueError(
                f"environment variable {name} is not set; set it or write ${{{name}:-default}}"
            )
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, sorted(available_timezones()), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name!r} is no IANA time zone{hint}") from None
    return name


def _known_frequency(text: str) -> str:
    try:
        return Frequency(text).text
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _iso_moment(raw: object) -> object:
    """YAML reads unquoted stamps as dates; all of them become ISO 8601 text."""
    text = raw.isoformat() if isinstance(raw, date) else raw
    if isinstance(text, str):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("write an ISO 8601 date or time, such as 2024-03-31") from None
    return text


Moment = Annotated[str, BeforeValidator(_iso_moment)]
Address = Annotated[str, AfterValidator(_expand)]
FrequencyText = Annotated[str, AfterValidator(_known_frequency)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Choice(Section):
    choice: tuple[Any, ...] = Field(min_length=1)


class Uniform(Section):
    uniform: tuple[float, float]


class LogUniform(Section):
    loguniform: tuple[float, float]

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if not 0 < self.loguniform[0] <= self.loguniform[1]:
            raise ValueError("loguniform needs 0 < low <= high")
        return self


class IntRange(Section):
    integer: tuple[int, int]
    """Both ends included."""


Space = Choice | Uniform | LogUniform | IntRange
SPACES: tuple[type[Section], ...] = get_args(Space)


def read_space(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    for space in SPACES:
        if set(value) == set(space.model_fields):
            return space.model_validate(dict(value))
    raise ValueError(
        f"{name}: {dict(value)} is no search space; write one of choice, uniform, loguniform, "
        "integer"
    )
