"""The tracking run of a study: opened or continued, and always closed with the right status.

Design choices: the study's folder remembers its run, so that a resumed study goes on in it; a run
that the tracking server does not know any more is replaced, and its trials are logged again; one
process at a time works on a study, because a second one would remove the files of the first; an
error keeps its own message even if the server is away when the run should be closed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import structlog

from flts_ray.atomic_files import appearing
from flts_ray.config import Config
from flts_ray.errors import Conflict, DataError, FltsError
from flts_ray.runs import CONFIG_HASH, PREPARED_HASH, StudyRuns
from flts_ray.tune.study import clear_study


@contextmanager
def tracked_run(
    config: Config, prepared_hash: str, folder: Path, runs: StudyRuns, *, resume: bool
) -> Iterator[str]:
    """The id of the parent run, which is FINISHED when the block ends, FAILED after an error and
    KILLED after Ctrl-C; trials still open are KILLED.

    Without `resume` the trials in `folder` are forgotten. Raises Conflict if another process
    works on the study, Unavailable without the tracking server.
    """
    with _alone(folder):
        parent = _parent_run(config, prepared_hash, folder, runs, resume=resume)
        try:
            yield parent
        except BaseException as error:
            status: Literal["KILLED", "FAILED"] = (
                "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            )
            _close(runs, parent, status, str(error) or type(error).__name__)
            raise
        runs.end_study(parent, "FINISHED")


def _parent_run(
    config: Config, prepared_hash: str, folder: Path, runs: StudyRuns, *, resume: bool
) -> str:
    note = folder / "parent_run"
    if resume and note.exists():
        try:
            return runs.resume_study(note.read_text())
        except DataError as error:
            structlog.get_logger().warning("study_run_replaced", why=str(error))
    parent = runs.start_study(
        {"name": config.name, "horizon": config.task.horizon, "score": config.judge.score},
        {CONFIG_HASH: config.digest(), PREPARED_HASH: prepared_hash},
    )
    runs.log_json(parent, config.model_dump(mode="json"), "config")
    if not resume:
        clear_study(folder)
    for logged in folder.glob("artifacts/*/run.json"):
        logged.unlink()
    with appearing(note) as stream:
        stream.write(parent.encode())
    return parent


def _close(runs: StudyRuns, parent: str, status: Literal["KILLED", "FAILED"], error: str) -> None:
    try:
        for trial in runs.trials(parent):
            if trial.info.status == "RUNNING":
                runs.end_trial(trial.info.run_id, "KILLED", {})
        runs.end_trial(parent, status, {}, error)
    except FltsError as away:
        structlog.get_logger().warning("study_run_left_open", run_id=parent, why=str(away))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(
            f"{folder}: another process is training this study; wait for it, then `flts train "
            "--resume` judges what it found"
        ) from None
