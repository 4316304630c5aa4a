from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flts_ray.errors import Unavailable
from flts_ray.local.mlflow_server import MlflowServer, answers, name_of
from flts_ray.local.process import free_port
from flts_ray.local.shared_mlflow import SharedMlflow, mlflow_in_use

STAND_IN = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/health" or self.headers["host"].startswith(sys.argv[2] + ":")
        self.send_response(200 if known else 403); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
USER = """
import sys, time
from pathlib import Path
from flts_ray.local.mlflow_server import MlflowServer, name_of
from flts_ray.local.shared_mlflow import SharedMlflow
stand_in = sys.argv[2]
MlflowServer._command = lambda self, host: [
    sys.executable, "-c", stand_in, str(self.port), name_of(self.folder)
]
shared = SharedMlflow(Path(sys.argv[1]))
shared.start()
print(shared.wait(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts in a tenth of a second and knows its health and its name only."""

    def command(self: MlflowServer, host: str) -> list[str]:
        python = [sys.executable, "-I", "-S", "-c", STAND_IN]
        return [*python, str(self.port), name_of(self.folder)]

    monkeypatch.setattr(MlflowServer, "_command", command)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Callable[[], tuple[SharedMlflow, str]]]:
    """Makes users of the folder in this process; all leave in the end."""
    made: list[SharedMlflow] = []

    def one() -> tuple[SharedMlflow, str]:
        made.append(SharedMlflow(tmp_path))
        made[-1].start()
        return made[-1], made[-1].wait(30)

    yield one
    for shared in made:
        shared.stop()


User = Callable[[], tuple[SharedMlflow, str]]


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "nothing happened within 20 s"
        time.sleep(0.02)


def test_the_server_lives_from_the_first_user_to_the_last(user: User, tmp_path: Path) -> None:
    assert mlflow_in_use(tmp_path) is None
    first, uri = user()
    second, same = user()
    assert same == uri == mlflow_in_use(tmp_path)
    first.stop()
    time.sleep(0.2)
    assert answers(uri)
    third, same = user()
    assert same == uri
    second.stop()
    third.stop()
    until(lambda: not answers(uri))
    until(lambda: mlflow_in_use(tmp_path) is None)  # who stops it looks whether anybody is left


def test_a_single_user_leaves_no_server_behind(user: User) -> None:
    only, uri = user()
    only.stop()
    assert not answers(uri)
    only.stop()


def test_a_folder_is_used_again_after_it_was_left(user: User) -> None:
    user()[0].stop()
    again, uri = user()
    assert answers(uri)
    again.stop()
    assert not answers(uri)


def test_the_server_outlives_a_killed_starter_while_it_is_used(user: User, tmp_path: Path) -> None:
    command = [sys.executable, "-c", USER, str(tmp_path), STAND_IN]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    uri = starter.stdout.readline().strip()
    second, same = user()
    assert same == uri
    starter.kill()
    starter.wait()
    time.sleep(0.2)
    assert answers(uri)
    second.stop()
    until(lambda: not answers(uri))


def test_a_user_starts_the_server_if_the_one_before_failed_to(tmp_path: Path) -> None:
    first, second = SharedMlflow(tmp_path), SharedMlflow(tmp_path)
    first.start()
    second.start()
    server = first._server
    assert server is not None
    pid = server._process._process.pid if server._process._process else 0
    os.killpg(pid, 9)
    try:
        assert answers(second.wait(30))
    finally:
        first.stop()
        second.stop()


def test_a_server_of_another_folder_is_never_taken_for_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the preferred port in the seconds that ours needs to open it."""
    other, ours = SharedMlflow(tmp_path / "other"), tmp_path / "ours"
    other.start()
    taken = other.wait(30)
    port = int(taken.rpartition(":")[2])

    def looked_free(host: str = "127.0.0.1", preferred: int | None = None) -> int:
        return preferred or free_port(host)

    monkeypatch.setattr("flts_ray.local.mlflow_server.free_port", looked_free)
    shared = SharedMlflow(ours, port)
    shared.start()
    try:
        uri = shared.wait(30)
        assert uri != taken
        assert answers(uri, ours) and not answers(taken, ours)
        assert answers(taken, tmp_path / "other")
    finally:
        shared.stop()
        other.stop()


def test_a_server_that_never_answers_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleeps(self: MlflowServer, host: str) -> list[str]:
        program = "import time; print('migrating', flush=True); time.sleep(60)"
        return [sys.executable, "-c", program]

    monkeypatch.setattr(MlflowServer, "_command", sleeps)
    first, second = SharedMlflow(tmp_path), SharedMlflow(tmp_path)
    first.start()
    second.start()
    try:
        with pytest.raises(Unavailable, match=r"another command at http://127.*server\.log"):
            second.wait(0.3)
        until(lambda: "migrating" in (tmp_path / "server.log").read_text())
        with pytest.raises(Unavailable, match="migrating"):
            first.wait(0.1)
    finally:
        first.stop()
        second.stop()


def test_a_database_whose_making_was_cut_off_is_made_again(user: User, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    half = MlflowServer(tmp_path)
    half.start()
    database.write_text("half migrated")
    half.stop()
    only, _ = user()
    assert not database.exists()
    database.write_text("whole")
    only.stop()
    again, _ = user()
    assert database.read_text() == "whole"
    again.stop()
