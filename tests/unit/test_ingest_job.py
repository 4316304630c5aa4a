from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.fleet import ActorStatus, Fleet
from flts_ray.ingest.progress import COUNTS, IngestView, Tally
from flts_ray.jobs import ingest

VIEW = IngestView(1.0, dict.fromkeys(COUNTS, 0), 0.0, 0.0, 0, ("done",))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration file; the process's own logging and signals stay as they are."""
    monkeypatch.setattr(ingest, "set_up_logging", lambda json_lines: None)
    monkeypatch.setattr(ingest, "interrupt_on_sigterm", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "flts.yaml"
    path.write_text(f"name: demo\nroot: {tmp_path / 'root'}\ndata: {{snapshot: latest}}\n")
    return str(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the job was told to do."""
    seen: list[tuple[str, dict[str, Any]]] = []
    for name in ("run", "start", "stop"):

        def noted(config: Config, narrator: object, name: str = name, **options: Any) -> Any:
            options.pop("watch", None)
            seen.append((name, options))
            return VIEW

        monkeypatch.setattr(ingest, name, noted)
    return seen


@pytest.mark.parametrize(
    ("address", "options", "done"),
    [
        ("", [], ("run", {"until_end": False, "compact_every_s": None})),
        ("here:1", [], ("start", {"compact_every_s": None})),
        ("here:1", ["--compact-every", "9"], ("start", {"compact_every_s": 9.0})),
        ("here:1", ["--until-end"], ("run", {"until_end": True, "compact_every_s": None})),
        ("here:1", ["--remove"], ("stop", {})),
    ],
)
def test_where_a_cluster_stays_the_actors_stay(
    config: str,
    calls: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    options: list[str],
    done: tuple[str, dict[str, Any]],
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert ingest.main(["--config", config, *options]) == 0
    assert calls == [done]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (Unavailable("the broker is away"), 5, "error: the broker is away\n"),
        (
            KeyboardInterrupt("stopped after a drain: 5 rows"),
            130,
            "stopped after a drain: 5 rows\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; nothing was started\n"),
    ],
)
def test_errors_and_interrupts_have_their_codes(
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ingest, "run", fail)
    assert ingest.main(["--config", config]) == code
    assert capsys.readouterr().err == told


def test_a_job_is_a_module_that_can_be_run(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "flts_ray.jobs.ingest", "--config", missing],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}: no such configuration file")


class Scripted:
    """A supervisor whose actors say one thing after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *script: list[ActorStatus]) -> None:
        self.script = list(script)
        monkeypatch.setattr(ingest, "_launch", lambda fleet: self)
        monkeypatch.setattr(ingest, "_status", lambda handle: self.next())
        monkeypatch.setattr(ingest, "LOOK_S", 0.0)

    def next(self) -> list[dict[str, Any]]:
        return [one.as_json() for one in self.script.pop(0)]


def fleet(until_end: bool = True) -> Fleet:
    raw = {"name": "demo", "data": {"snapshot": "latest"}, "ingest": {"actors": 2}}
    return Fleet(parse_config(raw), "b:1", lambda *_: None, until_end=until_end)  # type: ignore[arg-type]


def attend(what: Fleet) -> list[IngestView]:
    views: list[IngestView] = []
    ingest._attend(what, Tally(), views.append)
    return views


def test_a_run_ends_when_every_actor_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, done = ActorStatus(0, 2, "running"), ActorStatus(0, 2, "done")
    other, away = ActorStatus(1, 2, "done"), ActorStatus(1, 2, "restarting", starts=2)
    scripted = Scripted(monkeypatch, [busy, away], [done, away], [done, other], [busy, busy])
    assert [view.done for view in attend(fleet())] == [False, False, True]
    assert len(scripted.script) == 1


def test_what_no_restart_mends_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(
        monkeypatch,
        [ActorStatus(0, 2, "running"), ActorStatus(1, 2, "failed", error="halted at 5")],
    )
    with pytest.raises(DataError, match="flts-ingest-demo-1: halted at 5"):
        attend(fleet(until_end=False))


def test_a_run_to_the_end_gives_up_on_an_actor_that_never_gets_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    often = [ActorStatus(0, 2, "waiting", starts=ingest.HOPELESS, error="no broker")]
    Scripted(monkeypatch, often)
    with pytest.raises(Unavailable, match=r"started 5 times in ten minutes.*no broker"):
        attend(fleet())
    done = [ActorStatus(0, 2, "done")]
    Scripted(monkeypatch, often, done)
    assert [view.done for view in attend(fleet(until_end=False))] == [False, True]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.5, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused_before_anything_starts(
    config: str, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    code = ingest.main(["--config", config, "--until-end", f"--compact-every={seconds}"])
    assert code == 2
    assert f"--compact-every is {seconds:g}; write seconds from 1" in capsys.readouterr().err
