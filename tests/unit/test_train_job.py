from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table
from typer.testing import CliRunner

from flts_ray import cli
from flts_ray.errors import Unavailable
from flts_ray.jobs import serve, train

CONFIG = "name: load\nroot: {root}\ndata: {{path: load.csv}}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration file; the process's own logging and signals stay as they are."""
    for module in (train, serve):
        monkeypatch.setattr(module, "set_up_logging", lambda json_lines: None)
        monkeypatch.setattr(module, "interrupt_on_sigterm", lambda: None)
    path = tmp_path / "flts.yaml"
    path.write_text(CONFIG.format(root=tmp_path / "root"))
    return str(path)


def outcome(promoted: bool) -> SimpleNamespace:
    return SimpleNamespace(
        promoted=promoted,
        decision=SimpleNamespace(reason="because"),
        boards=(),
        candidate="ar-01",
        champion_name=None,
    )


@pytest.mark.parametrize(("promoted", "code"), [(True, 0), (False, 3)])
def test_the_code_tells_what_the_gate_said(
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    promoted: bool,
    code: int,
) -> None:
    seen: list[dict[str, bool]] = []

    def run(*_: object, **options: bool) -> SimpleNamespace:
        seen.append(options)
        return outcome(promoted)

    monkeypatch.setattr(train, "run", run)
    assert train.main(["--config", config, "--resume"]) == code
    assert capsys.readouterr().out == "because\n"
    monkeypatch.setattr("flts_ray.report.candidates_table", lambda *_: Table())
    monkeypatch.setattr("flts_ray.report_calibration.calibration_table", lambda *_: Table())
    monkeypatch.setattr("flts_ray.report_bands.bands_table", lambda *_: Table())
    shown = CliRunner().invoke(cli.app, ["train", "-c", config, "--force"])
    assert (shown.exit_code, shown.stdout.split()) == (code, ["because"])
    assert seen == [{"resume": True, "force": False}, {"resume": False, "force": True}]


@pytest.mark.parametrize("job", [train, serve])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (Unavailable("MLflow is away"), 5, "error: MLflow is away\n"),
        (KeyboardInterrupt(), 130, "interrupted; "),
    ],
)
def test_errors_and_interrupts_have_their_codes_in_jobs(
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: Any,
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(train, "run", fail)
    monkeypatch.setattr(serve, "serve_until", fail)
    assert job.main(["--config", config]) == code
    said = capsys.readouterr()
    assert said.err.startswith(told)
    assert said.out == ""


def test_overrides_reach_a_job(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deployed(loaded: Any, *_: object) -> str:
        return f"http://{loaded.name}:{loaded.serve.port}"

    monkeypatch.setattr(serve, "deploy_to_cluster", deployed)
    overrides = ["--set", "ray.address=here:6379", "--set", "name=other", "--set", "serve.port=1"]
    assert serve.main(["--config", config, *overrides]) == 0
    assert capsys.readouterr().out == "http://other:1\n"


@pytest.mark.parametrize("module", ["flts_ray.jobs.train", "flts_ray.jobs.serve"])
def test_a_job_is_a_module_that_can_be_run(module: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", missing],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}: no such configuration file")
