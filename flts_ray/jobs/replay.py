"""Play files into the stream: `python -m flts_ray.jobs.replay --config configs/demo.yaml`.

Design choices: what is sent, and into which partition, follows from the files alone (order of time,
then of series; a series stays in one partition), so that a repeated run counts what each partition
holds already and goes on behind it; the topic must hold nothing else; the producer does not double
a message that it repeats (`stream.idempotence`), or the count would be wrong; waiting happens
between steps of a twentieth of a second, however many rows fall into one.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from flts_ray.config import Config, DataConfig, load_config
from flts_ray.errors import ConfigError, DataError, FltsError
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.narrate import set_up_logging
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_input
from flts_ray.streams import connect
from flts_ray.streams.records import Producer

_STEP_S = 0.05
_CHUNK = 5000
_FLUSH_S = 60.0


@dataclass(frozen=True)
class Replayed:
    """Messages that were sent now, and that the topic held already."""

    sent: int
    already: int


@dataclass(frozen=True)
class Step:
    """Rows `begin` to `end` (exclusive) that are due `at_s` seconds after the start."""

    begin: int
    end: int
    at_s: float


@dataclass(frozen=True)
class Pace:
    """How time passes: `speed` seconds of data in a second; None: as fast as possible."""

    speed: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.speed is not None and not self.speed > 0:
            raise ConfigError(f"speed {self.speed:g}: give more than 0 seconds of data a second")


def replay(
    config: Config,
    brokers: str,
    path: str | None = None,
    speed: float | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    producer: Producer | None = None,
    pace: Pace | None = None,
) -> Replayed:
    """Send the rows of `config.data` (or of the files at `path`) to `config.stream.topic`.

    `limit`: most messages in the topic afterwards; `progress(done, total)` counts those that were
    there. A given `producer` stays open. Raises DataError for files that cannot be read or a topic
    that holds more than them, Unavailable if the broker is away.
    """
    pace = pace or Pace(speed)
    rows = read_rows(replayed_data(config.data, path))
    partitions, ends = _topic_ends(config, brokers)
    owners = owner_of_rows(rows, partitions)
    left = rows_left(owners, ends)[: None if limit is None else max(0, limit - sum(ends))]
    told = progress or (lambda done, total: None)
    already = sum(ends)
    opened = producer or connect.producer(config.stream, brokers)
    try:
        for sent in send_rows(rows, owners, left, opened, config.stream.topic, pace):
            told(already + sent, already + left.size)
        opened.flush(_FLUSH_S)
    finally:
        if producer is None:
            opened.close()
    return Replayed(int(left.size), already)


def replayed_data(data: DataConfig, path: str | None) -> DataConfig:
    """What to read: `path` in place of `data.path`, with the same columns.

    Raises ConfigError where neither names files.
    """
    if path is not None:
        return data.model_copy(update={"path": path, "snapshot": None, "test_path": None})
    if data.path is None:
        raise ConfigError(
            "data.snapshot is read from the store, so there are no files to replay; give --input"
        )
    return data


def read_rows(data: DataConfig) -> pa.Table:
    """All rows of the files in the order of their time, then of their series and place."""
    tables = [read_input(item, data) for item in find_inputs(data)]
    table = pa.concat_tables(tables, promote_options="permissive")
    order = [("ds", "ascending"), ("unique_id", "ascending"), ("order", "ascending")]
    return table.sort_by(order).drop_columns(["is_test", "order"]).combine_chunks()


def owner_of_rows(rows: pa.Table, partitions: int) -> np.ndarray:
    """Partition of each row (int64 [rows]): CRC-32 of the series name, modulo their number."""
    encoded = rows.column("unique_id").combine_chunks().dictionary_encode()
    names = [zlib.crc32(name.encode()) % partitions for name in encoded.dictionary.to_pylist()]
    return np.array(names, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def rows_left(owners: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Rows that are not in the topic yet (int64), where partition p holds the first `ends[p]`.

    Raises DataError if a partition holds more than the rows that belong there.
    """
    left = []
    for partition, end in enumerate(ends):
        mine = np.flatnonzero(owners == partition)
        if end > mine.size:
            raise DataError(
                f"partition {partition} of the topic holds {end} messages, but the files give it "
                f"{mine.size}; the topic holds something else: use another one in stream.topic"
            )
        left.append(mine[end:])
    return np.sort(np.concatenate(left))


