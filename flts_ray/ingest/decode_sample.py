"""One message to samples of known types, or the reason why not.

Design choices: a message is first given to a parser that is generated for exactly these columns
and stops at the first thing that does not fit; only then a slower reader looks for what is wrong.
The slower one decides what is right: it takes numbers beyond a double, NaN and marks of byte order,
so that the reason names field and value, or the message turns out to be good. Messages are parsed
one by one, not joined to lines, because that is faster here, lets a value hold line breaks, and
makes what becomes of a message depend on nothing but the message. Of a repeated key the last value
counts; unknown keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from flts_ray.panel import Role

REQUIRED = ("unique_id", "ds", "y")
_REJECTED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# The longest text of an integer that the interpreter converts unless told otherwise.
_LONGEST_INTEGER = 4300
_SHOWN = 60
_WORDS = {dict: "an object", list: "an array", bool: "a truth value", str: "a text"}


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


_JSON = json.JSONDecoder(parse_int=_integer)


@dataclass(frozen=True)
class Refusal:
    """Why a message is a dead letter: a stable code, and field and value in words."""

    code: str
    detail: str


@dataclass(frozen=True)
class Claim:
    """A message that points at an object to take in whole."""

    bucket: str
    object: str


Sample: TypeAlias = Any
"""A struct of `SampleReader.sample`; its type exists only when the covariates are known."""
Message: TypeAlias = "Sample | list[Sample] | Claim | Refusal"


class Unfit(Exception):
    """A part of a message is not what it should be."""

    def __init__(self, code: str, detail: str) -> None:
        self.refusal = Refusal(code, detail)
        super().__init__(detail)


class SampleReader:
    """Reads messages into structs with the attributes unique_id, ds, y, c0, c1, ...

    c0, c1, ... are the covariates in their order: numbers, and text for static ones.
    """

    def __init__(self, covariates: Mapping[str, Role]) -> None:
        self._covariates = dict(covariates)
        self.sample = _struct(covariates)
        self._decoder = msgspec.json.Decoder(self.sample | list[self.sample])  # type: ignore[name-defined]

    def read(self, values: Sequence[bytes]) -> list[Message]:
        """What each value holds, in their order; takes time in proportion to their bytes."""
        found: list[Message] = []
        rest = iter(values)
        while True:
            try:
                # What was appended before an exception stays: the next value is the bad one.
                found.extend(map(self._decoder.decode, rest))
                return found
            except _REJECTED:
                found.append(self.read_slowly(values[len(found)]))

    def read_slowly(self, value: bytes) -> Message:
        """The same for one value, by the reader that finds the reason."""
        try:
            return self._content(_parsed(value))
        except Unfit as unfit:
            return unfit.refusal

    def _content(self, raw: Any) -> Message:
        if isinstance(raw, dict):
            claimed = {"bucket", "object"} & raw.keys() and not raw.keys() & set(REQUIRED)
            return _claim(raw) if claimed else self._sample(raw, "")
        if isinstance(raw, list):
            return [self._sample(item, f"[{at}]") for at, item in enumerate(raw)]
        raise Unfit("not_a_sample", f"{shown(raw)} is neither a sample nor an array of samples")

    def _sample(self, raw: Any, place: str) -> Sample:
        if not isinstance(raw, dict) or not raw.keys() & set(REQUIRED):
            what = shown(raw) if not isinstance(raw, dict) else "an object without unique_id, ds, y"
            raise Unfit("not_a_sample", f"{place or 'message'}: {what} is no sample")
        dot = f"{place}." if place else ""
        for field in REQUIRED:
            if field not in raw or (raw[field] is None and field != "y"):
                raise Unfit("missing_field", f"{dot}{field} is {_absence(raw, field)}")
        return self.sample(
            _name(raw["unique_id"], f"{dot}unique_id"),
            _stamp(raw["ds"], f"{dot}ds"),
            _number(raw["y"], f"{dot}y"),
            *(
                _label(raw.get(name), dot + name)
                if role == "static"
                else _number(raw.get(name), dot + name, truth=True)
                for name, role in self._covariates.items()
            ),
        )


def shown(value: Any) -> str:
    """A value for a message, in printable characters and cut to a readable length."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return _WORDS[type(value)]
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) else repr(value)
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _struct(covariates: Mapping[str, Role]) -> Any:
    """The type that the fast parser fills; it holds no references that could form a circle."""
    fields: list[tuple[str, Any, Any]] = [
        ("unique_id", str | int, msgspec.field(name="unique_id")),
        ("ds", str | int | float, msgspec.field(name="ds")),
        ("y", float | None, msgspec.field(name="y")),
    ]
    for at, (name, role) in enumerate(covariates.items()):
        kind = str | int | float | None if role == "static" else bool | float | None
        fields.append((f"c{at}", kind, msgspec.field(name=name, default=None)))
    return msgspec.defstruct("Sample", fields, gc=False)


def _parsed(value: bytes) -> Any:
    try:
        text = value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unfit("not_json", f"byte {error.start} is no UTF-8") from None
    if not text.strip():
        raise Unfit("empty", "the message has no content")
    try:
        raw = _JSON.decode(text)
    except RecursionError:
        raise Unfit("not_json", "nested too deeply") from None
    except ValueError as error:
        raise Unfit("not_json", str(error)[:200]) from None
    if raw == [] and isinstance(raw, list):
        raise Unfit("empty", "an array without samples")
    return raw


def _claim(raw: dict[str, Any]) -> Claim:
    for field in ("bucket", "object"):
        if raw.get(field) is None:
            raise Unfit("missing_field", f"{field} is {_absence(raw, field)}")
        if not isinstance(raw[field], str):
            raise Unfit("wrong_type", f"{field}: {shown(raw[field])} is no text")
    return Claim(raw["bucket"], raw["object"])


def _absence(raw: dict[str, Any], field: str) -> str:
    return "null" if field in raw else "missing"


def _name(value: Any, field: str) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unfit("wrong_type", f"{field}: {shown(value)} is neither text nor a whole number")
    return _whole_text(value, field) if isinstance(value, str) else value


def _stamp(value: Any, field: str) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unfit("wrong_type", f"{field}: {shown(value)} is neither text nor a number")
    return _whole_text(value, field) if isinstance(value, str) else value


def _number(value: Any, field: str, *, truth: bool = False) -> float | bool | None:
    """The number; one beyond the range of a double is infinite, as it would be in a file."""
    if isinstance(value, bool) and not truth:
        raise Unfit("wrong_type", f"{field}: {shown(value)} is no number")
    if value is None or isinstance(value, bool | float):
        return value
    if not isinstance(value, int):
        raise Unfit("wrong_type", f"{field}: {shown(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _label(value: Any, field: str) -> str | int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Unfit("wrong_type", f"{field}: {shown(value)} is neither text nor a number")
    return _whole_text(value, field) if isinstance(value, str) else value


def _whole_text(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can write half of a surrogate pair; no UTF-8 can.
        raise Unfit("wrong_type", f"{field}: {shown(text)} is no valid text") from None
    return text
