"""A champion that a replica can start with while the registry or the store is away.

Design choices: only the reference is kept here, the model's files are in the cache of
`champion.py` under their digest and are checked before use; the reference is written after the
model was loaded, so what it names has once been good; it is used only until the first champion is
loaded, because from then on the loaded one is the better memory.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from flts_ray.atomic_files import appearing
from flts_ray.errors import Unavailable
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.refresh import ModelSource, Ref

_log = structlog.get_logger("flts_ray.serve")


@dataclass(frozen=True)
class Memory:
    """Where the last reference is, and how it is read back from its fields."""

    path: Path
    restore: Callable[..., Ref]

    def read(self) -> Ref | None:
        """The last reference; None where there is none that can be read."""
        try:
            return self.restore(**json.loads(self.path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, ref: Any) -> None:
        """Keep a reference, a dataclass of plain values. What the disk refuses is only logged."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with appearing(self.path) as stream:
                stream.write(json.dumps(asdict(ref)).encode())
        except OSError as error:
            _log.warning("champion_not_remembered", path=str(self.path), problem=str(error))


def memory_of(folder: Path, name: str, mlflow_uri: str, store_uri: str) -> Path:
    """One file for each registry, store and model name."""
    where = zlib.crc32(f"{mlflow_uri} {store_uri}".encode())
    return folder / f"{name}-{where:08x}.json"


class WithLastCopy:
    """A source that answers from `memory` until it has answered itself."""

    def __init__(self, source: ModelSource, memory: Memory) -> None:
        self._source = source
        self._memory = memory
        self._loaded = False

    def current(self) -> Ref | None:
        """The champion now, or the last one known here. Raises Unavailable without either."""
        try:
            return self._source.current()
        except Unavailable as away:
            last = None if self._loaded else self._memory.read()
            if last is None:
                raise
            _log.warning("champion_from_last_copy", version=str(last.version), problem=str(away))
            return last

    def challenger(self) -> Ref | None:
        """Like the source's own: a replica does without a challenger while nobody answers."""
        return self._source.challenger()

    def load(self, ref: Any) -> ServedModel:
        """Like the source's own; what was loaded is remembered."""
        model = self._source.load(ref)
        self._loaded = True
        self._memory.write(ref)
        return model
