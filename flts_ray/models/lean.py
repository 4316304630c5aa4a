"""Models as replicas run them: light to load, from an artifact of their own.

Design choices: the lean artifact is an ordinary one, in which exported networks stand for trained
ones, so that the same checks guard every byte of it; models without networks are lean as they
are and have no second artifact; a network that was never exported is still served, with the
library it was trained in, and the log says what that costs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from flts_ray.models import artifact
from flts_ray.models.base import Fitted, ModelSpec, forecaster, restorer
from flts_ray.models.blend import KIND as BLEND
from flts_ray.models.blend import Blends
from flts_ray.models.onnx_fitted import GRAPH, NETWORKS, restored
from flts_ray.prepare.arrays import SeriesStats

_log = structlog.get_logger("flts_ray.models")


@dataclass(frozen=True)
class Networks:
    """Rebuilds networks of one kind, exported ones without the library they were trained in."""

    kind: str

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        """See `Restorer.restore`."""
        if GRAPH in arrays:
            return restored(spec, stats, values, arrays)
        _log.warning("network_not_exported", kind=self.kind, costs="200 MB and 2 s for torch")
        return forecaster(self.kind).restore(spec, stats, values, arrays)


def lean_restorer(kind: str) -> artifact.Restores:
    """As `base.restorer`, for artifacts with exported networks too."""
    if kind in NETWORKS:
        return Networks(kind)
    return Blends(lean_restorer) if kind == BLEND else restorer(kind)


def load_lean(folder: Path) -> Fitted:
    """Read a model after checking every byte of it, with as few libraries as it allows.

    Raises ArtifactError as `artifact.load` does, and for an exported network that does not
    repeat on this machine what it said when it was exported.
    """
    return artifact.load(folder, lean_restorer)


@contextmanager
def lean_copy(folder: Path) -> Iterator[Path]:
    """A folder with the lean artifact of a model, for as long as the block runs.

    The folder itself for a model that needs no export. Raises ArtifactError for a damaged one,
    and for a network whose export differs from it.
    """
    from flts_ray.models.onnx_export import exported, needs_export

    fitted = artifact.load(folder)
    if not needs_export(fitted):
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        target = Path(made) / "lean"
        artifact.save(exported(fitted), target)
        yield target
