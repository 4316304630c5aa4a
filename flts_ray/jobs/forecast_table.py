"""Forecasts of all series in files, as many as there are, into a folder of Parquet files.

Design choices: two steps that any node can run, as in preparation and by the same runners: split
an input by series into buckets, forecast a bucket; rows travel through the store only, so memory
holds one bucket a process however large the input is; each process loads the champion once; the
model answers as over HTTP (`forecast_bucket.py`), without any server in between.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from flts_ray.champion import ChampionRef
from flts_ray.config import Config, DataConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.compact_ray import on_ray
from flts_ray.jobs.forecast_bucket import Wanted, forecast_bucket
from flts_ray.jobs.forecast_output import REFUSED_FOLDER, OutputFolder
from flts_ray.jobs.histories import data_at
from flts_ray.jobs.session import open_session, ray_cluster
from flts_ray.jobs.up import adopt_local
from flts_ray.local.private import private_folder
from flts_ray.panel import Contract
from flts_ray.prepare.buckets import Plan, bucket_count, split_input, unite
from flts_ray.prepare.kernel import Rules
from flts_ray.prepare.manifest import describe_inputs
from flts_ray.prepare.run import inputs_at_once, wants_ray
from flts_ray.prepare.steps import Progress, Report, Run, in_turn, remove_folder, run_stage
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.predictor import wanted_horizon, wanted_levels
from flts_ray.serve.source import RegistrySource
from flts_ray.services import Narrator, Services
from flts_ray.sources.inputs import Input, find_inputs
from flts_ray.store import Store


@dataclass(frozen=True)
class Champion:
    """Which model forecasts, and where any process finds it."""

    mlflow_uri: str
    root: str
    name: str
    ref: ChampionRef


@dataclass(frozen=True)
class Job:
    """Everything the step of a bucket needs; travels to the workers. `pieces` by bucket."""

    plan: Plan
    champion: Champion
    wanted: Wanted
    output: str
    pieces: tuple[tuple[int, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`made` is false where complete forecasts of the same kind were there already."""

    place: str
    manifest: dict[str, Any]
    made: bool


def forecast_table(
    config: Config,
    path: str,
    output: str,
    narrator: Narrator,
    *,
    horizon: int | None = None,
    quantiles: Sequence[float] = (),
    force: bool = False,
) -> Outcome:
    """Forecast every series of a file, folder or glob with the champion, into a folder.

    Raises DataError for input that cannot be read, for a folder that holds something else and
    where no series at all can be forecast, Unavailable without a champion.
    """
    adopt_local(config)
    data = data_at(config.data, path)
    inputs = find_inputs(data)
    folder = OutputFolder(output)
    store = Store.open(config.root)
    # Its own folder: two commands must not remove each other's pieces.
    spill = f"spill/forecast-{uuid.uuid4().hex[:16]}"
    # Removed only when the cluster is left: until then its tasks may still write there.
    try:
        with open_session(config) as services:
            champion = _champion(services, store)
            model = served(champion)
            wanted = Wanted(
                wanted_horizon(horizon, model, "horizon"),
                wanted_levels(quantiles or None, model, "quantiles"),
                config.serve.max_batch,
            )
            plan = _plan(config, store, spill, data, inputs, model)
            job = Job(plan, champion, wanted, folder.place)
            about = _about(job, model, path)
            found = folder.begin(about["of"], force)
            if found is not None:
                return Outcome(folder.place, found, made=False)
            made = _run(job, config, narrator)
            folder.finish(manifest := about | _counted(made, folder))
            return Outcome(folder.place, manifest, made=True)
    finally:
        remove_folder(store, spill)


def _champion(services: Services, store: Store) -> Champion:
    name = services.config.name
    source = RegistrySource(services.mlflow_uri, store.root, name, private_folder() / name)
    ref = source.current()
    if ref is None:
        raise Unavailable(f"{name} has no champion yet; `flts train` makes one")
    return Champion(services.mlflow_uri, store.root, name, ref)


@lru_cache(maxsize=1)
def served(champion: Champion) -> ServedModel:
    """The model, loaded once a process. Raises ArtifactError for a damaged one."""
    cache = private_folder() / champion.name
    source = RegistrySource(champion.mlflow_uri, champion.root, champion.name, cache)
    return source.load(champion.ref)


