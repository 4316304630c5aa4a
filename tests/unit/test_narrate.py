from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pytest
import structlog
from rich.console import Console

from flts_ray.narrate import ConsoleNarrator, LogNarrator, set_up_logging
from flts_ray.tune.progress import StudyView

VIEW = StudyView(3, 1, 0, 0, (), 2.0, 60.0, {"ar": 0.5})
UP, ERASE = "\x1b[1A", "\x1b[2K"


def left_on_screen(raw: str) -> list[str]:
    """What a terminal still shows after it obeyed every move and erasure."""
    lines, row = [""], 0
    for token in re.split(r"(\x1b\[\??[0-9;]*[A-Za-z]|\r|\n)", raw):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == UP:
            row = max(0, row - 1)
        elif token == ERASE:
            lines[row] = ""
        elif not token.startswith("\x1b") and token != "\r":
            lines[row] += token
    return [line.rstrip() for line in lines if line.strip()]


def terminal() -> tuple[ConsoleNarrator, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=80, height=40)
    return ConsoleNarrator(console), screen


def test_steps_stay_on_the_screen_and_bars_go() -> None:
    narrator, screen = terminal()
    with narrator:
        narrator.step("Prepare")
        for done in range(3):
            narrator.stage("split", done, 2)
        narrator.stage("prepare", 1, 7)
        narrator.step("Prepared", "2 series")
        narrator.step("Tune", "3 trials")
        with narrator.study() as show:
            show(VIEW)
        narrator.step("Judge", "3 models")
        narrator.stage("judge", 1, 3)
    raw = screen.getvalue()
    assert "1/7" in raw
    shown = left_on_screen(raw)
    assert not any("1/7" in line or "2/2" in line for line in shown)
    steps = [line for line in shown if line.split()[0] in ("Prepare", "Prepared", "Tune", "Judge")]
    assert steps == ["Prepare", "Prepared  2 series", "Tune      3 trials", "Judge     3 models"]


def test_bars_go_even_after_an_error() -> None:
    narrator, screen = terminal()
    with pytest.raises(ValueError, match="no luck"), narrator:
        narrator.step("Prepare")
        narrator.stage("split", 1, 5)
        raise ValueError("no luck")
    assert left_on_screen(screen.getvalue()) == ["Prepare"]


def test_details_are_shown_as_they_are_and_folded_below_themselves() -> None:
    narrator, screen = terminal()
    narrator.step("Refused", "series [red] of " + "many words " * 12)
    shown = left_on_screen(screen.getvalue())
    assert shown[0].startswith("Refused   series [red] of many")
    assert all(len(line) <= 80 for line in shown)
    assert [line[:10] for line in shown[1:]] == [" " * 10] * (len(shown) - 1)


def test_without_a_terminal_a_step_is_one_line_and_bars_are_silent() -> None:
    screen = io.StringIO()
    with ConsoleNarrator(Console(file=screen, width=40)) as narrator:
        narrator.step("Tune", "word " * 30)
        narrator.stage("judge", 1, 3)
    assert screen.getvalue() == f"Tune      {'word ' * 30}".rstrip() + "\n"


def test_a_log_has_steps_and_ended_stages_as_events() -> None:
    narrator = LogNarrator()
    with structlog.testing.capture_logs() as events:
        narrator.step("Judge", "3 models")
        narrator.stage("judge", 1, 2)
        narrator.stage("judge", 2, 2)
        with narrator.study() as show:
            show(VIEW)
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("pipeline_step", "info"),
        ("pipeline_stage", "info"),
        ("study_progress", "info"),
    ]
    assert (events[0]["step"], events[0]["detail"]) == ("Judge", "3 models")
    assert (events[1]["stage"], events[1]["done"]) == ("judge", 2)


@pytest.fixture(autouse=True)
def plain_structlog() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def test_machines_read_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(json_lines=True)
    with structlog.contextvars.bound_contextvars(run="r1"):
        LogNarrator().step("Judge", "3 models")
    out, err = capsys.readouterr()
    event = json.loads(err)
    assert (event["event"], event["step"], event["level"]) == ("pipeline_step", "Judge", "info")
    assert (event["run"], out) == ("r1", "")
    assert event["timestamp"].endswith("Z")


def test_people_read_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(json_lines=False)
    structlog.get_logger().info("study_progress", done=1)
    structlog.get_logger().warning("study_run_left_open", run_id="r1")
    shown = capsys.readouterr().err
    assert "study_progress" not in shown
    assert "study_run_left_open" in shown
