"""What preparation reads: the configured files, or one state of the ingested table.

Design choices: a snapshot becomes the same inputs that files are, with fixed column names, so
nothing behind this file knows the difference; everything about its files stands in the log entry,
so none is opened to find out, and each is checked against its SHA-256 when it is read; whether a
static column holds labels is decided over all files, because a single date may by chance hold only
labels that look like numbers. Without asking the broker, the topic's current life is the one whose
first table was made last.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flts_ray.config import Config, DataConfig
from flts_ray.errors import ArtifactError, ConfigError, DataError
from flts_ray.sources.inputs import Input, find_inputs
from flts_ray.sources.table_log import (
    LogEntry,
    TableFile,
    current_epoch,
    newest_entry,
    no_table,
    read_entry,
    table_folder,
)
from flts_ray.store import NotFound, Store


@dataclass(frozen=True)
class Source:
    """Inputs, the columns they have, and (JSON-ready) the snapshot they are, if they are one."""

    data: DataConfig
    inputs: tuple[Input, ...]
    snapshot: dict[str, Any] | None = None

    @property
    def setting(self) -> str:
        """The setting that names the inputs."""
        return "data.path" if self.snapshot is None else "data.snapshot"


def find_source(config: Config) -> Source:
    """What `data` means now; `latest` becomes the number of the newest snapshot.

    Raises DataError for files or a table that cannot be used, ConfigError for settings that do
    not go together with a snapshot.
    """
    if config.data.snapshot is None:
        return Source(config.data, tuple(find_inputs(config.data)))
    data = _table_columns(config.data)
    store = Store.open(config.root)
    entry = find_snapshot(store, config.stream.topic, config.data.snapshot)
    _check_rows(store, entry)
    _check_covariates(store, entry, data)
    return Source(data, tuple(_inputs(store, entry, data)), snapshot_reference(entry))


def find_snapshot(store: Store, topic: str, wanted: int | str) -> LogEntry:
    """A state of the topic's table: `latest` or a number. Raises DataError if there is none."""
    epoch = current_epoch(store, topic)
    newest = newest_entry(store, topic, epoch) if epoch is not None else None
    if epoch is None or newest is None:
        raise no_table(store.root, topic)
    if wanted == "latest":
        return newest
    try:
        return read_entry(store, topic, epoch, int(wanted))
    except NotFound:
        raise DataError(
            f"data.snapshot: the table of topic {topic} has the snapshots 1 to {newest.number}, "
            f"not {wanted}; choose one of them, or latest",
            field="data.snapshot",
        ) from None


def snapshot_reference(entry: LogEntry) -> dict[str, Any]:
    """What a prepared set remembers of its snapshot."""
    return {
        "topic": entry.topic,
        "epoch": entry.epoch,
        "number": entry.number,
        "ranges": {str(p): list(limits) for p, limits in sorted(entry.ranges.items())},
    }


def snapshot_name(reference: Mapping[str, Any]) -> str:
    """Topic, epoch and number in one word, for a model's record."""
    return f"{reference['topic']}/{reference['epoch']}/{reference['number']}"


def parse_snapshot_name(name: str) -> dict[str, Any]:
    """The parts of a `snapshot_name`. Raises ArtifactError if it is none."""
    topic, _, rest = name.partition("/")
    epoch, _, number = rest.partition("/")
    if not (epoch and number.isascii() and number.isdecimal()):
        raise ArtifactError(f"{name!r} names no snapshot (TOPIC/EPOCH/NUMBER); train again")
    return {"topic": topic, "epoch": epoch, "number": int(number)}


def _table_columns(data: DataConfig) -> DataConfig:
    """The data section in the words of table files."""
    wrong = [
        name
        for name, given in (("layout", data.layout == "wide"), ("test_path", data.test_path))
        if given
    ]
    if wrong:
        raise ConfigError(
            f"data.{wrong[0]} goes with files, and data.snapshot reads the table instead, which is "
            f"long and has no test files; leave out {' and '.join(wrong)}, or give data.path"
        )
    fixed = {
        "format": "parquet",
        "time": "ds",
        "id": "unique_id",
        "target": "y",
        "id_from_path": None,
        "stamp_time_zone": None,
    }
    return data.model_copy(update=fixed)


def _inputs(store: Store, entry: LogEntry, data: DataConfig) -> Iterable[Input]:
    folder = table_folder(entry.topic, entry.epoch)
    labels = frozenset(
        name for file in entry.files for name, kind in file.columns.items() if kind == "text"
    )
    for file in sorted(entry.files, key=lambda file: file.path):
        yield Input(
            uri=store.uri(f"{folder}/{file.path}"),
            name=file.path,
            size=file.size,
            fingerprint=file.sha256,
            sha256=file.sha256,
            format="parquet",
            is_test=False,
            labels=labels,
            lacks=frozenset(data.covariates) - frozenset(file.columns),
        )


def _check_rows(store: Store, entry: LogEntry) -> None:
    """Raises DataError if there is nothing to read, or no longer."""
    if not entry.files:
        raise DataError(
            f"snapshot {entry.number} of topic {entry.topic} has no rows: no message could be "
            "decoded; `flts dlq list` says why",
            field="data.snapshot",
        )
    folder = table_folder(entry.topic, entry.epoch)
    sizes = {item.key: item.size for item in store.list(folder)}
    gone = [file for file in entry.files if _differs(sizes, folder, file)]
    if gone:
        raise DataError(
            f"snapshot {entry.number} of topic {entry.topic}: {len(gone)} of {len(entry.files)} "
            f"files are gone or cut, such as {store.uri(f'{folder}/{gone[0].path}')}; old "
            "snapshots are swept away, choose a newer one or latest",
            field="data.snapshot",
        )


def _differs(sizes: dict[str, int], folder: str, file: TableFile) -> bool:
    return sizes.get(f"{folder}/{file.path}") != file.size


def _check_covariates(store: Store, entry: LogEntry, data: DataConfig) -> None:
    """A covariate may be missing on some dates; one that is on none is a mistake."""
    known = sorted({name for file in entry.files for name in file.columns})
    for name in data.covariates:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"{store.root}: the table of topic {entry.topic} has no covariate {name!r}; {hint}"
                f"correct data.covariates; it has: {', '.join(known) or 'none'}",
                field="data.covariates",
            )
