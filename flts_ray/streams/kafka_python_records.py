"""How kafka-python unpacks what it fetched, whatever a producer wrote.

Design choices: the library refuses a whole batch, for ever, for one header whose name is no UTF-8;
here such a name is read with its odd bytes as \\xff; what really cannot be unpacked is always the
same error and says where it lies; a batch is read by the library's own code until something is odd.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch


def read_odd_names(client: KafkaConsumer) -> None:
    """Let this client read header names that are no UTF-8."""
    client._fetcher.PartitionRecords = _Fetched


class _Text(bytearray):
    """Bytes whose parts can all be decoded."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Text(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


class OddBatch(DefaultRecordBatch):  # type: ignore[misc]
    """A batch of records whose headers may have any names."""

    __slots__ = ()

    def __next__(self) -> Any:
        if self._next_record_index >= self._num_records:
            return super().__next__()
        try:
            record = self._read_msg()
        except UnicodeDecodeError:
            # Once for a batch: its other records are read from the same copy.
            self._buffer = _Text(self._buffer)  # type: ignore[has-type,misc]
            return super().__next__()
        except (ValueError, IndexError):
            return super().__next__()
        self._next_record_index += 1
        return record

    def _maybe_uncompress(self) -> None:
        try:
            super()._maybe_uncompress()
        except (MemoryError, UnsupportedCodecError):
            raise
        except Exception as error:  # noqa: BLE001 - each codec has errors of its own
            raise CorruptRecordError(f"cannot be decompressed: {error!r}") from None


class _Batches:
    """The batches of one fetch."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if type(batch) is DefaultRecordBatch:
            batch.__class__ = OddBatch
        return batch


class _Fetched(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of one partition."""

    def take(self, n: int | None = None) -> Any:
        try:
            return super().take(n)
        except CorruptRecordError as error:
            place = f"partition {self.topic_partition.partition}, offset {self.next_fetch_offset}"
            raise CorruptRecordError(": ".join([place, *map(str, error.args)])) from None

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(tp, _Batches(records), *deserializers)
