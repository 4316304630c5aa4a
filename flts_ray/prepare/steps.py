"""Numbered steps that run in this process or on a cluster, and what they leave behind.

Design choices: a step is a plain function of its number that answers with a small JSON report, so
whatever runs it gives the same result; errors meant for the user come back as values, so that
every problem is told and not only the first; spilled pieces go whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow.fs

from flts_ray.errors import ArtifactError, ConfigError, DataError, FltsError, Unavailable
from flts_ray.store import Denied, Store

Report = dict[str, Any]
Step = Callable[[int], Report]
Run = Callable[[Step, int], Iterator[Report]]
"""Runs a step for the numbers 0 to count - 1; reports come in any order."""
Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how many of its steps are done, and of how many."""

_BY_NAME: dict[str, type[FltsError]] = {
    kind.__name__: kind for kind in (ConfigError, ArtifactError, Unavailable, Denied)
}


def in_turn(step: Step, count: int) -> Iterator[Report]:
    """Run in this process, one after the other."""
    return map(step, range(count))


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def run_stage(
    run: Run,
    step: Step,
    count: int,
    stage: str,
    progress: Progress = silent,
    at_once: int = 1,
) -> list[Report]:
    """Reports of all steps in their order. Raises the one error, or one that lists them all.

    at_once: how many steps the runner gets as one, where each alone is too little for it.
    """
    groups = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    answers = run(partial(_group, step, groups), len(groups))
    return _collect(answers, stage, count, progress)


def _group(step: Step, groups: Sequence[range], index: int) -> Report:
    return {"reports": [attempt(step, one) for one in groups[index]]}


def attempt(step: Step, index: int) -> Report:
    """Run a step; an error meant for the user becomes a report that crosses processes."""
    try:
        return step(index)
    except FltsError as error:
        field = error.field if isinstance(error, DataError) else None
        told = {"kind": type(error).__name__, "message": str(error), "field": field}
        return {"index": index, "error": told}


def remove_folder(store: Store, folder: str) -> None:
    """Forget everything below a folder, and the folder."""
    for item in store.list(folder):
        store.delete(item.key)
    filesystem, base = store.filesystem()
    # Only a folder of this machine outlives its files; in a bucket this would leave a marker.
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        path = f"{base}/{folder}"
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            filesystem.delete_dir(path)


def _collect(answers: Iterable[Report], stage: str, count: int, progress: Progress) -> list[Report]:
    reports: list[Report] = []
    progress(stage, 0, count)
    for answer in answers:
        reports += answer["reports"]
        progress(stage, len(reports), count)
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