def schedule(us: np.ndarray, speed: float | None) -> Iterator[Step]:
    """When rows with these stamps (int64 microseconds, ascending [rows]) are due.

    A step is due when its first row is; the first row at 0.
    """
    if speed is None or not us.size:
        for begin in range(0, us.size, _CHUNK):
            yield Step(begin, min(begin + _CHUNK, us.size), 0.0)
        return
    due_s = (us - us[0]) / (1e6 * speed)
    slots = np.floor(due_s / _STEP_S)
    firsts = np.flatnonzero(np.diff(slots, prepend=-1.0))
    for begin, end in zip(firsts.tolist(), [*firsts[1:].tolist(), us.size], strict=True):
        yield Step(begin, end, float(due_s[begin]))


def send_rows(
    rows: pa.Table,
    owners: np.ndarray,
    left: np.ndarray,
    producer: Producer,
    topic: str,
    pace: Pace,
) -> Iterator[int]:
    """Send the rows `left` as JSON samples when they are due; yields how many are sent."""
    us = rows.column("ds").cast(pa.int64()).to_numpy()[left]
    started = pace.clock()
    for step in schedule(us, pace.speed):
        wait_s = started + step.at_s - pace.clock()
        if wait_s > 0:
            pace.sleep(wait_s)
        for begin in range(step.begin, step.end, _CHUNK):
            chosen = left[begin : min(begin + _CHUNK, step.end)]
            for sample, owner in zip(samples(rows.take(chosen)), owners[chosen], strict=True):
                producer.send(topic, sample[1], key=sample[0], partition=int(owner))
            yield begin + chosen.size


def samples(rows: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    """Series name and JSON sample of each row; a missing value is null, a covariate left out."""
    encode = msgspec.json.Encoder().encode
    names = [name for name in rows.column_names if name not in ("unique_id", "ds", "y")]
    us = rows.column("ds").cast(pa.int64()).to_numpy()
    written = np.datetime_as_string(us.astype("datetime64[us]"), timezone="UTC").tolist()
    stamps = [stamp.replace(".000000Z", "Z") for stamp in written]
    y = _known(rows.column("y"))
    covariates = [_known(rows.column(name)) for name in names]
    series = rows.column("unique_id").to_pylist()
    for name, stamp, value, *extra in zip(series, stamps, y, *covariates, strict=True):
        sample = {"unique_id": name, "ds": stamp, "y": value}
        sample |= {n: e for n, e in zip(names, extra, strict=True) if e is not None}
        yield name.encode(), encode(sample)


def _known(column: pa.ChunkedArray) -> list[float | str | None]:
    """Values, None for NaN."""
    values = column.to_pylist()
    return [None if value != value else value for value in values]


def _topic_ends(config: Config, brokers: str) -> tuple[int, list[int]]:
    """Number of partitions, and how many messages each ever held; makes the topic if needed."""
    stream = config.stream
    with closing(connect.admin(stream, brokers)) as admin:
        admin.create_topic(stream.topic, stream.partitions)
    with closing(connect.consumer(stream, brokers, group=f"{stream.group}-replay")) as reader:
        partitions = reader.partitions()
        bounds = reader.bounds(partitions)
    return len(partitions), [bounds[p][1] for p in partitions]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.replay", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--input", help="files to play in place of data.path")
    parser.add_argument("--speed", type=float, help="seconds of data in a second; none: at once")
    parser.add_argument("--limit", type=int, help="most messages in the topic afterwards")
    given = parser.parse_args(arguments)
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        from flts_ray.jobs.up import brokers_of

        config = load_config(given.config, given.overrides)
        done = replay(config, brokers_of(config), given.input, given.speed, given.limit)
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"sent {done.sent} messages to {config.stream.topic}, {done.already} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
