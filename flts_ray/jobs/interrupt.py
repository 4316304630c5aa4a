"""SIGTERM as a stop that can be unwound.

Design choices: in a module of its own, because a command sets it before it imports anything
heavy, so that a start is interrupted as cleanly as the rest.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


def interrupt_on_sigterm() -> None:
    """A terminated command stops like Ctrl-C: partial results kept, services closed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def wait_for_interrupt() -> None:
    """Return never; Ctrl-C and SIGTERM raise from here."""
    threading.Event().wait()
