"""One MLflow server of a folder for every command that works there at the same time.

Design choices: the first command starts it and the last one to leave stops it, so commands need
not know of each other and none loses its server under its feet; a user is who holds a shared lock
on a file, which the system takes back however a process ends; the address is told by the
server's own lock file.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from flts_ray.errors import Conflict, Unavailable
from flts_ray.local.mlflow_server import LOCK, MlflowServer, answers, database_made
from flts_ray.local.process import free_port

USERS = "users.lock"


class SharedMlflow:
    """`start` returns at once, `wait` with the address when the server answers.

    `port` is for the case that this process is the one that starts it.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = Path(folder).resolve()
        self._port = port
        self._server: MlflowServer | None = None
        self._use: int | None = None

    def start(self) -> None:
        """Start the server, or use the running one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._use = os.open(self.folder / USERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # Waits for a server that is just being stopped, seconds at most.
        fcntl.flock(self._use, fcntl.LOCK_SH)
        self._try_to_start()

    def wait(self, timeout_s: float = 90.0) -> str:
        """Wait until it answers. Raises Unavailable with the end of its log."""
        limit = time.monotonic() + timeout_s
        while self._server is None:
            uri = _told(self.folder)
            if uri and answers(uri, self.folder):
                database_made(self.folder)
                return uri
            if time.monotonic() > limit:
                raise Unavailable(
                    f"MLflow, started by another command at {uri}, did not answer within "
                    f"{timeout_s:g} s; its log is {self.folder / 'server.log'}"
                )
            time.sleep(0.1)
            self._try_to_start()  # where the other command failed to
        try:
            self._server.wait(timeout_s)
        except Unavailable:
            if self._port is None or free_port(preferred=self._port) == self._port:
                raise
            # Another program took the port after it was looked at.
            self._server.stop()
            self._server, self._port = None, None
            self._try_to_start()
            return self.wait(timeout_s)
        return self._server.uri

    def stop(self) -> None:
        """Use it no more; it stops when nobody does."""
        use, self._use = self._use, None
        if use is not None:
            os.close(use)
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _try_to_start(self) -> None:
        server = MlflowServer(self.folder, self._port, users=self.folder / USERS)
        try:
            server.start()
        except Conflict:
            return
        self._server = server


def mlflow_in_use(folder: Path) -> str | None:
    """Address of the server that commands use in `folder` now; None where none does."""
    try:
        descriptor = os.open(Path(folder) / USERS, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(folder) or None
    finally:
        os.close(descriptor)
    return None


def _told(folder: Path) -> str:
    """The address in the server's lock file; it may be that of the server before."""
    try:
        text = (Path(folder) / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text.partition(" ")[2].strip()
