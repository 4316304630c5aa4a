"""The environment of a process that serves, so that it starts quickly and stays small.

Design choices: the path of the process says what it does without, because Ray imports its own
libraries before any code of ours runs; a path that Ray itself was given stays behind ours; one
OpenMP thread, because replicas scale as processes.
"""

from __future__ import annotations

from pathlib import Path

WITHOUT = Path(__file__).parent / "without"


def lean_environment() -> dict[str, str]:
    """Environment variables for the runtime environment of a replica's actor."""
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{WITHOUT}:${{PYTHONPATH}}"}
