"""Series of a JSON or msgpack body that were sent alike, as one block.

Design choices: thousands of histories of one shape are one matrix, so nothing is made for each
series; series that differ in shape, or whose first stamp cannot be read, are nobody's business
here: the caller reads them one by one, which tells what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract
from flts_ray.serve.fields import Fields
from flts_ray.serve.regular import Block
from flts_ray.serve.schemas import PackedSeries, SeriesRequest
from flts_ray.serve.stamps import read_stamps

Sent = SeriesRequest | PackedSeries
_Column = Sequence[float | None] | bytes


def block_of_alike(
    sent: Sequence[Sent], begin: int, spec: ModelSpec, most_points: int
) -> Block | None:
    """One block of all these series, the first of which is number `begin` of its request.

    None unless every one has a name, a first stamp and columns of the same lengths and kind, and
    no more than `most_points` points.
    """
    first = sent[0]
    form = _form(first)
    if form is None or any(_form(one) != form for one in sent):
        return None
    starts = _starts(sent, spec.contract)
    dtype = np.dtype(first.dtype if isinstance(first, PackedSeries) else "float64")
    y = _matrix([one.y for one in sent if one.y is not None], dtype)
    if starts is None or y is None or not 0 < y.shape[1] <= most_points:
        return None
    contract, steps = spec.contract, y.shape[1]
    known = _columns([one.known_future for one in sent], contract.known_future, dtype)
    past = _columns([one.past for one in sent], contract.past, dtype)
    ahead = steps + spec.task.horizon
    if known is None or any(values.shape[1] != ahead for values in known.values()):
        return None
    if past is None or any(values.shape[1] != steps for values in past.values()):
        return None
    return Block(
        fields=Fields(begin, len(sent)),
        ids=[one.unique_id for one in sent if one.unique_id is not None],
        y=y,
        start_us=starts,
        known_future=known,
        past=past,
    )


def _form(one: Sent) -> tuple[str, object, object] | None:
    """What has to be the same in a block; None for a series that is in none."""
    if (
        one.unique_id is None
        or one.start is None
        or one.y is None
        or one.ds is not None
        or one.observed is not None
        or one.origin is not None
        or one.static
    ):
        return None
    return (
        one.dtype if isinstance(one, PackedSeries) else "",
        one.known_future.keys(),
        one.past.keys(),
    )


def _starts(sent: Sequence[Sent], contract: Contract) -> np.ndarray | None:
    """First stamps, int64 [n]; None where one cannot be read."""
    seen: dict[str, int] = {}
    for start in {one.start for one in sent if one.start is not None}:
        try:
            seen[start] = int(read_stamps([start], contract.time_zone, "start")[0])
        except DataError:
            return None
    return np.array([seen[one.start] for one in sent if one.start is not None], dtype=np.int64)


def _columns(
    sent: Sequence[Mapping[str, _Column]], names: Sequence[str], dtype: np.dtype[np.floating]
) -> dict[str, np.ndarray] | None:
    """Columns by name, [n, steps]; None unless they are the model's and one has one length."""
    if sent[0].keys() != set(names):
        return None
    found = {name: _matrix([one[name] for one in sent], dtype) for name in names}
    whole = {name: values for name, values in found.items() if values is not None}
    return whole if len(whole) == len(found) else None


def _matrix(columns: Sequence[_Column], dtype: np.dtype[np.floating]) -> np.ndarray | None:
    """float32 or float64 [n, steps], NaN where missing; None for different lengths or kinds."""
    length, kind = len(columns[0]), type(columns[0])
    if not length or any(len(one) != length or type(one) is not kind for one in columns):
        return None
    if kind is not bytes:
        return np.array(columns, dtype=np.float64)
    if length % dtype.itemsize:
        return None
    little = dtype.newbyteorder("<")
    raw = b"".join(column for column in columns if isinstance(column, bytes))
    return np.frombuffer(raw, dtype=little).reshape(len(columns), -1)
