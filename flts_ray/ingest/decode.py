"""Messages of one poll to rows of a segment.

Design choices: what becomes of a message depends on its bytes, headers and broker time alone, so
that reading it again, in any company, gives the same rows; a message is good as a whole or one
error row; errors are values, and the only thing that stops is a store that must be asked and is
away; what is too large or too late is not parsed; a batch ends early when its rows reach a budget,
however few messages that are; where the decoder itself fails, the poll is halved until the message
at fault stands alone and becomes an error row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

import numpy as np
import pyarrow as pa
import structlog

from flts_ray.errors import Unavailable
from flts_ray.ingest.claims import ClaimReader
from flts_ray.ingest.decode_columns import read_columns
from flts_ray.ingest.decode_sample import Claim, Message, Refusal, Sample, SampleReader, shown
from flts_ray.ingest.decode_table import KEPT_BYTES, Rows, Taken, message_digest, rows_of_segment
from flts_ray.ingest.segment import Batch, segment_schema
from flts_ray.panel import Role
from flts_ray.streams.records import Headers, Records, message_sizes

DEADLINE = "deadline_ms"
BATCH_BYTES = 128 * 2**20
# A poll is in memory already, and to read its rest again costs more than to decode it now.
POLL_BYTES = 64 * 2**20
# Bytes that a row of a segment needs beside its data: offset, index, time and empty columns.
_BESIDE = 40
_MILLISECONDS = re.compile(rb"-?\d{1,19}")


class Decoder:
    """Decodes the messages of a topic whose samples have these covariates.

    Samples are JSON `{unique_id, ds, y, covariates...}`, alone or in an array; `claims` reads what
    claim-check messages point at (None: all are refused). `max_message_bytes` of value, key and
    headers; `max_batch_bytes` ends a batch. Raises ConfigError for a covariate that has the name of
    a column of segments.
    """

    def __init__(
        self,
        covariates: Mapping[str, Role],
        *,
        max_message_bytes: int,
        time_zone: str = "UTC",
        claims: ClaimReader | None = None,
        max_batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self._covariates = dict(covariates)
        self._schema = segment_schema(covariates)
        self._reader = SampleReader(covariates)
        self._max_bytes = max_message_bytes
        self._time_zone = time_zone
        self._claims = claims
        self._most_at_once = max_batch_bytes

    def decode(self, records: Records) -> Batch:
        """Rows of the first messages, at least one; of each good rows or one error row.

        The batch ends before the records do where the next messages would pass the budget, or wait
        for a store that is away. Raises Unavailable if that is so for the first message, or if this
        machine has no room to decode it; and nothing for any content.
        """
        try:
            return self._decoded(self._fitting(records))
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - repeated in halves to find whose it is
            return self._halved(records, error)

    def _halved(self, records: Records, error: Exception) -> Batch:
        count = len(records.offsets)
        if count == 1:
            return self._undecodable(records, error)
        head = self.decode(records.part(0, count // 2))
        rest = records.part(count // 2, count)
        if head.end <= records.offsets[count // 2 - 1] or head.nbytes >= self._most_at_once:
            return head
        try:
            tail = self.decode(rest)
        except Unavailable:
            return head
        table = pa.concat_tables([head.table, tail.table])
        return Batch(head.begin, tail.end, table, head.nbytes + tail.nbytes)

    def _undecodable(self, records: Records, error: Exception) -> Batch:
        """One error row. What the machine lacks is no property of the message: Unavailable."""
        said = f"{type(error).__name__}: {ascii(str(error))[1:200]}"
        place = {"partition": records.partition, "offset": int(records.offsets[0])}
        structlog.get_logger().error("message_undecodable", **place, error=said)
        if isinstance(error, MemoryError | OSError):
            raise Unavailable(
                f"partition {place['partition']}, offset {place['offset']}: the message cannot be "
                f"decoded on this machine ({said}); give the process more memory or room"
            ) from None
        return self._batch(records, Taken(refused={0: Refusal("undecodable", said)}, cut={0}))

    def _fitting(self, records: Records) -> Records:
        """The messages that fit into one batch, at least one."""
        most = max(self._most_at_once, POLL_BYTES)
        if records.nbytes <= most:
            return records
        sizes = message_sizes(records.values, records.keys, records.headers)
        count = sum(total <= most for total in accumulate(sizes))
        return records.part(0, max(1, count))

    def _decoded(self, records: Records) -> Batch:
        taken = Taken(*self._refused_unparsed(records))
        messages = self._read(records.values, taken.refused)
        count = self._take_claims(messages, taken)
        if count < len(messages):
            records, messages = records.part(0, count), messages[:count]
            taken.keep_first(count)
        self._take_samples(messages, taken)
        return self._batch(records, taken)

    def _batch(self, records: Records, taken: Taken) -> Batch:
        table = rows_of_segment(records, taken, self._schema)
        begin, end = int(records.offsets[0]), int(records.offsets[-1]) + 1
        return Batch(begin, end, table, max(records.nbytes + taken.nbytes, table.nbytes))

    def _refused_unparsed(self, records: Records) -> tuple[dict[int, Refusal], set[int]]:
        """Why messages need no parsing, by position; and which of them are not kept whole."""
        refused, cut = {}, set()
        for at, headers in enumerate(records.headers):
            late = _late(headers, records.timestamps_ms[at]) if headers else None
            if late:
                refused[at] = late
        values, most = records.values, self._max_bytes
        if values.count(None):
            for at in [at for at, value in enumerate(values) if value is None]:
                refused.setdefault(at, Refusal("empty", "the message has no value"))
        sizes = message_sizes(values, records.keys, records.headers)
        if max(sizes) > most:
            for at in [at for at, size in enumerate(sizes) if size > most]:
                said = f"the message has {sizes[at]} bytes of at most {most}"
                if sizes[at] > KEPT_BYTES:
                    cut.add(at)
                    said += f"; {message_digest(values[at])}"
                refused[at] = Refusal("too_large", said)
        return refused, cut

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

    def _take_claims(self, messages: Sequence[Message], taken: Taken) -> int:
        """How many messages there is room for; claims behind them are not asked for."""
        if Claim not in set(map(type, messages)):
            return len(messages)
        for at, message in enumerate(messages):
            if not isinstance(message, Claim):
                continue
            try:
                self._take_claim(at, message, taken)
            except Unavailable:
                if at:
                    return at
                raise
            if taken.nbytes >= self._most_at_once:
                return at + 1
        return len(messages)

    def _take_claim(self, at: int, claim: Claim, taken: Taken) -> None:
        if self._claims is None:
            taken.refused[at] = Refusal("claim_refused", "stream.claims names no bucket")
            return
        found = self._claims.read(claim)
        if isinstance(found, Refusal):
            taken.refused[at] = found
            return
        count = found.table.num_rows
        index = np.arange(count, dtype=np.int32)
        taken.rows.append(Rows(np.full(count, at), index, found.table))
        taken.nbytes += found.nbytes + _BESIDE * count

    def _take_samples(self, messages: Sequence[Message], taken: Taken) -> None:
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
        taken.rows.append(Rows(owner, index, table))


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
