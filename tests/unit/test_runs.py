from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flts_ray.runs import revision


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text("x = 1\n")
    _git(tmp_path, "init")
    _git(tmp_path, "add", "code.py")
    _git(tmp_path, "commit", "-m", "first")
    return path


def test_the_revision_is_that_of_the_source(source: Path) -> None:
    head = _git(source.parent, "rev-parse", "HEAD")
    assert revision(source) == {"flts.git_revision": head, "flts.git_dirty": "false"}


def test_a_changed_source_is_dirty(source: Path) -> None:
    source.write_text("x = 2\n")
    assert revision(source)["flts.git_dirty"] == "true"


def test_a_file_the_repository_does_not_track_has_no_revision(source: Path) -> None:
    installed = source.with_name("installed.py")
    installed.write_text("x = 1\n")
    assert set(revision(installed).values()) == {"unknown"}


def test_outside_a_repository_the_revision_is_unknown(tmp_path: Path) -> None:
    assert set(revision(tmp_path / "code.py").values()) == {"unknown"}


def test_without_git_the_revision_is_unknown(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(source.parent))
    assert set(revision(source).values()) == {"unknown"}
