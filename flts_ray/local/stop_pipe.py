"""Asks one process to stop, without knowing its number.

Design choices: a named pipe has a reader exactly while the process that made it lives, so that a
request reaches that process or nobody; numbers of processes are reused, and a file that says "stop"
could be found by the next one.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path


def stop_when_asked(path: Path) -> None:
    """From now on, whoever calls `ask_to_stop` sends SIGTERM to this process.

    The caller makes sure that no other process listens at `path`.
    """
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    # Open for writing too, so that reading waits where no writer is there.
    pipe = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def wait() -> None:
        os.read(pipe, 16)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop-pipe", daemon=True).start()


def ask_to_stop(path: Path) -> bool:
    """True if a process was asked; False where none listens."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no such pipe, or nobody at its other end
        return False
    try:
        os.write(pipe, b"stop\n")
    except BrokenPipeError:
        return False
    finally:
        os.close(pipe)
    return True
