"""What a running study shows: bars in a terminal, one event a trial elsewhere.

Design choices: rich redraws at its own pace (four times a second), so calling this often costs
nothing and does not flicker; without a terminal only changes are written, as structured events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import structlog
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from flts_ray.tune.outcome import TrialOutcome


@dataclass(frozen=True)
class StudyView:
    """A study at one moment. `best` maps each kind to its lowest validation score so far."""

    total: int
    finished: int
    stopped: int
    failed: int
    running: tuple[TrialOutcome, ...]
    elapsed_s: float
    budget_s: float
    best: Mapping[str, float]

    @property
    def done(self) -> int:
        return self.finished + self.stopped + self.failed


class StudyProgress:
    """Shows views; pass it as `on_progress`. A context manager that cleans up the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._trials = Progress(
            TextColumn("{task.description:>7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        # A study that was over before has nothing to show.
        self._trial_bar = self._trials.add_task("trials", total=None, note="", visible=False)
        self._time_bar = self._trials.add_task("seconds", total=None, note="", visible=False)
        self._done = -1

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live = Live(self._trials, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, view: StudyView) -> None:
        """Show `view`; in plain mode only if a trial has ended since the last one."""
        if self._live is not None:
            self._draw(self._live, view)
        elif view.done != self._done:
            structlog.get_logger().info(
                "study_progress",
                done=view.done,
                total=view.total,
                failed=view.failed,
                elapsed_s=round(view.elapsed_s, 1),
                budget_s=view.budget_s,
                best={kind: round(score, 5) for kind, score in view.best.items()},
            )
        self._done = view.done

    def _draw(self, live: Live, view: StudyView) -> None:
        notes = [f"{view.stopped} stopped early"] if view.stopped else []
        notes += [f"{view.failed} failed"] if view.failed else []
        notes += [running_line(view.running)] if view.running else []
        self._trials.update(
            self._trial_bar,
            completed=view.done,
            total=view.total,
            note="; ".join(notes),
            visible=True,
        )
        self._trials.update(
            self._time_bar,
            completed=int(min(view.elapsed_s, view.budget_s)),
            total=int(view.budget_s),
            visible=True,
        )
        live.update(Group(self._trials, best_line(view)))


def running_line(running: Sequence[TrialOutcome]) -> str:
    """Names of running trials, with the epochs of those that have any."""
    names = [f"{o.trial_id} ({o.epochs})" if o.epochs else o.trial_id for o in running]
    return f"running {', '.join(names)}"


def best_line(view: StudyView) -> Text:
    """Kinds by their best validation score, the leader in bold."""
    ranked = sorted(view.best.items(), key=lambda item: item[1])
    line = Text("   best ")
    for place, (kind, score) in enumerate(ranked):
        line.append(f" {kind} {score:.4f}", style="bold green" if place == 0 else "")
    return line
