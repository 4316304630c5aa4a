"""Messages of one poll to rows of a segment.

Design choices: what becomes of a message depends on its bytes, headers and broker time alone, so
that reading it again, in any company, gives the same rows; a message is good as a whole or one
error row; errors are values, and the only thing that stops is a store that must be asked and is
away; what is too large or too late is not parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.ingest.claims import ClaimReader
from flts_ray.ingest.decode_columns import read_columns
from flts_ray.ingest.decode_sample import Claim, Message, Refusal, Sample, SampleReader, shown
from flts_ray.ingest.segment import Batch, segment_schema
from flts_ray.panel import Role
from flts_ray.streams.records import Headers, Records

DEADLINE = "deadline_ms"
_MILLISECONDS = re.compile(rb"-?\d{1,19}")


@dataclass(frozen=True)
class _Rows:
    """Good rows [rows]: which message they come from, their place in it, their data columns."""

    owner: np.ndarray
    index: np.ndarray
    table: pa.Table


@dataclass
class _Taken:
    """What the messages of one poll hold, by their position; `nbytes` of claimed objects."""

    rows: list[_Rows] = field(default_factory=list)
    refused: dict[int, Refusal] = field(default_factory=dict)
    nbytes: int = 0


class Decoder:
    """Decodes the messages of a topic whose samples have these covariates.

    Samples are JSON `{unique_id, ds, y, covariates...}`, alone or in an array; `claims` reads what
    claim-check messages point at (None: all are refused). Raises ConfigError for a covariate that
    has the name of a column of segments.
    """

    def __init__(
        self,
        covariates: Mapping[str, Role],
        *,
        max_message_bytes: int,
        time_zone: str = "UTC",
        claims: ClaimReader | None = None,
    ) -> None:
        self._covariates = dict(covariates)
        self._schema = segment_schema(covariates)
        self._reader = SampleReader(covariates)
        self._max_bytes = max_message_bytes
        self._time_zone = time_zone
        self._claims = claims

    def decode(self, records: Records) -> Batch:
        """Rows of at least one message; of each message good rows or one error row.

        Raises Unavailable if a claimed object's store is away, and nothing for any content.
        """
        taken = _Taken(refused=self._refused_unparsed(records))
        messages = self._read(records.values, taken.refused)
        self._take_claims(messages, taken)
        self._take_samples(messages, taken)
        begin, end = int(records.offsets[0]), int(records.offsets[-1]) + 1
        return Batch(begin, end, self._table(records, taken), records.nbytes + taken.nbytes)

    def _refused_unparsed(self, records: Records) -> dict[int, Refusal]:
        most = self._max_bytes
        refused = {}
        for at, headers in enumerate(records.headers):
            late = _late(headers, records.timestamps_ms[at]) if headers else None
            if late:
                refused[at] = late
        values = records.values
        for at in [i for i, v in enumerate(values) if v is None or len(v) > most]:
            value = values[at]
            if value is None:
                refused.setdefault(at, Refusal("empty", "the message has no value"))
            else:
                said = f"the message has {len(value)} bytes of at most {most}"
                refused[at] = Refusal("too_large", said)
        return refused

    def _read(
        self, values: Sequence[bytes | None], refused: Mapping[int, Refusal]
    ) -> Sequence[Message]:
        if not refused:
            return self._reader.read(values)  # type: ignore[arg-type]
        kept = [at for at in range(len(values)) if at not in refused]
        messages: list[Message] = [refused.get(at) for at in range(len(values))]
        for at, message in zip(kept, self._reader.read([values[at] for at in kept]), strict=True):  # type: ignore[misc]
            messages[at] = message
        return messages

    def _take_claims(self, messages: Sequence[Message], taken: _Taken) -> None:
        if Claim not in set(map(type, messages)):
            return
        for at, message in enumerate(messages):
            if isinstance(message, Claim):
                self._take_claim(at, message, taken)

    def _take_claim(self, at: int, claim: Claim, taken: _Taken) -> None:
        if self._claims is None:
            taken.refused[at] = Refusal("claim_refused", "stream.claims names no bucket")
            return
        found = self._claims.read(claim)
        if isinstance(found, Refusal):
            taken.refused[at] = found
            return
        count = found.table.num_rows
        index = np.arange(count, dtype=np.int32)
        taken.rows.append(_Rows(np.full(count, at), index, found.table))
        taken.nbytes += found.nbytes

    def _take_samples(self, messages: Sequence[Message], taken: _Taken) -> None:
        samples, owner, index = _flat(messages, self._reader.sample, taken.refused)
        if not samples:
            return
        checked = read_columns(samples, self._covariates, self._time_zone)
        for row, refusal in sorted(checked.problems.items()):
            at = int(owner[row])
            if at not in taken.refused:
                place = f"[{index[row]}]." if isinstance(messages[at], list) else ""
                taken.refused[at] = Refusal(refusal.code, place + refusal.detail)
        table = checked.table
        if checked.problems:
            good = np.flatnonzero(~np.isin(owner, list(taken.refused)))
            owner, index, table = owner[good], index[good], table.take(pa.array(good))
        taken.rows.append(_Rows(owner, index, table))

    def _table(self, records: Records, taken: _Taken) -> pa.Table:
        shared = {
            "offset": pa.array(records.offsets, pa.int64()),
            "key": pa.array(records.keys or [None] * len(records.offsets), pa.binary()),
            "timestamp_ms": pa.array(records.timestamps_ms, pa.int64()),
        }
        parts = [self._filled(_good(rows, shared), rows.owner.size) for rows in taken.rows]
        owners = [rows.owner for rows in taken.rows]
        if taken.refused:
            bad = np.array(sorted(taken.refused))
            parts.append(self._filled(_bad(records, bad, taken.refused, shared), bad.size))
            owners.append(bad)
        table = pa.concat_tables(parts)
        if len(parts) == 1:
            return table
        return table.take(pa.array(np.argsort(np.concatenate(owners), kind="stable")))

    def _filled(self, columns: Mapping[str, Any], rows: int) -> pa.Table:
        """The columns of a segment; those that are not given are null."""
        full = [
            columns[name] if name in columns else pa.nulls(rows, kind)
            for name, kind in zip(self._schema.names, self._schema.types, strict=True)
        ]
        return pa.table(full, schema=self._schema)


def _late(headers: Headers, timestamp_ms: int) -> Refusal | None:
    """Why the deadline in the headers, if there is one, refuses the message."""
    given = [value for name, value in headers if name == DEADLINE]
    if not given:
        return None
    # The last header of a name counts, as it does for the clients of the broker.
    if not _MILLISECONDS.fullmatch(given[-1] or b""):
        said = shown((given[-1] or b"").decode(errors="backslashreplace"))
        return Refusal("wrong_type", f"header {DEADLINE}: {said} is no whole number")
    deadline = int(given[-1])
    if timestamp_ms <= deadline:
        return None
    return Refusal(
        "deadline_passed", f"header {DEADLINE}: {deadline} is before its arrival at {timestamp_ms}"
    )


def _flat(
    messages: Sequence[Message], sample: type, refused: dict[int, Refusal]
) -> tuple[Sequence[Sample], np.ndarray, np.ndarray]:
    """All samples, the position of the message of each, and its place in the message.

    What the reader refused is added to `refused`.
    """
    kinds = set(map(type, messages))
    if kinds == {sample}:
        return messages, np.arange(len(messages)), np.zeros(len(messages), np.int32)
    lists: list[Sequence[Sample]] = []
    for at, message in enumerate(messages):
        if isinstance(message, list) and not message:
            refused[at] = Refusal("empty", "an array without samples")
        elif isinstance(message, Refusal):
            refused[at] = message
        one = type(message) is sample
        lists.append((message,) if one else message if isinstance(message, list) else ())
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    owner = np.repeat(np.arange(len(lists)), counts)
    index = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return list(chain.from_iterable(lists)), owner, index.astype(np.int32)


def _good(rows: _Rows, shared: Mapping[str, pa.Array]) -> dict[str, Any]:
    messages = len(shared["offset"])
    alone = rows.owner.size == messages and bool((rows.owner == np.arange(messages)).all())
    owned = shared if alone else {k: v.take(pa.array(rows.owner)) for k, v in shared.items()}
    data = {name: rows.table.column(name) for name in rows.table.column_names}
    return {"index": pa.array(rows.index, pa.int32()), **owned, **data}


def _bad(
    records: Records,
    bad: np.ndarray,
    refused: Mapping[int, Refusal],
    shared: Mapping[str, pa.Array],
) -> dict[str, Any]:
    headers = [list(records.headers[at]) if records.headers else [] for at in bad]
    return {
        "index": pa.array(np.zeros(bad.size, np.int32)),
        "error": pa.array([refused[at].code for at in bad], pa.string()),
        "detail": pa.array([refused[at].detail for at in bad], pa.string()),
        "raw": pa.array([records.values[at] for at in bad], pa.binary()),
        "headers": pa.array(headers, pa.map_(pa.string(), pa.binary())),
        **{name: values.take(pa.array(bad)) for name, values in shared.items()},
    }
