from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flts_ray.tune.outcome import TrialOutcome, read_outcome, trial_folder, write_outcome
from flts_ray.tune.progress import StudyView
from flts_ray.tune.recorder import TICK_S, Recorder
from flts_ray.tune.space import TrialPlan

PLANS = [
    TrialPlan("ar-01", "ar", {}),
    TrialPlan("gru-01", "gru", {}),
    TrialPlan("gru-02", "gru", {}),
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def views() -> list[StudyView]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, clock: Clock, views: list[StudyView]) -> Recorder:
    return Recorder(tmp_path, PLANS, {}, 10.0, 4.0, clock, views.append)


def running(study: Path, trial_id: str, score: float = 0.5) -> TrialOutcome:
    folder = trial_folder(study, trial_id)
    kind = trial_id.partition("-")[0]
    return TrialOutcome(
        trial_id, kind, {}, epochs=1, valid_score=score, artifact=folder / "model-0001"
    )


def status(recorder: Recorder) -> dict[str, str]:
    return {outcome.trial_id: outcome.status for outcome in recorder.outcomes()}


def test_a_committed_trial_is_over(recorder: Recorder, tmp_path: Path) -> None:
    recorder.started("ar-01")
    assert not recorder.decided(["ar-01"])
    done = replace(running(tmp_path, "ar-01"), status="finished")
    recorder.reached(done)
    assert recorder.decided(["ar-01"])
    assert status(recorder) == {"ar-01": "finished", "gru-01": "pending", "gru-02": "pending"}


def test_a_stopped_trial_counts_as_far_as_it_came(recorder: Recorder, tmp_path: Path) -> None:
    recorder.started("gru-01")
    recorder.reached(running(tmp_path, "gru-01"))
    recorder.stopped("gru-01")
    committed = read_outcome(tmp_path, "gru-01")
    assert committed is not None
    assert (committed.status, committed.valid_score) == ("stopped", 0.5)


def test_a_trial_stopped_before_its_first_epoch_stays_pending(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.started("gru-01")
    recorder.stopped("gru-01")
    assert status(recorder)["gru-01"] == "pending"
    assert read_outcome(tmp_path, "gru-01") is None


def test_what_the_worker_committed_is_never_overwritten(recorder: Recorder, tmp_path: Path) -> None:
    done = replace(running(tmp_path, "gru-01"), status="finished", valid_score=0.25)
    write_outcome(tmp_path, done)
    recorder.started("gru-01")
    recorder.reached(running(tmp_path, "gru-01"))
    recorder.stopped("gru-01")
    assert recorder.outcomes()[1] == done
    recorder.started("gru-02")
    write_outcome(tmp_path, replace(done, trial_id="gru-02"))
    recorder.died("gru-02", "killed")
    assert recorder.outcomes()[2].status == "finished"


def test_a_lost_worker_is_recorded_with_its_reason(recorder: Recorder, tmp_path: Path) -> None:
    recorder.died("gru-01", "killed twice")
    committed = read_outcome(tmp_path, "gru-01")
    assert committed is not None
    assert (committed.status, committed.error) == ("failed", "killed twice")


def test_time_is_up_counts_earlier_sessions(recorder: Recorder, clock: Clock) -> None:
    clock.now += 5.9
    assert not recorder.time_is_up
    clock.now += 0.2
    assert recorder.time_is_up


def test_time_up_keeps_what_an_interruption_does_not(tmp_path: Path, clock: Clock) -> None:
    for name, expected in (("budget", "stopped"), ("ctrl-c", "pending")):
        study = tmp_path / name
        recorder = Recorder(study, PLANS, {}, 10.0, 0.0, clock)
        recorder.started("gru-01")
        recorder.reached(running(study, "gru-01"))
        if name == "budget":
            recorder.stop_running()
        else:
            recorder.cut_running("interrupted")
        assert status(recorder)["gru-01"] == expected


def test_the_view_counts_and_ranks(
    recorder: Recorder, tmp_path: Path, views: list[StudyView]
) -> None:
    recorder.reached(replace(running(tmp_path, "ar-01", 0.5), status="finished"))
    recorder.reached(replace(running(tmp_path, "gru-01", 0.9), status="finished"))
    recorder.started("gru-02")
    recorder.reached(running(tmp_path, "gru-02", 0.1))
    recorder.stopped("gru-02")
    last = views[-1]
    assert (last.total, last.finished, last.stopped, last.failed) == (3, 2, 1, 0)
    assert last.best == {"ar": 0.5, "gru": 0.1}
    assert last.running == ()
    assert last.elapsed_s == 4.0


def test_ticks_are_shown_at_their_pace(
    recorder: Recorder, clock: Clock, views: list[StudyView]
) -> None:
    recorder.tick()
    recorder.tick()
    assert len(views) == 1
    clock.now += TICK_S
    recorder.tick()
    assert len(views) == 2
