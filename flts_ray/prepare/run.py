"""Preparation from end to end: inputs, split by series, prepare each bucket, manifest.

Design choices: the same two plain steps run in this process or on Ray and give the same bytes;
every problem of every input is collected and raised in one error; the manifest is written last,
as the mark that the set is complete, and the spilled pieces go whatever happens.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from flts_ray.config import Config, DataConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract, Frequency, to_local_us
from flts_ray.prepare.accounts import account
from flts_ray.prepare.buckets import (
    Plan,
    bucket_count,
    prepare_pieces,
    split_input,
)
from flts_ray.prepare.calendar import check_holidays
from flts_ray.prepare.dataset import ray_runs, run_on_ray
from flts_ray.prepare.density import rows_expected
from flts_ray.prepare.kernel import Rules
from flts_ray.prepare.loading import PreparedSet, find_prepared
from flts_ray.prepare.manifest import (
    MANIFEST_NAME,
    describe_inputs,
    hashed_config,
    make_contract,
    prepared_hash,
    set_folder,
)
from flts_ray.prepare.steps import (
    Progress,
    Report,
    Step,
    in_turn,
    remove_folder,
    run_stage,
    silent,
)
from flts_ray.sources.infer import infer_frequency
from flts_ray.sources.inputs import Input
from flts_ray.sources.read import read_batches
from flts_ray.sources.snapshot import Source, find_source
from flts_ray.store import Store

AUTO_LOCAL_BYTES = 256 * 2**20
FEW_STEPS = 64
"""From twice as many files on, one step splits several of them, as a step has its price on Ray."""
STEP_BYTES = 64 * 2**20
INFER_ROWS = 500_000
"""Rows of the first input from which an undeclared frequency is inferred."""


def prepare(
    config: Config, *, force: bool = False, progress: Progress | None = None
) -> PreparedSet:
    """The prepared set of this configuration and its inputs; made unless it is there.

    force: make it again. Raises DataError for inputs that cannot be read and when every series
    is quarantined, ConfigError for a holiday code or column name that cannot be used.
    """
    if config.prepare.holidays:
        check_holidays(config.prepare.holidays)
    source = find_source(config)
    config = config.model_copy(update={"data": source.data})
    contract = make_contract(config, _frequency(source))
    name = prepared_hash(
        hashed_config(config, contract), describe_inputs(source.inputs), source.snapshot
    )
    found = None if force else find_prepared(config.root, name)
    if found is not None and found.is_whole():
        return found
    return _build(config, source, contract, name, progress or silent)


def _frequency(source: Source) -> Frequency:
    """Declared, or inferred from the first rows of the first file, of all dates of a table."""
    data = source.data
    if data.frequency:
        return Frequency(data.frequency)
    parts: list[pa.Table] = []
    for batch in _batches(source.inputs[: 1 if source.snapshot is None else None], data):
        parts.append(batch.select(["unique_id", "ds"]))
        if sum(map(len, parts)) >= INFER_ROWS:
            break
    rows = pa.concat_tables(parts)
    wall = to_local_us(rows["ds"].cast(pa.int64()).to_numpy(), data.time_zone)
    return infer_frequency(rows["unique_id"], wall)


def _batches(inputs: Sequence[Input], data: DataConfig) -> Iterator[pa.Table]:
    for one in inputs:
        yield from read_batches(one, data)


def _build(
    config: Config, source: Source, contract: Contract, name: str, progress: Progress
) -> PreparedSet:
    store = Store.open(config.root)
    plan = Plan(
        # The store's own address is absolute: workers run in other folders.
        root=store.root,
        folder=set_folder(name),
        # Its own folder: two builds of one set must not remove each other's pieces.
        spill=f"spill/{name[:16]}-{uuid.uuid4().hex[:8]}",
        buckets=_buckets(config, source.inputs),
        inputs=source.inputs,
        data=config.data,
        rules=Rules(
            contract=contract,
            prepare=config.prepare,
            split=config.split,
            horizon=config.task.horizon,
            has_test_files=config.data.test_path is not None,
        ),
    )
    try:
        split, made = _run_steps(plan, config, source.setting, progress)
        manifest = replace(account(plan, config, name, split, made), snapshot=source.snapshot)
    finally:
        remove_folder(store, plan.spill)
    store.put(f"{plan.folder}/{MANIFEST_NAME}", manifest.to_json())
    return PreparedSet(store.root, manifest)


def _buckets(config: Config, inputs: Sequence[Input]) -> int:
    rows = rows_expected(inputs, max(1, len(config.data.targets)))
    return bucket_count(sum(one.size for one in inputs), config.prepare.buckets, rows)


def _run_steps(
    plan: Plan, config: Config, setting: str, progress: Progress
) -> tuple[list[Report], list[Report]]:
    """Split every input, then prepare every bucket. Returns their reports in order."""
    run = partial(_on_ray, config) if wants_ray(config, plan.inputs) else in_turn
    count, at_once = len(plan.inputs), inputs_at_once(plan.inputs)
    split = run_stage(run, partial(split_input, plan), count, "split", progress, at_once)
    pieces: dict[int, list[str]] = {}
    for report in split:
        for bucket, key in report["pieces"]:
            pieces.setdefault(bucket, []).append(key)
    if not pieces:
        names = ", ".join(one.name for one in plan.inputs[:5])
        raise DataError(f"{names}: no rows in the input; check {setting}")
    chosen = sorted(pieces.items())
    prepare_one = partial(_prepare_chosen, plan, chosen)
    return split, run_stage(run, prepare_one, len(chosen), "prepare", progress)


def _on_ray(config: Config, step: Step, count: int) -> Iterator[Report]:
    return run_on_ray(step, count, config.ray)


def inputs_at_once(inputs: Sequence[Input]) -> int:
    """Inputs that one step splits: one, or several where they are many and small."""
    size = max(1, sum(one.size for one in inputs))
    return max(1, min(len(inputs) // FEW_STEPS, len(inputs) * STEP_BYTES // size))


def _prepare_chosen(plan: Plan, chosen: Sequence[tuple[int, list[str]]], index: int) -> Report:
    return {"index": index, **prepare_pieces(plan, *chosen[index])}


def wants_ray(config: Config, inputs: Sequence[Input]) -> bool:
    """True where the steps over these inputs run on a cluster."""
    if config.prepare.engine != "auto":
        return config.prepare.engine == "ray"
    return ray_runs() or sum(one.size for one in inputs) >= AUTO_LOCAL_BYTES
