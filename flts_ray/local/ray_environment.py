"""What Ray reads from the environment, set before it is imported.

Design choices: a value that is set already stays, so that everything can be overridden.
"""

from __future__ import annotations

import os

DRIVER = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
LOCAL_CLUSTER = {
    # A cluster on the loopback interface of one user needs no token.
    "RAY_AUTH_MODE": "disabled",
    # Workers at Ray's default niceness lose against everything else on a small machine.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Two OpenMP threads a process are slower than one as soon as both cores are busy.
    "OMP_NUM_THREADS": "1",
}


def set_for_ray(*, starts_cluster: bool) -> None:
    """Set what a driver needs, and what a cluster needs that this process starts."""
    for name, value in (DRIVER | (LOCAL_CLUSTER if starts_cluster else {})).items():
        os.environ.setdefault(name, value)
