"""Bulk bodies in JSON and msgpack, split into series without reading them.

Design choices: a body is split first and each chunk of series is decoded when its turn comes, so
that ten thousand series never exist as objects at once and a series that cannot be read is an
error of its own; how many there are is known before an object is made of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import orjson
from msgspec import Meta, Struct

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError, FltsError
from flts_ray.models.base import ModelSpec
from flts_ray.serve.alike import Sent, block_of_alike
from flts_ray.serve.predictor import check_count, check_points
from flts_ray.serve.regular import Block
from flts_ray.serve.rows import AskedSeries, asked_series
from flts_ray.serve.schemas import (
    Horizon,
    Levels,
    PackedSeries,
    Request,
    SeriesRequest,
    parse_body,
    refusal,
    too_many_objects,
    unpack_body,
)

POINT_BYTES = 4
"""Of a point in a body; some take less, which only makes larger parts."""
NO_SERIES = msgspec.Raw(b"")


@dataclass(frozen=True)
class Part:
    """Some series of a bulk request in their order.

    `asked` are those that could be read, at the positions `at` of the part; `ids` are of all.
    """

    ids: Sequence[str]
    asked: Sequence[AskedSeries] | Block
    at: Sequence[int]
    refused: dict[int, FltsError]


class BulkBody(Protocol):
    """A bulk request whose series are read part by part."""

    @property
    def count(self) -> int: ...
    @property
    def points(self) -> np.ndarray:
        """About how many points each series has, int64 [count]."""
        ...

    @property
    def horizon(self) -> int | None: ...
    @property
    def quantiles(self) -> Sequence[float] | None: ...
    def part(self, begin: int, end: int) -> Part: ...


class _Bulk(Request, frozen=True):
    series: msgspec.Raw = NO_SERIES
    horizon: Horizon | None = None
    quantiles: Levels | None = None


class _Object(Struct, gc=False):
    """Any object; what is in it is skipped."""


class SplitBody:
    """A JSON or msgpack body whose series are bytes still.

    decoder: tells what is wrong with a series; decode: reads a right one, if it can.
    """

    def __init__(
        self,
        bulk: _Bulk,
        pieces: list[msgspec.Raw],
        decoder: Any,
        decode: Callable[[msgspec.Raw], Sent],
        spec: ModelSpec,
        most: int,
    ) -> None:
        self.horizon = bulk.horizon
        self.quantiles = bulk.quantiles
        self._pieces = pieces
        self._decoder = decoder
        self._decode = decode
        self._spec = spec
        self._most_points = most

    @property
    def count(self) -> int:
        return len(self._pieces)

    @property
    def points(self) -> np.ndarray:
        sizes = (memoryview(piece).nbytes for piece in self._pieces)
        return np.fromiter(sizes, np.int64, self.count) // POINT_BYTES

    def part(self, begin: int, end: int) -> Part:
        """Decode some of the series."""
        end = min(end, self.count)
        read = [self._read(i) for i in range(begin, end)]
        good = [one for one in read if not isinstance(one, DataError)]
        if len(good) == len(read):
            block = block_of_alike(good, begin, self._spec, self._most_points)
            if block is not None:
                return Part(block.ids, block, range(len(block)), {})
        return self._singly(begin, read)

    def _singly(self, begin: int, read: Sequence[Sent | DataError]) -> Part:
        ids: list[str] = []
        asked: list[AskedSeries] = []
        at: list[int] = []
        refused: dict[int, FltsError] = {}
        for i, sent in enumerate(read):
            try:
                one = self._asked(begin + i, sent)
            except DataError as error:
                refused[i] = error
                ids.append(self._name(begin + i))
                continue
            asked.append(one)
            at.append(i)
            ids.append(one.id)
        return Part(ids, asked, at, refused)

    def _read(self, i: int) -> Sent | DataError:
        """A series as sent, or why it cannot be read."""
        piece, place = self._pieces[i], f"series[{i}]"
        try:
            return self._decode(piece)
        except msgspec.ValidationError as error:
            return _inside(refusal(str(error), bytes(piece)), place)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
            return DataError(f"{place}: {str(error)[:200]}", field=place)

    def _asked(self, i: int, sent: Sent | DataError) -> AskedSeries:
        if isinstance(sent, DataError):
            raise sent
        one = asked_series(sent, f"series[{i}].", i)
        check_points(one, self._most_points)
        return one

    def _name(self, i: int) -> str:
        """What a series that cannot be read is called in the answer."""
        try:
            head = type(self._decoder)(_Named).decode(self._pieces[i])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
            return str(i)
        return head.unique_id or str(i)


class _Named(Struct):
    unique_id: Annotated[str, Meta(max_length=500)] | None = None


def _inside(error: DataError, place: str) -> DataError:
    """The same refusal, naming the field from the body's root."""
    if error.field == "body":
        return DataError(str(error).replace("body", place, 1), field=place)
    dot = "" if str(error.field).startswith("[") else "."
    return DataError(f"{place}{dot}{error}", field=f"{place}{dot}{error.field}")


