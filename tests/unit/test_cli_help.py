from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from flts_ray import __version__
from flts_ray.cli import app
from flts_ray.errors import Conflict, DataError, FltsError, GateRefused, Unavailable

WITH_ARGUMENTS = ("init", "promote", "diff", "series")
COMMANDS = (
    "init", "prepare", "train", "backtest", "promote", "rollback", "history", "diff", "series",
    "serve", "forecast", "status", "demo", "up", "down", "replay", "lineage",
)  # fmt: skip
CONFIG = "name: load\nroot: {root}\ndata: {{path: load.csv}}\n"


def call(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, list(arguments))


def write_config(folder: Path, more: str = "") -> str:
    path = folder / "flts.yaml"
    path.write_text(CONFIG.format(root=folder / "root") + more)
    return str(path)


def test_every_command_is_listed_with_what_it_does() -> None:
    shown = call("--help").stdout
    assert [name for name in COMMANDS if not re.search(rf"│ {name} +[A-Z]", shown)] == []
    assert "130 interrupted" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?: flts {name}", result.stdout)
    parameters = get_command(app).commands[name].params  # type: ignore[attr-defined]
    assert [one.name for one in parameters if not one.help] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "init"])
def test_every_command_on_a_configuration_takes_overrides(name: str) -> None:
    shown = call(name, "--help").stdout
    assert "--config" in shown
    assert "--set" in shown


def test_the_version_is_told() -> None:
    assert call("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "No such command 'nope'"),
        (["history", "--bogus"], "No such option: --bogus"),
        (["promote", "three"], "Invalid value for 'version'"),
        (["promote"], "Missing argument 'version'"),
        (["diff", "1"], "Missing argument 'other'"),
        (["forecast", "--horizon", "1.5"], "Invalid value for '--horizon'"),
    ],
)
def test_a_wrong_call_is_code_2_and_says_what_is_wrong(arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITH_ARGUMENTS])
def test_a_missing_configuration_names_the_file_and_the_way_to_one(
    tmp_path: Path, name: str
) -> None:
    missing = str(tmp_path / "none.yaml")
    result = call(name, "--config", missing)
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        f"error: {missing}: no such configuration file; `flts init your.csv` writes one"
    )


def test_all_problems_of_a_configuration_are_told_with_a_suggestion(tmp_path: Path) -> None:
    path = write_config(tmp_path, "task: {horizon: -1, horizn: 3}\n")
    result = call("history", "-c", path, "--set", "tune.budget_s=soon")
    assert result.exit_code == 2
    assert f"{path}: 3 problem(s)" in result.stderr
    assert "task.horizn: unknown key; did you mean horizon?" in result.stderr
    assert "(value: -1)" in result.stderr
    assert "tune.budget_s" in result.stderr


@pytest.mark.parametrize("override", ["task.horizon", "=3", "name.first=3", "task.horizon={"])
def test_an_unreadable_override_is_quoted(tmp_path: Path, override: str) -> None:
    result = call("history", "-c", write_config(tmp_path), "--set", override)
    assert result.exit_code == 2
    assert f"--set {override!r}" in result.stderr


def test_an_override_changes_what_is_done(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert call("history", "-c", path).stdout.startswith("load has no champion yet")
    assert call("history", "-c", path, "--set", "name=other").stdout.startswith("other has no")
    assert call("history", "-c", path, "--json").stdout == ""


@pytest.mark.parametrize("error", [DataError, GateRefused, Conflict, Unavailable])
def test_each_kind_of_error_has_its_code_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[FltsError]
) -> None:
    def fail(*_: object) -> None:
        raise error("[red]/a/b[/]: " + "long " * 60 + "end")

    monkeypatch.setattr("flts_ray.jobs.status.status_of", fail)
    result = call("status", "-c", write_config(tmp_path))
    assert result.exit_code == error.exit_code == {
        DataError: 2, GateRefused: 3, Conflict: 4, Unavailable: 5,
    }[error]  # fmt: skip
    assert result.stderr == "error: [red]/a/b[/]: " + "long " * 60 + "end\n"
    assert result.stdout == ""


def test_an_interrupt_is_code_130_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flts_ray.jobs.status.status_of", interrupt)
    result = call("status", "-c", write_config(tmp_path))
    assert result.exit_code == 130
    assert result.stderr == "interrupted; everything that was started is stopped\n"


def test_init_writes_once_and_says_what_comes_next(tmp_path: Path) -> None:
    data, target = tmp_path / "load.csv", tmp_path / "flts.yaml"
    data.write_text("ds,y\n" + "".join(f"2024-01-01 {i:02}:00,{i}\n" for i in range(24)))
    result = call("init", str(data), "--output", str(target))
    assert result.exit_code == 0
    assert f"flts train --config {target}" in result.stdout
    again = call("init", str(data), "--output", str(target))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert call("init", str(data), "-o", str(target), "--name", "b", "--force").exit_code == 0
    assert "name: b\n" in target.read_text()
    nowhere = call("init", str(data), "-o", str(tmp_path / "no" / "flts.yaml"))
    assert (nowhere.exit_code, "choose another file" in nowhere.stderr) == (2, True)


def test_without_arguments_it_shows_its_help_through_the_real_entry_point() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flts_ray.cli"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr
    assert "forecast" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
