from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flts_ray.errors import Conflict, Unavailable
from flts_ray.local.process import ManagedProcess, free_port

PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEPS = "print('up', flush=True); import time; time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
WITH_CHILD = (
    "import os, time\npid = os.fork()\nif pid: print('child', pid, flush=True)\ntime.sleep(60)"
)


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "nothing happened within 20 s"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    """No such process, or a zombie that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _start(tmp_path: Path, program: str, grace_s: float = 5.0) -> ManagedProcess:
    log = tmp_path / "log"
    process = ManagedProcess([*PYTHON, program], name="sleeper", log=log, grace_s=grace_s)
    process.start()
    return process


def _printed(process: ManagedProcess, word: str) -> int:
    _until(lambda: word in process.tail())
    return int(process.tail().split(word)[1].split()[0] or 0)


def test_a_preferred_port_is_taken_only_if_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = busy.getsockname()[1]
        assert free_port(preferred=taken) != taken
    assert free_port(preferred=taken) == taken


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"203\.0\.113\.1"):
        free_port("203.0.113.1")


def test_output_and_environment_reach_the_child_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    program = "import os; print(os.environ['WORD'], os.environ.get('PATH') is not None)"
    with ManagedProcess([*PYTHON, program], name="echo", log=log, env={"WORD": "hello"}) as echo:
        _until(lambda: not echo.alive)
    assert log.read_text() == "hello True\n"


def test_a_start_that_ends_says_how_and_shows_the_log_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("an older start\n")
    process = _start(tmp_path, "raise SystemExit('port in use')")
    with pytest.raises(Unavailable, match=r"sleeper ended with exit code 1[\s\S]*port in use") as e:
        process.wait_until(lambda: False, timeout_s=20)
    assert "an older start" not in str(e.value)


def test_death_by_a_signal_is_told_as_128_plus_its_number(tmp_path: Path) -> None:
    process = _start(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(Unavailable, match="exit code 137"):
        process.wait_until(lambda: False, timeout_s=20)


def test_a_start_that_never_gets_healthy_is_stopped(tmp_path: Path) -> None:
    process = _start(tmp_path, SLEEPS)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
        process.wait_until(lambda: False, timeout_s=0.1)
    assert not process.alive


def test_a_missing_command_is_reported(tmp_path: Path) -> None:
    process = ManagedProcess(["no-such-command"], name="ghost", log=tmp_path / "log")
    process.start()
    with pytest.raises(Unavailable, match=r"ghost ended[\s\S]*no-such-command"):
        process.wait_until(lambda: False, timeout_s=20)


def test_stop_ends_grandchildren_and_is_harmless_twice(tmp_path: Path) -> None:
    process = _start(tmp_path, WITH_CHILD)
    grandchild = _printed(process, "child")
    process.stop()
    process.stop()
    _until(lambda: _gone(grandchild))


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    process = _start(tmp_path, STUBBORN, grace_s=0.2)
    _until(lambda: "up" in process.tail())
    process.stop()
    assert not process.alive


def test_the_child_ends_when_its_starter_is_killed_and_the_lock_is_free(tmp_path: Path) -> None:
    starter = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from flts_ray.local.process import ManagedProcess\n"
        "folder, program = Path(sys.argv[1]), sys.argv[2]\n"
        "command = [sys.executable, '-I', '-S', '-c', program]\n"
        "log, lock = folder / 'log', folder / 'lock'\n"
        "ManagedProcess(command, name='sleeper', log=log, lock=lock).start()\n"
        "time.sleep(60)\n"
    )
    program = "import os; print('pid', os.getpid(), flush=True); " + SLEEPS
    driver = subprocess.Popen([sys.executable, "-c", starter, str(tmp_path), program])
    log = tmp_path / "log"
    _until(lambda: log.exists() and "up" in log.read_text())
    child = int(log.read_text().split()[1])
    assert not _gone(child)
    driver.kill()
    driver.wait()
    lock = tmp_path / "lock"
    with ManagedProcess([*PYTHON, SLEEPS], name="sleeper", log=log, lock=lock) as again:
        assert again.alive
        assert _gone(child)


def test_a_second_process_for_the_same_lock_learns_who_holds_it(tmp_path: Path) -> None:
    def sleeper(note: str) -> ManagedProcess:
        lock, log = tmp_path / "lock", tmp_path / "log"
        return ManagedProcess([*PYTHON, SLEEPS], name="sleeper", log=log, lock=lock, note=note)

    with (
        sleeper("http://first:1"),
        pytest.raises(Conflict, match=rf"process {os.getpid()} \(http://first:1\)"),
    ):
        sleeper("http://second:2").start()
    with sleeper("http://third:3") as third:
        assert third.alive


def test_the_child_lives_in_another_session_so_that_ctrl_c_misses_it(tmp_path: Path) -> None:
    program = "import os; print('session', os.getsid(0), flush=True)"
    session = _printed(_start(tmp_path, program), "session")
    assert session != os.getsid(0)
