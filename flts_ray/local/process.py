"""A child process that is waited for, logged, and never left behind.

Design choices: the child lives in a session of its own, so that Ctrl-C reaches only this process
and it decides the order of stopping; a guard (`guard.py`) stops the child's whole group when this
process dies without saying so; the lock on a folder is inherited by the guard, so that it is free
exactly when the child is gone; a command that several processes use outlives its starter until
the last of them has gone; a start that fails says the end of the child's log.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from flts_ray.errors import Conflict, Unavailable

GUARD = Path(__file__).with_name("guard.py")


def free_port(host: str = "127.0.0.1", preferred: int | None = None) -> int:
    """A TCP port nobody listens on: `preferred` if it is free, else any.

    Nothing keeps the port until the caller's server binds it.
    """
    for port in (0,) if preferred is None else (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                problem = error
            else:
                return int(probe.getsockname()[1])
    raise Unavailable(f"{host}: no port can be opened there: {problem}; choose another host")


class ManagedProcess:
    """Context manager around one command.

    `env` is added to this process's environment; the output is appended to `log`. With `lock`,
    only one process at a time starts for that file; `note` (an address) is what the second one
    is told. With `users`, a file, the command goes on after `stop` and after the starter's death
    while anybody holds a shared lock on it. `before` runs when the lock is held and the command is
    about to start. `grace_s`: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        lock: Path | None = None,
        note: str = "",
        users: Path | None = None,
        before: Callable[[], None] | None = None,
        grace_s: float = 5.0,
    ) -> None:
        self.name = name
        self.log = log
        guard = [sys.executable, "-I", "-S", str(GUARD), str(grace_s), str(users or "")]
        self._command = [*guard, *command]
        self._env = dict(env or {})
        self._lock = lock
        self._note = note
        self._users = users
        self._before = before
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start and return at once. Raises Conflict if `lock` is held."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        held = [] if self._lock is None else [self._acquire(self._lock)]
        try:
            if self._before is not None:
                self._before()
            with self.log.open("ab") as output:
                self._log_start = output.tell()
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._env},
                    start_new_session=True,
                    pass_fds=held,
                )
        finally:
            for descriptor in held:
                os.close(descriptor)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_until(self, healthy: Callable[[], bool], timeout_s: float) -> None:
        """Wait for `healthy()`; on failure stop and raise Unavailable with the end of the log."""
        limit = time.monotonic() + timeout_s
        while not healthy():
            if not self.alive:
                code = None if self._process is None else self._process.returncode
                raise Unavailable(self._failure(f"ended with exit code {code} while starting"))
            if time.monotonic() > limit:
                self.stop()
                raise Unavailable(self._failure(f"did not answer within {timeout_s:g} s"))
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM to the whole group, SIGKILL after the grace; nothing if it is gone.

        Where others use the command, its guard does the same when the last of them has gone.
        """
        process, self._process = self._process, None
        if process is None:
            return
        with _unused(self._users) as unused:
            if unused and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(self._grace_s)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def kill(self) -> None:
        """SIGKILL to the whole group, guard included; returns when `lock` is free again."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._lock is not None:
                # The command is not this process's child: its locks tell that it has ended.
                with self._lock.open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
        if process.stdin is not None:
            process.stdin.close()

    def tail(self, lines: int = 15) -> str:
        """The last lines written since the start."""
        with self.log.open("rb") as stream:
            stream.seek(max(self._log_start, self.log.stat().st_size - 16_384))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> ManagedProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _failure(self, what: str) -> str:
        return f"{self.name} {what}; its log {self.log} ends with:\n{self.tail()}"

    def _acquire(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        limit = time.monotonic() + self._grace_s + 1
        while not _try_lock(descriptor):
            owner, _, note = os.pread(descriptor, 500, 0).decode(errors="replace").partition(" ")
            if self._users or _exists(owner) or time.monotonic() > limit:
                os.close(descriptor)
                raise Conflict(
                    f"{path.parent}: {self.name} runs there already, started by process {owner} "
                    f"({note.strip()}); use that one or stop it first"
                )
            time.sleep(0.05)  # its starter died; the guard is stopping the command
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {self._note}\n".encode(), 0)
        return descriptor


@contextmanager
def _unused(users: Path | None) -> Iterator[bool]:
    """Whether nobody holds a lock on the file; if so, nobody can take one in the block."""
    if users is None:
        yield True
        return
    descriptor = os.open(users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _exists(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
