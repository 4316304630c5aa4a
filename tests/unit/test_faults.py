"""Crashes on order."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flts_ray.errors import ConfigError
from flts_ray.ingest.faults import NO_FAULTS, POINTS, Faults

PASSES = """
import os
from flts_ray.ingest.faults import Faults
faults = Faults.from_environment(os.environ)
for passing in range(1, 6):
    faults.at("polled"); faults.at("decoded"); print(passing, flush=True)
"""


def run(order: str) -> subprocess.CompletedProcess[str]:
    environment = {"FLTS_CRASH": order}
    return subprocess.run(
        [sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("order", "survived"), [("decoded:3", "1\n2\n"), ("polled", "")])
def test_the_process_is_killed_at_the_nth_passing(order: str, survived: str) -> None:
    done = run(order)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == survived


def test_other_points_pass() -> None:
    assert run("committed:1").stdout == "1\n2\n3\n4\n5\n"


def test_nothing_happens_without_an_order() -> None:
    faults = Faults.from_environment({})
    for point in POINTS:
        faults.at(point)
        NO_FAULTS.at(point)


@pytest.mark.parametrize("order", ["lunch:1", "polled:0", "polled:x", "polled:-1", ":3"])
def test_an_order_without_meaning_is_refused(order: str) -> None:
    with pytest.raises(ConfigError, match="put_sent"):
        Faults.from_environment({"FLTS_CRASH": order})
