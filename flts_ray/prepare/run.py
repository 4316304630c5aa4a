"""Preparation from end to end: inputs, split by series, prepare each bucket, manifest.

Design choices: the same two plain steps run in this process or on Ray and give the same bytes;
every problem of every input is collected and raised in one error; the manifest is written last,
as the mark that the set is complete, and the spilled pieces go whatever happens.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs

from flts_ray.config import Config, DataConfig
from flts_ray.errors import ArtifactError, ConfigError, DataError, FltsError, Unavailable
from flts_ray.panel import Contract, Frequency, to_local_us
from flts_ray.prepare.accounts import Report, account
from flts_ray.prepare.buckets import (
    Plan,
    bucket_count,
    prepare_pieces,
    split_input,
)
from flts_ray.prepare.calendar import check_holidays
from flts_ray.prepare.dataset import Step, ray_runs, run_on_ray
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
from flts_ray.sources.infer import infer_frequency
from flts_ray.sources.inputs import Input, find_inputs
from flts_ray.sources.read import read_batches
from flts_ray.store import Store

Progress = Callable[[str, int, int], None]
"""Called with the stage (`split`, `prepare`), how many of its steps are done, and of how many."""

AUTO_LOCAL_BYTES = 256 * 2**20
INFER_ROWS = 500_000
"""Rows of the first input from which an undeclared frequency is inferred."""
_BY_NAME: dict[str, type[FltsError]] = {
    kind.__name__: kind for kind in (ConfigError, ArtifactError, Unavailable)
}


def prepare(
    config: Config, *, force: bool = False, progress: Progress | None = None
) -> PreparedSet:
    """The prepared set of this configuration and its inputs; made unless it is there.

    force: make it again. Raises DataError for inputs that cannot be read and when every series
    is quarantined, ConfigError for a holiday code or column name that cannot be used.
    """
    if config.prepare.holidays:
        check_holidays(config.prepare.holidays)
    inputs = find_inputs(config.data)
    contract = make_contract(config, _frequency(config.data, inputs))
    name = prepared_hash(hashed_config(config, contract), describe_inputs(inputs))
    found = None if force else find_prepared(config.root, name)
    if found is not None and found.is_whole():
        return found
    return _build(config, inputs, contract, name, progress or _silent)


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _frequency(data: DataConfig, inputs: Sequence[Input]) -> Frequency:
    """Declared, or inferred from the first rows of the first input."""
    if data.frequency:
        return Frequency(data.frequency)
    parts: list[pa.Table] = []
    for batch in read_batches(inputs[0], data):
        parts.append(batch.select(["unique_id", "ds"]))
        if sum(map(len, parts)) >= INFER_ROWS:
            break
    rows = pa.concat_tables(parts)
    wall = to_local_us(rows["ds"].cast(pa.int64()).to_numpy(), data.time_zone)
    return infer_frequency(rows["unique_id"], wall)


def _build(
    config: Config, inputs: Sequence[Input], contract: Contract, name: str, progress: Progress
) -> PreparedSet:
    store = Store.open(config.root)
    plan = Plan(
        # The store's own address is absolute: workers run in other folders.
        root=store.root,
        folder=set_folder(name),
        # Its own folder: two builds of one set must not remove each other's pieces.
        spill=f"spill/{name[:16]}-{uuid.uuid4().hex[:8]}",
        buckets=bucket_count(sum(one.size for one in inputs), config.prepare.buckets),
        inputs=tuple(inputs),
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
        split, made = _run_steps(plan, config, progress)
        manifest = account(plan, config, name, split, made)
    finally:
        _remove(store, plan.spill)
    store.put(f"{plan.folder}/{MANIFEST_NAME}", manifest.to_json())
    return PreparedSet(store.root, manifest)


def _run_steps(plan: Plan, config: Config, progress: Progress) -> tuple[list[Report], list[Report]]:
    """Split every input, then prepare every bucket. Returns their reports in order."""
    on_ray = _wants_ray(config, plan.inputs)

    def run(stage: str, step: Step, count: int) -> list[Report]:
        # Workers answer with errors as values: every problem is told, not only the first.
        tried = partial(attempt, step)
        answers = run_on_ray(tried, count, config.ray) if on_ray else map(tried, range(count))
        return _collect(answers, stage, count, progress)

    split = run("split", partial(split_input, plan), len(plan.inputs))
    pieces: dict[int, list[str]] = {}
    for report in split:
        for bucket, key in report["pieces"]:
            pieces.setdefault(bucket, []).append(key)
    if not pieces:
        names = ", ".join(one.name for one in plan.inputs[:5])
        raise DataError(f"{names}: no rows in the input; check data.path")
    chosen = sorted(pieces.items())
    return split, run("prepare", partial(_prepare_chosen, plan, chosen), len(chosen))


def _prepare_chosen(plan: Plan, chosen: Sequence[tuple[int, list[str]]], index: int) -> Report:
    return {"index": index, **prepare_pieces(plan, *chosen[index])}


def _wants_ray(config: Config, inputs: Sequence[Input]) -> bool:
    if config.prepare.engine != "auto":
        return config.prepare.engine == "ray"
    return ray_runs() or sum(one.size for one in inputs) >= AUTO_LOCAL_BYTES


def attempt(step: Step, index: int) -> Report:
    """Run a step; an error meant for the user becomes a report that crosses processes."""
    try:
        return step(index)
    except FltsError as error:
        field = error.field if isinstance(error, DataError) else None
        told = {"kind": type(error).__name__, "message": str(error), "field": field}
        return {"index": index, "error": told}


def _collect(answers: Iterator[Report], stage: str, count: int, progress: Progress) -> list[Report]:
    """Reports in step order. Raises the one error, or one that lists them all."""
    reports = []
    progress(stage, 0, count)
    for done, answer in enumerate(answers, start=1):
        reports.append(answer)
        progress(stage, done, count)
    reports.sort(key=lambda report: report["index"])
    errors = [report["error"] for report in reports if "error" in report]
    if len(errors) == 1:
        raise _error(errors[0])
    if errors:
        raise DataError(
            f"{len(errors)} of {count} parts of the input cannot be used",
            field=errors[0]["field"],
            problems=[error["message"] for error in errors],
        )
    return reports


def _error(told: dict[str, Any]) -> FltsError:
    if told["field"] is not None:
        return DataError(told["message"], field=told["field"])
    return _BY_NAME.get(told["kind"], DataError)(told["message"])


def _remove(store: Store, folder: str) -> None:
    for item in store.list(folder):
        store.delete(item.key)
    filesystem, base = store.filesystem()
    # Only a folder of this machine outlives its files; in a bucket this would leave a marker.
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        path = f"{base}/{folder}"
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            filesystem.delete_dir(path)
