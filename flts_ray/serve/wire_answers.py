"""Bulk answers, written part by part: one JSON document or a msgpack stream; Arrow is beside.

msgpack: first a map with `forecast_id`, `model`, `units`, `horizon`, `quantiles` (the levels), then
one map a part: `unique_id` of all its series, `ok` (positions among them that have a forecast),
`cold_start`, `origin_us` and the numbers of those as raw little-endian bytes: `mean` and `median`
float64 [ok, horizon], `quantiles` float64 [ok, levels, horizon]; `errors` holds the others, and
`degraded`, which is there only then, those of `ok` that the model did not make. The last map is
`{"done": true, "failed": n}`.

Design choices: an answer that ends early is no valid document of its kind, so that nobody takes
half a result for a whole one; numbers are written from arrays, never one by one; a part is written
without knowing of the others, so that threads may write several.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson

from flts_ray.serve.asgi import ARROW, JSON, MSGPACK
from flts_ray.serve.bulk_parts import BulkWriter, Done, Head, problem_of
from flts_ray.serve.predictor import forecasts_of


def writer_of(media: bytes, head: Head) -> BulkWriter:
    """The writer of a kind of answer, JSON for any other."""
    if media == MSGPACK:
        return MsgpackWriter(head)
    if media == ARROW:
        from flts_ray.serve.arrow_answer import ArrowWriter

        return ArrowWriter(head)
    return JsonWriter(head)


class JsonWriter:
    """One JSON document."""

    media = JSON
    between = b","

    def __init__(self, head: Head) -> None:
        self._head = head

    def head(self) -> bytes:
        return orjson.dumps(self._head.fields())[:-1] + b',"forecasts":['

    def part(self, done: Done) -> bytes:
        entries: list[Any] = [None] * len(done.ids)
        if done.made is not None:
            good = forecasts_of(done.made, self._head.model)
            for i, entry in zip(done.rows.tolist(), good, strict=True):
                entries[i] = {"status": "ok", **entry}
        for i, error in done.refused.items():
            entries[i] = {"status": "error", "unique_id": done.ids[i], "error": problem_of(error)}
        for i, mark in done.degraded.items():
            entries[i] |= mark.marks()
        return orjson.dumps(entries, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def tail(self, failed: int) -> bytes:
        return b'],"failed":%d}' % failed


class MsgpackWriter:
    """A stream of maps."""

    media = MSGPACK
    between = b""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._encode = msgspec.msgpack.Encoder().encode

    def head(self) -> bytes:
        about = {"horizon": self._head.horizon, "quantiles": list(self._head.levels)}
        return self._encode({**self._head.fields(), **about})

    def part(self, done: Done) -> bytes:
        entry: dict[str, Any] = {
            "unique_id": list(done.ids),
            "ok": done.rows.tolist(),
            "errors": [
                {"position": i, "unique_id": done.ids[i], **problem_of(error)}
                for i, error in sorted(done.refused.items())
            ],
        }
        if done.degraded:
            entry["degraded"] = [
                {"position": i, **mark.marks()} for i, mark in sorted(done.degraded.items())
            ]
        if done.made is not None:
            entry["cold_start"] = done.made.cold
            for name in ("origin_us", "mean", "median", "quantiles"):
                values: np.ndarray = getattr(done.made, name)
                little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
                entry[name] = little.data.cast("B")
        return self._encode(entry)

    def tail(self, failed: int) -> bytes:
        return self._encode({"done": True, "failed": failed})
