"""Champions of the model registry, loaded for serving.

Design choices: prepared data are opened when a request first names one of their series, because
a model serves without them, and so are the libraries that read them; the latest few series stay in
memory, because dashboards ask for the same ones again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from flts_ray.champion import ChampionReader, ChampionRef
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.models.lean import load_lean
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.serve.engine import ServedModel

KEEP_SERIES = 256


class RegistrySource:
    """The champion alias of `name`, and prepared sets under `store_uri`."""

    def __init__(self, mlflow_uri: str, store_uri: str, name: str, cache: Path) -> None:
        self._reader = ChampionReader(mlflow_uri, store_uri, name, cache)
        self._store_uri = store_uri
        self._name = name

    def current(self) -> ChampionRef | None:
        """The champion now. Raises Unavailable where MLflow does not answer."""
        return self._reader.current()

    def challenger(self) -> ChampionRef | None:
        """The challenger now. Raises Unavailable where MLflow does not answer."""
        return self._reader.current("challenger")

    def load(self, ref: ChampionRef) -> ServedModel:
        """Fetch, check and restore it. Raises ArtifactError for a damaged one."""
        fitted = load_lean(self._reader.fetch(ref.lean))

        def read(ids: Sequence[str]) -> SeriesArrays:
            from flts_ray.prepare.loading import open_prepared

            return open_prepared(self._store_uri, ref.prepared_hash).arrays(ids)

        return ServedModel(
            self._name,
            str(ref.version),
            ref.digest,
            fitted,
            RecentSeries(read),
            ref.created_ms / 1e3,
            ref.run_id,
        )


class RecentSeries:
    """Prepared series by name, the last `keep` of them in memory; safe to share by threads."""

    def __init__(
        self, read: Callable[[Sequence[str]], SeriesArrays], keep: int = KEEP_SERIES
    ) -> None:
        self._read = read
        self._keep = keep
        self._recent: OrderedDict[str, SeriesArrays] = OrderedDict()
        self._lock = Lock()

    def series(self, ids: Sequence[str]) -> dict[str, SeriesArrays]:
        """See `KnownSeries.series`."""
        with self._lock:
            found = {name: self._recent[name] for name in ids if name in self._recent}
        missing = [name for name in dict.fromkeys(ids) if name not in found]
        if missing:
            data = self._load(missing)
            found.update({name: data.take([i]) for i, name in enumerate(data.ids)})
        with self._lock:
            for name in ids:
                self._recent[name] = found[name]
                self._recent.move_to_end(name)
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
        return found

    def _load(self, ids: Sequence[str]) -> SeriesArrays:
        try:
            return self._read(ids)
        except (ArtifactError, Unavailable, OSError) as error:
            raise Unavailable(
                f"unique_id: the prepared data of this champion cannot be read ({error}); send "
                "the history (`ds`, `y` and covariates)"
            ) from error
