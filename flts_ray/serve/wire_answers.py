"""Bulk answers, written part by part: one JSON document, a msgpack stream, an Arrow stream.

msgpack: first a map with `forecast_id`, `model`, `units`, `horizon`, `quantiles` (the levels), then
one map a part: `unique_id` of all its series, `ok` (positions among them that have a forecast),
`cold_start`, `origin_us` and the numbers of those as raw little-endian bytes: `mean` and `median`
float64 [ok, horizon], `quantiles` float64 [ok, levels, horizon]; `errors` holds the others. The
last map is `{"done": true, "failed": n}`.

Arrow: one row a series with `status`; list columns `ds`, `mean`, `median` and one for each level,
named `q` and the level; `error_code`, `error_message`, `error_field` where there is none.

Design choices: an answer that ends early is no valid document of its kind, so that nobody takes
half a result for a whole one; numbers are written from arrays, never one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import orjson

from flts_ray.errors import FltsError
from flts_ray.models.base import Forecast
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.asgi import ARROW, JSON, MSGPACK
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.predictor import Made, forecasts_of, model_of
from flts_ray.serve.problems import code_of, field_of

ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True)
class Done:
    """A part of a bulk answer: `made` holds the series at the positions `rows` of it.

    `told` is what the model was asked and said, for whoever observes.
    """

    ids: Sequence[str]
    rows: np.ndarray
    made: Made | None
    refused: dict[int, FltsError]
    told: tuple[Windows, Forecast] | None = None


@dataclass(frozen=True)
class Head:
    """What the whole answer says once."""

    forecast_id: str
    model: ServedModel
    horizon: int
    levels: tuple[float, ...]

    def fields(self) -> dict[str, Any]:
        return {
            "forecast_id": self.forecast_id,
            "model": model_of(self.model),
            "units": self.model.fitted.spec.contract.units,
        }


class BulkWriter(Protocol):
    """Writes the parts of one answer in order."""

    @property
    def media(self) -> bytes: ...
    def head(self) -> bytes: ...
    def part(self, done: Done) -> bytes: ...
    def tail(self) -> bytes: ...


def writer_of(media: bytes, head: Head) -> BulkWriter:
    """The writer of a kind of answer, JSON for any other."""
    if media == MSGPACK:
        return MsgpackWriter(head)
    return ArrowWriter(head) if media == ARROW else JsonWriter(head)


def _problem(error: FltsError) -> dict[str, str | None]:
    return {"code": code_of(error), "message": str(error), "field": field_of(error)}


class JsonWriter:
    """One JSON document."""

    media = JSON

    def __init__(self, head: Head) -> None:
        self._head = head
        self._failed = 0
        self._first = True

    def head(self) -> bytes:
        return orjson.dumps(self._head.fields())[:-1] + b',"forecasts":['

    def part(self, done: Done) -> bytes:
        entries: list[Any] = [None] * len(done.ids)
        if done.made is not None:
            good = forecasts_of(done.made, self._head.model)
            for i, entry in zip(done.rows.tolist(), good, strict=True):
                entries[i] = {"status": "ok", **entry}
        for i, error in done.refused.items():
            entries[i] = {"status": "error", "unique_id": done.ids[i], "error": _problem(error)}
        self._failed += len(done.refused)
        comma = b"" if self._first else b","
        self._first = False
        return comma + orjson.dumps(entries, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def tail(self) -> bytes:
        return b'],"failed":%d}' % self._failed


class MsgpackWriter:
    """A stream of maps."""

    media = MSGPACK

    def __init__(self, head: Head) -> None:
        self._head = head
        self._failed = 0
        self._encode = msgspec.msgpack.Encoder().encode

    def head(self) -> bytes:
        about = {"horizon": self._head.horizon, "quantiles": list(self._head.levels)}
        return self._encode({**self._head.fields(), **about})

    def part(self, done: Done) -> bytes:
        self._failed += len(done.refused)
        entry: dict[str, Any] = {
            "unique_id": list(done.ids),
            "ok": done.rows.tolist(),
            "errors": [
                {"position": i, "unique_id": done.ids[i], **_problem(error)}
                for i, error in sorted(done.refused.items())
            ],
        }
        if done.made is not None:
            entry["cold_start"] = done.made.cold
            for name in ("origin_us", "mean", "median", "quantiles"):
                values: np.ndarray = getattr(done.made, name)
                little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
                entry[name] = little.data.cast("B")
        return self._encode(entry)

    def tail(self) -> bytes:
        return self._encode({"done": True, "failed": self._failed})


class ArrowWriter:
    """An IPC stream of record batches."""

    media = ARROW

    def __init__(self, head: Head) -> None:
        import pyarrow as pa

        self._pa = pa
        self._head = head
        numbers = [*("mean", "median"), *(f"q{level!r}" for level in head.levels)]
        text, lists = pa.string(), pa.list_(pa.float64())
        about = {name: str(value) for name, value in head.fields().items() if name != "model"}
        about |= {f"model_{name}": value for name, value in model_of(head.model).items()}
        self._schema = pa.schema(
            [
                ("unique_id", text),
                ("status", text),
                ("cold_start", pa.bool_()),
                ("ds", pa.list_(pa.timestamp("us", "UTC"))),
                *((name, lists) for name in numbers),
                *((f"error_{name}", text) for name in ("code", "message", "field")),
            ],
            metadata=about,
        )

    def head(self) -> bytes:
        sent: bytes = self._schema.serialize().to_pybytes()
        return sent

    def part(self, done: Done) -> bytes:
        pa, count = self._pa, len(done.ids)
        good = np.zeros(count, dtype=bool)
        good[done.rows] = True
        cold = np.zeros(count, dtype=bool)
        steps = self._head.horizon
        matrices: list[np.ndarray] = [np.zeros((0, steps))] * (2 + len(self._head.levels))
        ds_us = np.zeros((0, steps), dtype=np.int64)
        if done.made is not None:
            made = done.made
            cold[done.rows] = made.cold
            matrices = [made.mean, made.median, *made.quantiles.transpose(1, 0, 2)]
            contract = self._head.model.fitted.spec.contract
            ds_us = steps_after(made.origin_us[:, None], np.arange(steps), contract)
        offsets = pa.array(np.concatenate([[0], np.cumsum(good * steps)]).astype(np.int32))
        missing = pa.array(~good)

        def lists(values: Any) -> Any:
            return pa.ListArray.from_arrays(offsets, values, mask=missing)

        problems = [_problem(done.refused[i]) if i in done.refused else {} for i in range(count)]
        columns = [
            pa.array(done.ids, pa.string()),
            pa.array(["ok" if fine else "error" for fine in good.tolist()]),
            pa.array(cold, mask=~good),
            lists(pa.array(ds_us.ravel()).cast(pa.timestamp("us", "UTC"))),
            *(lists(pa.array(np.ascontiguousarray(m).ravel())) for m in matrices),
            *(
                pa.array([one.get(name) for one in problems], pa.string())
                for name in ("code", "message", "field")
            ),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        sent: bytes = batch.serialize().to_pybytes()
        return sent

    def tail(self) -> bytes:
        return ARROW_END
