"""Bulk answers as an Arrow IPC stream, one record batch a part.

One row a series with `status`; list columns `ds`, `mean`, `median` and one for each level, named
`q` and the level; `error_code`, `error_message`, `error_field` where there is none;
`degraded_reason` and `degraded_method` for callers who allow forecasts without the model.

Design choices: a part without a refused series, which is nearly every one, needs no mask and no
text made in Python; columns are views of the model's numbers until the stream is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.panel import steps_after
from flts_ray.serve.asgi import ARROW
from flts_ray.serve.bulk_parts import Done, Head, problem_of
from flts_ray.serve.predictor import Made

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_STAMP = pa.timestamp("us", "UTC")
_MARKS = ("degraded_reason", "degraded_method")
_PROBLEM = ("code", "message", "field")


class ArrowWriter:
    """An IPC stream of record batches."""

    media = ARROW
    between = b""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._schema = _schema_of(head)

    def head(self) -> bytes:
        sent: bytes = self._schema.serialize().to_pybytes()
        return sent

    def part(self, done: Done) -> bytes:
        whole = done.made is not None and len(done.rows) == len(done.ids)
        columns = self._forecasts(done) if whole else self._mixed(done)
        columns += self._marks(done)
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        sent: bytes = batch.serialize().to_pybytes()
        return sent

    def tail(self, failed: int) -> bytes:
        return END

    def _forecasts(self, done: Done) -> list[pa.Array]:
        """Columns of a part whose series all have a forecast."""
        assert done.made is not None
        count, steps = len(done.ids), self._head.horizon
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * steps)
        nothing = pa.nulls(count, pa.string())
        return [
            pa.array(done.ids, pa.string()),
            pa.repeat("ok", count),
            pa.array(np.array(done.made.cold, dtype=bool)),
            *(pa.ListArray.from_arrays(offsets, flat) for flat in self._flat(done.made)),
            *(nothing for _ in _PROBLEM),
        ]

    def _mixed(self, done: Done) -> list[pa.Array]:
        """The same where some have none."""
        count, steps = len(done.ids), self._head.horizon
        good = np.zeros(count, dtype=bool)
        good[done.rows] = True
        cold = np.zeros(count, dtype=bool)
        if done.made is not None:
            cold[done.rows] = done.made.cold
        offsets = pa.array(np.concatenate([[0], np.cumsum(good * steps)]).astype(np.int32))
        missing = pa.array(~good)
        problems: Sequence[Mapping[str, Any]] = [
            problem_of(done.refused[i]) if i in done.refused else {} for i in range(count)
        ]
        return [
            pa.array(done.ids, pa.string()),
            pa.array(["ok" if fine else "error" for fine in good.tolist()]),
            pa.array(cold, mask=~good),
            *(
                pa.ListArray.from_arrays(offsets, flat, mask=missing)
                for flat in self._flat(done.made)
            ),
            *(pa.array([one.get(name) for one in problems], pa.string()) for name in _PROBLEM),
        ]

    def _marks(self, done: Done) -> list[pa.Array]:
        """Why and how some forecasts were made without the model, for callers who allow it."""
        if not self._head.may_degrade:
            return []
        marks = [done.degraded.get(i) for i in range(len(done.ids))]
        return [
            pa.array([None if one is None else text(one) for one in marks], pa.string())
            for text in (attrgetter("reason"), attrgetter("method"))
        ]

    def _flat(self, made: Made | None) -> list[pa.Array]:
        """Values of the list columns of all forecasts end to end: stamps, then numbers."""
        if made is None:
            nothing = pa.array(np.zeros(0))
            return [pa.array([], _STAMP), *[nothing] * (2 + len(self._head.levels))]
        contract = self._head.model.fitted.spec.contract
        ds_us = steps_after(made.origin_us[:, None], np.arange(self._head.horizon), contract)
        numbers = [made.mean, made.median, *made.quantiles.transpose(1, 0, 2)]
        return [
            pa.array(ds_us.ravel()).view(_STAMP),
            *(pa.array(np.ascontiguousarray(values).ravel()) for values in numbers),
        ]


def _schema_of(head: Head) -> pa.Schema:
    numbers = [*("mean", "median"), *(f"q{level!r}" for level in head.levels)]
    text, lists = pa.string(), pa.list_(pa.float64())
    return pa.schema(
        [
            ("unique_id", text),
            ("status", text),
            ("cold_start", pa.bool_()),
            ("ds", pa.list_(_STAMP)),
            *((name, lists) for name in numbers),
            *((f"error_{name}", text) for name in _PROBLEM),
            *((name, text) for name in (_MARKS if head.may_degrade else ())),
        ],
        metadata=head.texts(),
    )
