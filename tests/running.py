"""Commands as processes of their own, and what of them is still there afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "FLTS_TEST_MARK"
FLTS = (sys.executable, "-m", "flts_ray.cli")


@dataclass(frozen=True)
class Place:
    """A working folder for commands; all processes they start carry its mark."""

    folder: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {
            **kept,
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            **self.extra,
        }

    def run(
        self, *command: str, expect: int = 0, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit code must be the expected one."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def flts(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run(*FLTS, *arguments, expect=expect)

    def start(self, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Start in the background with its output in a file of the folder."""
        with (self.folder / log).open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=output, stderr=subprocess.STDOUT
            )

    def processes(self) -> list[str]:
        """Command lines of everything that was started here and still runs."""
        found = []
        mark = f"{MARK}={self.mark}".encode()
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdecimal() and mark in (process / "environ").read_bytes():
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(f"{process.name} {line.decode(errors='replace')[:150]}")
            except OSError:
                continue  # it ended meanwhile, or belongs to somebody else
        return found


def until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)
