"""Fitted models as folders that are safe to load from anywhere.

Design choices: JSON and safetensors, because loading them can run no code; every file is hashed
before a byte of it is parsed, and the bytes that were hashed are the bytes that are parsed; the
manifest is written last and must be exactly what the other files produce, so no byte of any
file, the manifest included, can change unnoticed; its own SHA-256 names the model; a folder
appears by a rename or not at all; ids travel as one byte array, so a million of them are quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as tensors

from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.models.base import Fitted, ModelSpec, Task, restorer
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesStats

FORMAT = 1
MANIFEST, MODEL, ARRAYS = "manifest.json", "model.json", "arrays.safetensors"
MAX_BYTES = {MANIFEST: 2**16, MODEL: 2**28, ARRAYS: 2**34}
"""Larger files are refused before they are read."""
STATS = ("mean", "std", "scale", "clip_lo", "clip_hi")
RESTORE = "restore the folder from the registry, or train again"


class Restores(Protocol):
    """What rebuilds fitted models from a state, and need not be able to do more."""

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        """See `Restorer.restore`."""
        ...


def save(fitted: Fitted, folder: Path) -> str:
    """Write a fitted model and return its digest, the SHA-256 (hex) of the manifest.

    The same model gives the same bytes. A folder that is already there is replaced. Raises
    ArtifactError for a state that is no JSON, such as one that holds NaN.
    """
    values, state = fitted.state()
    spec, stats = fitted.spec, fitted.stats
    files = {
        MODEL: _canonical(
            {"format": FORMAT, **spec_to_json(spec), "state": values}, f"{folder / MODEL}"
        ),
        ARRAYS: _pack(stats, state),
    }
    if len(files[MODEL]) > MAX_BYTES[MODEL] or len(files[ARRAYS]) > MAX_BYTES[ARRAYS]:
        raise ArtifactError(
            f"{folder}: the model is too large to be loaded again; fit fewer series"
        )
    manifest = _manifest(files)
    _write({**files, MANIFEST: manifest}, folder)
    return hashlib.sha256(manifest).hexdigest()


def load(folder: Path, restorer_of: Callable[[str], Restores] = restorer) -> Fitted:
    """Read a fitted model after checking every byte of it.

    `restorer_of` gives what rebuilds models of a kind; it raises ConfigError for an unknown one.
    Raises ArtifactError naming the file for anything changed, missing, added, too large or of a
    newer format, and for a model kind this version does not know.
    """
    files = _checked_files(Path(folder))
    raw = _parse(files[MODEL], Path(folder) / MODEL)
    if raw.get("format") != FORMAT:
        raise _refused(Path(folder) / MODEL, f"unknown format version {raw.get('format')!r}")
    try:
        model = restorer_of(str(raw.get("kind")))
    except ConfigError as error:
        raise _refused(Path(folder) / MODEL, str(error)) from None
    stats, state = _unpack(files[ARRAYS], Path(folder) / ARRAYS)
    try:
        return model.restore(spec_from_json(raw), stats, raw["state"], state)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _refused(Path(folder), f"the files hold no {raw['kind']} model ({error!r})") from None


def digest(folder: Path) -> str:
    """SHA-256 (hex) of the manifest, which names every other byte of the artifact."""
    return hashlib.sha256(_read(Path(folder) / MANIFEST)).hexdigest()


def _refused(place: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{place}: {problem}; {RESTORE}")


def _canonical(raw: dict[str, Any], where: str) -> bytes:
    try:
        text = json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where}: the model's state is no JSON ({error}); keep numbers that may be NaN "
            "in the arrays"
        ) from None
    return text.encode()


def _manifest(files: dict[str, bytes]) -> bytes:
    listed = {
        name: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
        for name, body in files.items()
    }
    return _canonical({"format": FORMAT, "files": listed}, MANIFEST)


def _write(files: dict[str, bytes], folder: Path) -> None:
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{uuid4().hex}")
    made.mkdir()
    try:
        for name, body in files.items():
            with open(made / name, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        if not folder.exists():
            os.replace(made, folder)
            return
        # A folder that holds files cannot be replaced in one step: readers may for a moment
        # find none, never a mixed one.
        old = folder.with_name(f"{made.name}.old")
        os.replace(folder, old)
        os.replace(made, folder)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _checked_files(folder: Path) -> dict[str, bytes]:
    """The bodies of the model and array files, proven to be those that were saved."""
    if not folder.is_dir():
        raise _refused(folder, "no such model folder")
    found = {entry.name for entry in folder.iterdir()}
    for name in sorted({MANIFEST, MODEL, ARRAYS} - found):
        raise _refused(folder / name, "the file is missing")
    for name in sorted(found - {MANIFEST, MODEL, ARRAYS}):
        raise _refused(folder / name, "the file does not belong to the model")
    manifest = _read(folder / MANIFEST)
    listed = _parse(manifest, folder / MANIFEST)
    if listed.get("format") != FORMAT:
        raise _refused(folder / MANIFEST, f"unknown format version {listed.get('format')!r}")
    files = {name: _read(folder / name) for name in (MODEL, ARRAYS)}
    expected = _manifest(files)
    if manifest != expected:
        fresh = _parse(expected, folder / MANIFEST)["files"]
        recorded = listed.get("files")
        known = recorded if isinstance(recorded, dict) else {}
        wrong = [name for name in (MODEL, ARRAYS) if known.get(name) != fresh[name]]
        raise _refused(
            folder / (wrong[0] if len(wrong) == 1 else MANIFEST),
            "the bytes are not those that were saved (SHA-256 or size differs)",
        )
    return files


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES[path.name]:
            raise _refused(path, f"{size} bytes are more than the bound {MAX_BYTES[path.name]}")
        return path.read_bytes()
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from None


def _parse(body: bytes, path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"cannot be read as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise _refused(path, "expected a JSON object")
    return raw


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """A spec as JSON-ready values."""
    return {
        "kind": spec.kind,
        "horizon": spec.task.horizon,
        "levels": list(spec.task.levels),
        "lookback": spec.lookback,
        "contract": spec.contract.to_json(),
        "params": dict(spec.params),
        "needs_known_series": spec.needs_known_series,
    }


def spec_from_json(raw: dict[str, Any]) -> ModelSpec:
    """The inverse of `spec_to_json`. Raises KeyError, TypeError and ValueError."""
    return ModelSpec(
        kind=str(raw["kind"]),
        task=Task(int(raw["horizon"]), tuple(float(level) for level in raw["levels"])),
        lookback=int(raw["lookback"]),
        contract=Contract.from_json(raw["contract"]),
        params=dict(raw["params"]),
        needs_known_series=bool(raw["needs_known_series"]),
    )


def stats_arrays(stats: SeriesStats) -> dict[str, np.ndarray]:
    """Series statistics as named arrays; the ids as the bytes of their JSON."""
    ids = np.frombuffer(json.dumps(list(stats.ids)).encode(), dtype=np.uint8)
    return {"stats.ids": ids, **{f"stats.{name}": getattr(stats, name) for name in STATS}}


def pop_stats(named: dict[str, np.ndarray]) -> SeriesStats:
    """Take what `stats_arrays` gave out of `named`. Raises KeyError, TypeError, ValueError."""
    ids = tuple(json.loads(named.pop("stats.ids").tobytes()))
    stats = SeriesStats(ids, *(named.pop(f"stats.{name}") for name in STATS))
    if any(getattr(stats, name).shape != (len(ids),) for name in STATS):
        raise ValueError(f"the series statistics do not have {len(ids)} rows")
    return stats


def _pack(stats: SeriesStats, state: dict[str, np.ndarray]) -> bytes:
    named = stats_arrays(stats) | {f"state.{name}": array for name, array in state.items()}
    body: bytes = tensors.save({name: np.ascontiguousarray(a) for name, a in named.items()})
    return body


def _unpack(body: bytes, path: Path) -> tuple[SeriesStats, dict[str, np.ndarray]]:
    try:
        named = tensors.load(body)
        stats = pop_stats(named)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"cannot be read as model arrays ({error!r})") from None
    return stats, {name.removeprefix("state."): array for name, array in named.items()}
