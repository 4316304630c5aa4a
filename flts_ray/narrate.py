"""How far a pipeline is: bars and rules in a terminal, events in a log.

Design choices: one line a step that stays, bars only while something moves; without a terminal
the same steps are structured events, so that a job's log can be searched.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from flts_ray.tune.progress import StudyProgress, StudyView


class ConsoleNarrator:
    """Steps as lines, stages as bars. A context manager that leaves the terminal clean."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def step(self, title: str, detail: str = "") -> None:
        self.clear()
        if not self.console.is_terminal:
            self.console.print(Text(f"{title:<9} {detail}".rstrip()), soft_wrap=True)
            return
        line = Table.grid(padding=(0, 1))
        line.add_column(style="bold cyan", min_width=9, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(Text(title), Text(detail))
        self.console.print(line)

    def stage(self, name: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            return
        if self._progress is None:
            columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        self.clear()
        return StudyProgress(self.console)

    def clear(self) -> None:
        """Take bars off the screen."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks.clear()

    def __enter__(self) -> ConsoleNarrator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()


class LogNarrator:
    """Steps as events named `pipeline_step`."""

    def step(self, title: str, detail: str = "") -> None:
        structlog.get_logger().info("pipeline_step", step=title, detail=detail)

    def stage(self, name: str, done: int, total: int) -> None:
        if done == total:
            structlog.get_logger().info("pipeline_stage", stage=name, done=done)

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        return StudyProgress(Console(force_terminal=False, stderr=True))


def set_up_logging(json_lines: bool) -> None:
    """Events to standard error: JSON for machines; for people warnings only, as short lines."""
    renderer = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.INFO if json_lines else logging.WARNING
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for chatty in ("ray", "ray.serve", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