def json_bulk(body: bytes, spec: ModelSpec, limits: ServeConfig) -> SplitBody:
    """Raises DataError where the body is no bulk request."""
    too_many_objects(body, 4 * limits.max_bulk_series + 4)
    bulk = parse_body(_Bulk, body, limits.max_depth)
    _required(bulk)
    try:
        count = len(msgspec.json.decode(bulk.series, type=list[_Object]))
        check_count(count, limits.max_bulk_series)
        pieces = msgspec.json.decode(bulk.series, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        raise _inside(refusal(str(error), None), "series") from None
    decoder = msgspec.json.Decoder(SeriesRequest)
    return SplitBody(bulk, pieces, decoder, partial(_json_series, decoder), spec, limits.max_points)


def _json_series(decoder: msgspec.json.Decoder[SeriesRequest], piece: msgspec.Raw) -> Sent:
    """Read by orjson, which takes a fifth of the time; the decoder has the last word."""
    try:
        return msgspec.convert(orjson.loads(memoryview(piece)), SeriesRequest)
    except (orjson.JSONDecodeError, msgspec.ValidationError, RecursionError):
        return decoder.decode(piece)


def msgpack_bulk(body: bytes, spec: ModelSpec, limits: ServeConfig) -> SplitBody:
    """The same for msgpack."""
    bulk = unpack_body(_Bulk, body)
    _required(bulk)
    check_count(array_length(bytes(memoryview(bulk.series)[:5])), limits.max_bulk_series)
    pieces = msgspec.msgpack.decode(bulk.series, type=list[msgspec.Raw])
    decoder = msgspec.msgpack.Decoder(PackedSeries)
    return SplitBody(bulk, pieces, decoder, decoder.decode, spec, limits.max_points)


def _required(bulk: _Bulk) -> None:
    if not memoryview(bulk.series).nbytes:
        raise DataError("series: required, but not given", field="series")


def array_length(head: bytes) -> int:
    """Length of the msgpack array that begins so. Raises DataError for anything else."""
    first = head[0]
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        size = 2 if first == 0xDC else 4
        return int.from_bytes(head[1 : 1 + size], "big")
    raise DataError("series: Expected `array`", field="series")


class _PackedForecast(PackedSeries, frozen=True):
    series: msgspec.Raw = NO_SERIES
    horizon: Horizon | None = None
    quantiles: Levels | None = None


@dataclass(frozen=True)
class PackedRequest:
    """The msgpack form of `ForecastRequest`."""

    alone: PackedSeries
    series: list[PackedSeries] | None
    horizon: int | None
    quantiles: list[float] | None


def packed_request(body: bytes, limits: ServeConfig) -> PackedRequest:
    """Raises DataError where a msgpack body is no forecast request."""
    found = unpack_body(_PackedForecast, body)
    series = None
    if memoryview(found.series).nbytes:
        check_count(array_length(bytes(memoryview(found.series)[:5])), limits.max_series)
        try:
            series = msgspec.msgpack.decode(found.series, type=list[PackedSeries])
        except msgspec.ValidationError as error:
            raise _inside(refusal(str(error), None), "series") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"series: {str(error)[:200]}", field="series") from None
    return PackedRequest(found, series, found.horizon, found.quantiles)
