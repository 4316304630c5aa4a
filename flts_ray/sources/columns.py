"""Columns as files hold them to columns of the panel, with the rows that cannot be converted.

Design choices: nothing is guessed that could be wrong silently (a decimal comma, text in a number);
bad rows are masks, so that the reader can name each; text is converted in one vectorised step and
only looked at value by value where that fails.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MISSING = pa.array(["", "na", "n/a", "#n/a", "nan", "-nan", "null", "none"])
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"


def numbers(column: pa.Array, allow_bool: bool = False) -> tuple[pa.Array, np.ndarray]:
    """Float64 values (missing is NaN, infinities stay) and the mask of rows that are no number.

    Text is read with a decimal point; with `allow_bool`, true and false are 1 and 0.
    """
    kind = column.type
    none_bad = np.zeros(len(column), bool)
    if pa.types.is_dictionary(kind):
        return numbers(column.cast(kind.value_type), allow_bool)
    if is_text(kind):
        return _numbers_in_text(column.cast(pa.string()), allow_bool)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if numeric or pa.types.is_null(kind) or (allow_bool and pa.types.is_boolean(kind)):
        return column.cast(pa.float64(), safe=False).fill_null(np.nan), none_bad
    return pa.nulls(len(column), pa.float64()), np.asarray(column.is_valid())


def names(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Series names without surrounding blanks, and the mask of rows that have none."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return names(column.cast(kind.value_type))
    if not (is_text(kind) or pa.types.is_integer(kind)):
        return pa.nulls(len(column), pa.string()), np.ones(len(column), bool)
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return text, np.asarray(pc.equal(text, "").fill_null(True))


def labels(column: pa.Array) -> pa.Array:
    """Values of a category as text; blank is null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_numeric(column: pa.Array) -> bool:
    """Whether every value that is there is a number or a truth value."""
    return not numbers(column, allow_bool=True)[1].any()


def number_advice(value: str) -> str:
    """What is probably wrong with a text that should be a number."""
    if pc.match_substring_regex(pa.scalar(value), r"^[+-]?\d+,\d+$").as_py():
        return "numbers need a decimal point, not a comma"
    if pc.match_substring_regex(
        pa.scalar(value), r"^[+-]?\d{1,3}([,.' ]\d{3})+([.,]\d+)?$"
    ).as_py():
        return "numbers need a decimal point and no thousands separators"
    return "write a number, or leave it empty where it is missing"


def _numbers_in_text(column: pa.Array, allow_bool: bool) -> tuple[pa.Array, np.ndarray]:
    try:
        return column.cast(pa.float64()).fill_null(np.nan), np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        lowered = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    text = pc.if_else(pc.is_in(lowered, _MISSING), None, lowered)
    if allow_bool:
        text = pc.if_else(pc.equal(text, "true"), "1", text)
        text = pc.if_else(pc.equal(text, "false"), "0", text)
    good = pc.match_substring_regex(text, _NUMBER).fill_null(True)
    value = pc.if_else(good, text, None).cast(pa.float64()).fill_null(np.nan)
    return value, ~np.asarray(good)