def _plan(
    config: Config,
    store: Store,
    spill: str,
    data: DataConfig,
    inputs: Sequence[Input],
    model: ServedModel,
) -> Plan:
    spec = model.fitted.spec
    labels = frozenset(spec.contract.labels)
    return Plan(
        # The store's own address is absolute: workers run in other folders.
        root=store.root,
        folder="",
        spill=spill,
        buckets=bucket_count(sum(one.size for one in inputs), config.prepare.buckets),
        # Labels that look like numbers stay labels.
        inputs=tuple(replace(one, labels=labels) for one in inputs),
        data=data.model_copy(update={"covariates": _roles(spec.contract), "until": None}),
        rules=Rules(spec.contract, config.prepare, config.split, spec.task.horizon, False),
    )


def _roles(contract: Contract) -> dict[str, str]:
    """The columns that this model reads, whatever the configuration says by now."""
    return {
        **dict.fromkeys(contract.known_future, "known_future"),
        **dict.fromkeys(contract.past, "past"),
        **dict.fromkeys(contract.static, "static"),
    }


def _about(job: Job, model: ServedModel, path: str) -> dict[str, Any]:
    """What the forecasts are of, JSON-ready; `of` is the digest of all that decides them."""
    plan, wanted = job.plan, job.wanted
    inputs = describe_inputs(plan.inputs)
    said = {
        "name": model.name,
        "version": model.version,
        "kind": model.fitted.spec.kind,
        "digest": model.digest,
        "horizon": wanted.horizon,
        "quantiles": list(wanted.levels),
    }
    columns = plan.data.model_dump(mode="json", exclude={"path"})
    decides = json.dumps([said, inputs, columns], sort_keys=True)
    return {
        "of": hashlib.sha256(decides.encode()).hexdigest(),
        **said,
        "units": model.fitted.spec.contract.units,
        "input": {"path": path, "files": len(inputs), "bytes": sum(i["size"] for i in inputs)},
    }


def _run(job: Job, config: Config, narrator: Narrator) -> list[Report]:
    """Split every input, then forecast every bucket, here or on the cluster. Their reports."""
    on_cluster = wants_ray(config, job.plan.inputs)
    cluster: AbstractContextManager[Any] = ray_cluster(config) if on_cluster else nullcontext()
    count = len(job.plan.inputs)
    files = "one file" if count == 1 else f"{count} files"
    narrator.step("Forecast", f"{files}, by version {job.champion.ref.version}")
    with cluster:
        run = on_ray(config.ray) if on_cluster else in_turn
        job = replace(job, pieces=_split(job.plan, run, narrator.stage))
        step = partial(forecast_pieces, job)
        return run_stage(run, step, len(job.pieces), "forecast", narrator.stage)


def _split(plan: Plan, run: Run, progress: Progress) -> tuple[tuple[int, tuple[str, ...]], ...]:
    step, at_once = partial(split_input, plan), inputs_at_once(plan.inputs)
    pieces: dict[int, list[str]] = {}
    for report in run_stage(run, step, len(plan.inputs), "split", progress, at_once):
        for bucket, key in report["pieces"]:
            pieces.setdefault(bucket, []).append(key)
    return tuple((bucket, tuple(sorted(keys))) for bucket, keys in sorted(pieces.items()))


def forecast_pieces(job: Job, index: int) -> Report:
    """Forecast one bucket from its pieces and write its files. Returns counts, JSON-ready."""
    bucket, keys = job.pieces[index]
    store = Store.open(job.plan.root)
    pieces = [pa.ipc.open_stream(store.get(key)).read_all() for key in keys]
    model = served(job.champion)
    table = unite(pieces, model.fitted.spec.contract.static)
    made = forecast_bucket(table, model, job.wanted)
    return {
        "index": index,
        "series": made.series,
        "cold_start": made.cold,
        "refused": len(made.refused),
        "reason": made.refused["reason"][0].as_py() if len(made.refused) else None,
        "rows": len(made.table),
        "files": OutputFolder(job.output).write(bucket, made.table, made.refused),
    }


def _counted(made: Sequence[Report], folder: OutputFolder) -> dict[str, Any]:
    """Counts and files of all buckets. Raises DataError where nothing could be forecast."""
    names = ("series", "rows", "cold_start", "refused")
    counts = {name: sum(report[name] for report in made) for name in names}
    if not counts["series"]:
        reasons = [report["reason"] for report in made if report["reason"] is not None]
        raise DataError(
            f"none of {counts['refused']} series can be forecast; {folder.place}/{REFUSED_FOLDER} "
            "tells why of each",
            problems=reasons[:5],
        )
    return counts | {"files": [file for report in made for file in report["files"]]}
