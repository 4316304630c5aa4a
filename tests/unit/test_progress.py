from __future__ import annotations

import io
from dataclasses import replace

import structlog
from rich.console import Console

from flts_ray.tune.outcome import TrialOutcome
from flts_ray.tune.progress import StudyProgress, StudyView, best_line

VIEW = StudyView(
    total=5,
    finished=2,
    stopped=1,
    failed=1,
    running=(TrialOutcome("gru-02", "gru", {}, epochs=3),),
    elapsed_s=12.34,
    budget_s=60.0,
    best={"ar": 0.5, "gru": 0.25},
)


def test_a_terminal_shows_trials_time_and_scores() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with StudyProgress(console) as progress:
        progress(VIEW)
    text = screen.getvalue()
    for part in ("4/5", "12/60", "1 failed", "1 stopped early", "gru-02 (3)", "0.2500"):
        assert part in text


def test_without_a_terminal_only_changes_are_written() -> None:
    screen = io.StringIO()
    with structlog.testing.capture_logs() as events, StudyProgress(Console(file=screen)) as show:
        show(VIEW)
        show(replace(VIEW, elapsed_s=20.0))
        show(replace(VIEW, finished=3))
    assert screen.getvalue() == ""
    assert [(event["event"], event["done"]) for event in events] == [
        ("study_progress", 4),
        ("study_progress", 5),
    ]
    assert events[0]["best"] == {"ar": 0.5, "gru": 0.25}


def test_the_lowest_score_leads() -> None:
    assert best_line(VIEW).plain.split()[1:] == ["gru", "0.2500", "ar", "0.5000"]


def test_a_study_without_news_draws_no_bars() -> None:
    screen = io.StringIO()
    with StudyProgress(Console(file=screen, force_terminal=True, width=120)):
        pass
    assert "trials" not in screen.getvalue()
