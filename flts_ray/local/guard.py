"""Runs one command and takes its whole process group down when the starter goes away.

Run by path as a script (`python -I -S guard.py GRACE_S USERS COMMAND...`), so only light standard
modules are imported here. USERS is a lock file, or empty: whoever holds a shared lock on it still
uses the command, which then ends after the last of them.

Design choices: the starter holds the write end of this process's standard input; its end closes
however the starter dies, SIGKILL included. Linux's parent-death signal would be shorter, but it
fires when the starting *thread* ends, reaches the direct child only and exists on one system.
"""

import fcntl
import os
import signal
import sys
import threading
from types import FrameType


def _stay(signum: int, frame: FrameType | None) -> None:
    """Signals to the group are for the command; the guard leaves after it."""


def _leave_with(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.killpg(0, signal.SIGTERM)
    os._exit(code if code >= 0 else 128 - code)


def main(grace_s: float, users: str, command: list[str]) -> None:
    """Leads a session of its own; exits with the command's code (128 + signal)."""
    signal.signal(signal.SIGTERM, _stay)
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
    )
    waiter = threading.Thread(target=_leave_with, args=(child,))
    waiter.start()
    while os.read(0, 1024):
        continue
    if users:
        # Held until this process ends, so that a new user waits instead of joining a dying command.
        fcntl.flock(os.open(users, os.O_RDWR | os.O_CREAT, 0o644), fcntl.LOCK_EX)
    os.killpg(0, signal.SIGTERM)
    waiter.join(grace_s)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
