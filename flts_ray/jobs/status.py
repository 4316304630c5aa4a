"""What there is and what runs, read from the store and the announced services alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from flts_ray.config import Config
from flts_ray.jobs.announce import announced
from flts_ray.jobs.folder import local_folder
from flts_ray.jobs.stream_status import StreamStatus, stream_status
from flts_ray.jobs.up import adopt_local
from flts_ray.local.shared_mlflow import mlflow_in_use
from flts_ray.prepare.manifest import MANIFEST_NAME, Manifest
from flts_ray.promotions import Entry, PromotionLog
from flts_ray.store import Store
from flts_ray.tune.outcome import TrialOutcome, read_outcomes
from flts_ray.tune.space import sample_trials


@dataclass(frozen=True)
class Status:
    """`services`: name to (address, what it answered)."""

    name: str
    root: str
    prepared: tuple[Manifest, ...]
    studies: dict[str, tuple[TrialOutcome, ...]]
    newest: Entry | None
    services: dict[str, tuple[str, str]]
    stream: StreamStatus | None = None


def status_of(config: Config) -> Status:
    """Look around. Raises Unavailable if the store cannot be used."""
    adopt_local(config)
    store = Store.open(config.root)
    return Status(
        name=config.name,
        root=config.root,
        prepared=prepared_sets(store),
        studies=_studies(config),
        newest=PromotionLog(store, config.name).newest(),
        services={
            name: (address, _answer(name, address)) for name, address in _running(config).items()
        },
        stream=stream_status(config, store, datetime.now(UTC)),
    )


def prepared_sets(store: Store) -> tuple[Manifest, ...]:
    """The manifests of all prepared sets under a root."""
    keys = [info.key for info in store.list("prepared") if info.key.endswith(MANIFEST_NAME)]
    return tuple(Manifest.from_json(store.get(key), store.uri(key)) for key in keys)


def _running(config: Config) -> dict[str, str]:
    """Addresses of what the configuration names, or commands of this machine run."""
    folder = local_folder(config)
    mlflow = config.mlflow.uri or mlflow_in_use(folder / "mlflow")
    found = {"mlflow": mlflow} if mlflow else {}
    return found | dict(announced(folder, config.name))


def _studies(config: Config) -> dict[str, tuple[TrialOutcome, ...]]:
    folder = local_folder(config) / "studies"
    plans = sample_trials(config.models, config.tune.seed)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {study.name: tuple(read_outcomes(study, plans).values()) for study in found}


def _answer(name: str, address: str) -> str:
    path = {"api": "/readyz", "mlflow": "/health", "dashboard": "/api/version"}[name]
    try:
        code = httpx.get(f"{address.rstrip('/')}{path}", timeout=3.0).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"does not answer ({type(error).__name__})"
    return "ready" if code == httpx.codes.OK else f"answers {code}"
