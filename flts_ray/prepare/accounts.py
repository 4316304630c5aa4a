"""The books of a preparation: what came in is in the output or in the quarantine.

Design choices: reports are small JSON-ready counts, so the books are closed in one place whatever
ran the steps; a set that does not add up is never published.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from flts_ray.config import Config
from flts_ray.errors import ArtifactError, DataError
from flts_ray.prepare.buckets import Plan, mixed_kinds, write_parquet
from flts_ray.prepare.kernel import count_codes
from flts_ray.prepare.manifest import (
    PREPARATION_VERSION,
    QUARANTINE_NAME,
    Manifest,
    describe_inputs,
    hashed_config,
    labelled,
)
from flts_ray.store import Store

Report = dict[str, Any]


def account(
    plan: Plan, config: Config, name: str, split: Sequence[Report], made: Sequence[Report]
) -> Manifest:
    """Manifest of a set from the reports of its steps; writes the merged quarantine.

    split, made: reports of `split_input` and `prepare_pieces`, in order; name: the set's hash.
    Raises ArtifactError if a row or a series is unaccounted for, DataError if no series is left.
    """
    _check_accounts(split, made)
    store = Store.open(plan.root)
    quarantine = _read_quarantine(store, made)
    listed = write_parquet(store, plan.folder, QUARANTINE_NAME, quarantine)
    counts = _add(report["quarantine"] for report in made)
    series = sum(report["series"] for report in made)
    if not series:
        raise _nothing_left(quarantine, f"{plan.root}/{plan.folder}/{QUARANTINE_NAME}")
    splits = _add(report["splits"] for report in made)
    files = [file for report in made for file in report["files"]] + [listed]
    categories = _categories([report["categories"] for report in made])
    return Manifest(
        hash=name,
        version=PREPARATION_VERSION,
        config=hashed_config(config, plan.rules.contract),
        inputs=describe_inputs(plan.inputs),
        contract=labelled(plan.rules.contract, categories),
        season=plan.rules.contract.season,
        horizon=plan.rules.horizon,
        buckets=plan.buckets,
        input_rows=sum(report["rows"] for report in split),
        rows=sum(splits.values()),
        series=series,
        splits=splits,
        repairs=_add(report["repairs"] for report in made),
        quarantine=counts,
        categories=categories,
        files=sorted(files, key=lambda file: str(file["path"])),
    )


def _check_accounts(split: Sequence[Report], made: Sequence[Report]) -> None:
    """Every row that was read reached a bucket; every series is in output or quarantine."""
    read, arrived = (sum(r["rows"] for r in split), sum(r["input_rows"] for r in made))
    if read != arrived:
        raise ArtifactError(
            f"{read} rows were read, {arrived} reached their bucket: pieces were lost from the "
            "store; run `flts prepare --force`"
        )
    for report in made:
        known = report["series"] + sum(report["quarantine"].values())
        if known != report["input_series"]:
            raise ArtifactError(
                f"bucket {report['bucket']}: {report['input_series']} series went in, {known} "
                "came out; the set is not published"
            )


def _read_quarantine(store: Store, made: Sequence[Report]) -> pa.Table:
    tables = [pa.ipc.open_stream(store.get(r["quarantine_key"])).read_all() for r in made]
    return pa.concat_tables(tables).sort_by("unique_id")


def _nothing_left(quarantine: pa.Table, where: str) -> DataError:
    counts = count_codes(quarantine)
    first = {row["code"]: row for row in reversed(quarantine.to_pylist())}
    problems = [
        f"{code}: {count} series, such as {first[code]['unique_id']}: {first[code]['reason']}"
        for code, count in counts.items()
    ]
    return DataError(
        f"every series was quarantined, nothing is left to forecast; the reasons are in {where}",
        problems=problems,
    )


def _add(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return dict(sorted(total.items()))


def _categories(parts: Sequence[dict[str, list[str] | None]]) -> dict[str, list[str]]:
    """Sorted values of each static text column over all buckets."""
    merged: dict[str, set[str]] = {}
    for part in parts:
        for name, values in part.items():
            if values is not None:
                merged.setdefault(name, set()).update(values)
    mixed = [name for part in parts for name in merged if part.get(name, []) is None]
    if mixed:
        raise mixed_kinds(mixed[0])
    return {name: sorted(values) for name, values in sorted(merged.items())}
