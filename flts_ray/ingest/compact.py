"""From segments to the next entry of the table's log.

Design choices: two stages of plain steps (sort new segments by date into spilled pieces, then
merge each date), run in this process or on Ray with the same bytes; a step holds one segment, or
one date, whatever the size of the table; files are named by their content and written before the
entry that names them, so a compactor that dies leaves only files that nobody refers to; of two
compactors at once one takes the next number and the other looks again; only dates that got rows
are written again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flts_ray
from flts_ray.errors import Conflict, DataError
from flts_ray.ingest.compact_steps import (
    Job,
    Plan,
    grouped_dates,
    grouped_segments,
    merge_dates,
    split_segments,
)
from flts_ray.ingest.faults import NO_FAULTS, Faults
from flts_ray.ingest.news import new_segments
from flts_ray.ingest.segment import SegmentInfo
from flts_ray.prepare.steps import Progress, Run, in_turn, remove_folder, run_stage, silent
from flts_ray.sources.table_log import (
    HeldSegment,
    LogEntry,
    TableFile,
    append_entry,
    newest_entry,
)
from flts_ray.store import Store

ATTEMPTS = 20
"""Times that another compactor may be quicker before it is an error."""
SPILL = "spill/table"


def compact(
    store: Store,
    topic: str,
    epoch: str,
    *,
    run: Run = in_turn,
    faults: Faults = NO_FAULTS,
    progress: Progress = silent,
) -> LogEntry:
    """The newest entry, made unless the table holds every segment already.

    run: `in_turn`, or what `compact_ray.on_ray` gives. Raises DataError if nothing is stored,
    ArtifactError for a broken chain or a damaged object, Unavailable if the store is away
    (repeating is harmless), Conflict if others were quicker again and again.
    """
    for _ in range(ATTEMPTS):
        base = newest_entry(store, topic, epoch)
        added = new_segments(store, topic, epoch, base.ranges if base else {})
        if not added:
            return base or _nothing(store, topic, epoch)
        faults.at("compacting")
        entry = _entry(base, added, _written(store, base, added, run, progress))
        faults.at("compacting")
        if append_entry(store, entry):
            return entry
    raise Conflict(
        f"{store.root}: {ATTEMPTS} times another compactor of topic {topic} was quicker; leave it "
        "to them, or repeat"
    )


def _nothing(store: Store, topic: str, epoch: str) -> LogEntry:
    raise DataError(
        f"{store.root}: no segment of topic {topic} (epoch {epoch}) is stored; `flts ingest run` "
        "stores them"
    )


def _written(
    store: Store,
    base: LogEntry | None,
    added: Sequence[SegmentInfo],
    run: Run,
    progress: Progress,
) -> list[TableFile]:
    """All files of the table with the added rows, by path; those of their dates are written."""
    topic, epoch = added[0].topic, added[0].epoch
    spill = f"{SPILL}/{topic}/{epoch}/{uuid.uuid4().hex}"
    plan = Plan(store.root, topic, epoch, spill, grouped_segments(added))
    files = {file.date: file for file in base.files} if base else {}
    try:
        split = run_stage(run, partial(split_segments, plan), len(plan.groups), "split", progress)
        groups = grouped_dates(_jobs(files, [one for r in split for one in r["pieces"]]))
        merging = partial(merge_dates, plan, groups)
        merged = run_stage(run, merging, len(groups), "merge", progress)
    finally:
        remove_folder(store, spill)
    files |= {raw["date"]: TableFile(**raw) for report in merged for raw in report["files"]}
    return sorted(files.values(), key=lambda file: file.path)


def _jobs(files: dict[str, TableFile], pieces: Sequence[list[Any]]) -> list[Job]:
    """One job a date that got rows, dates ascending."""
    by_date: dict[str, Job] = {}
    for date, rows, *place in pieces:
        job = by_date.get(date) or Job(date, files.get(date), 0, ())
        by_date[date] = replace(job, rows=job.rows + rows, pieces=(*job.pieces, tuple(place)))
    return [by_date[date] for date in sorted(by_date)]


def _entry(
    base: LogEntry | None, added: Sequence[SegmentInfo], files: Sequence[TableFile]
) -> LogEntry:
    ranges = dict(base.ranges) if base else {}
    lost = dict(base.lost) if base else {}
    for info in added:
        ranges[info.partition] = (ranges.get(info.partition, (info.begin, 0))[0], info.end)
        if info.lost:
            lost[info.partition] = lost.get(info.partition, 0) + info.lost
    return LogEntry(
        number=base.number + 1 if base else 1,
        previous=base.sha256 if base else None,
        topic=added[0].topic,
        epoch=added[0].epoch,
        ranges=dict(sorted(ranges.items())),
        lost=dict(sorted(lost.items())),
        segments=tuple(_held(info) for info in added),
        files=tuple(files),
        created_by_version=flts_ray.__version__,
    )


def _held(info: SegmentInfo) -> HeldSegment:
    return HeldSegment(
        key=info.key,
        partition=info.partition,
        begin=info.begin,
        end=info.end,
        rows=info.rows,
        bad_rows=info.bad_rows,
        lost=info.lost,
        checksum=info.checksum,
    )
