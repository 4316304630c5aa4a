from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flts_ray.tune.logbook import Logbook
from flts_ray.tune.outcome import TrialOutcome, read_run_id

STARTED = TrialOutcome("gru-01", "gru", {"lr": 0.1})
ONE = replace(STARTED, epochs=1, history=({"loss": 2.0},), valid_score=0.5)
TWO = replace(ONE, epochs=2, history=({"loss": 2.0}, {"loss": 1.0}))
DONE = replace(TWO, status="finished", artifact=Path("model-0002"))


class Notes:
    """A log that notes its calls and fails at the call named `broken`."""

    def __init__(self, broken: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.broken = broken

    def _note(self, *call: Any) -> None:
        if call[0] == self.broken:
            raise ConnectionError("server is away")
        self.calls.append(call)

    def start_trial(self, parent: str, name: str, kind: str, params: Mapping[str, Any]) -> str:
        self._note("start", parent, name, kind, dict(params))
        return f"run{sum(call[0] == 'start' for call in self.calls)}"

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        self._note("epoch", run_id, epoch, metrics["loss"])

    def end_trial(
        self, run_id: str, status: str, metrics: Mapping[str, float], error: str | None
    ) -> None:
        self._note("end", run_id, status, error)

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        self._note("folder", run_id, folder.name, artifact_path)


def test_a_trial_is_logged_from_start_to_end(tmp_path: Path) -> None:
    notes = Notes()
    logbook = Logbook(notes, "parent", tmp_path)
    for outcome in (STARTED, ONE, TWO):
        logbook.reached(outcome)
    logbook.over(DONE)
    assert logbook.close() is None
    assert notes.calls == [
        ("start", "parent", "gru-01", "gru", {"lr": 0.1}),
        ("epoch", "run1", 1, 2.0),
        ("epoch", "run1", 2, 1.0),
        ("folder", "run1", "model-0002", "model"),
        ("end", "run1", "FINISHED", None),
    ]
    assert read_run_id(tmp_path, "gru-01") == "run1"


def test_a_trial_that_was_never_logged_is_caught_up_with(tmp_path: Path) -> None:
    notes = Notes()
    logbook = Logbook(notes, "parent", tmp_path)
    logbook.over(DONE)
    logbook.close()
    assert [call[0] for call in notes.calls] == ["start", "epoch", "epoch", "folder", "end"]


def test_a_trial_that_was_cut_gets_a_new_run(tmp_path: Path) -> None:
    notes = Notes()
    logbook = Logbook(notes, "parent", tmp_path)
    logbook.reached(ONE)
    logbook.cut(ONE, "worker died")
    logbook.over(DONE)
    logbook.close()
    assert ("end", "run1", "KILLED", "worker died") in notes.calls
    assert [call for call in notes.calls if call[:2] == ("epoch", "run2")] == [
        ("epoch", "run2", 1, 2.0),
        ("epoch", "run2", 2, 1.0),
    ]
    assert read_run_id(tmp_path, "gru-01") == "run2"


def test_after_an_error_nothing_is_sent_and_no_trial_counts_as_logged(tmp_path: Path) -> None:
    notes = Notes(broken="epoch")
    logbook = Logbook(notes, "parent", tmp_path)
    logbook.over(DONE)
    logbook.over(replace(DONE, trial_id="gru-02"))
    error = logbook.close()
    assert isinstance(error, ConnectionError)
    assert [call[0] for call in notes.calls] == ["start"]
    assert read_run_id(tmp_path, "gru-01") is None
