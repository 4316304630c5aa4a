"""The services one command needs, and nothing left behind.

Design choices: what the configuration names is used, what it leaves out is started for the
length of the command on the loopback interface; a running `flts serve` or `flts demo` leaves its
addresses in `<folder>/run/`, so that other commands use the same services instead of starting
a second copy; whoever started a service stops it, in reverse order, however the command ends.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import structlog

from flts_ray.config import Config
from flts_ray.errors import Unavailable
from flts_ray.local.mlflow_server import MlflowServer
from flts_ray.local.process import free_port
from flts_ray.services import Services
from flts_ray.store import Store

LOCAL_CLUSTER_ENV = {
    # A cluster on the loopback interface of one user needs no token; set it to override.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers at Ray's default niceness lose against everything else on a small machine.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Two OpenMP threads a process are slower than one as soon as both cores are busy.
    "OMP_NUM_THREADS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


def local_folder(config: Config) -> Path:
    """Where this machine keeps its part: the root itself, or `.flts/<name>` beside an S3 root."""
    if "://" in config.root:
        return Path(".flts") / config.name
    return Path(config.root)


@contextmanager
def open_session(config: Config, *, ray: bool = False) -> Iterator[Services]:
    """Connect to, or start, MLflow and (if asked) Ray; stop what was started.

    Raises Unavailable naming the address that does not answer.
    """
    folder = local_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        uri, wait = _mlflow(config, folder, stack)
        # Both take seconds to start, so they start side by side.
        dashboard = stack.enter_context(ray_cluster(config)) if ray else None
        wait()
        yield Services(config, folder, Store.open(config.root), uri, dashboard)


def _mlflow(config: Config, folder: Path, stack: ExitStack) -> tuple[str, Callable[[], None]]:
    """Address of the tracking server, and a call that waits until it answers."""
    uri = config.mlflow.uri or announced(folder).get("mlflow")
    if uri is not None and _answers(f"{uri}/health"):
        return uri, lambda: None
    if config.mlflow.uri is not None:
        raise Unavailable(
            f"mlflow.uri {config.mlflow.uri} does not answer; start it, correct the address, or "
            "leave mlflow.uri out to start one for the command"
        )
    server = MlflowServer(folder / "mlflow", 5000)
    server.start()
    stack.callback(server.stop)
    return server.uri, server.wait


@contextmanager
def ray_cluster(config: Config) -> Iterator[str | None]:
    """Join the configured cluster or start a local one. Yields the dashboard's address."""
    import ray

    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield None
        return
    if address is None:
        for name, value in LOCAL_CLUSTER_ENV.items():
            os.environ.setdefault(name, value)
    context = ray.init(**_ray_options(config, address))
    try:
        shown = context.dashboard_url
        yield f"http://{shown}" if shown else None
    finally:
        ray.shutdown()


def _ray_options(config: Config, address: str | None) -> dict[str, Any]:
    quiet: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address is not None:
        return quiet | {"address": address}
    return quiet | {
        "address": "local",
        "num_cpus": config.ray.num_cpus,
        "object_store_memory": config.ray.object_store_mb * 2**20,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": config.ray.dashboard_port or free_port(),
    }


def announced(folder: Path) -> Mapping[str, str]:
    """Addresses of the services that a running command announced in `folder`; empty if none."""
    path = folder / "run" / "services.json"
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    try:
        os.kill(int(record["pid"]), 0)
    except (ProcessLookupError, PermissionError):
        structlog.get_logger().info("stale_services_ignored", pid=record["pid"])
        return {}
    found: dict[str, str] = record["services"]
    return found


@contextmanager
def announce(folder: Path, services: Mapping[str, str]) -> Iterator[None]:
    """Tell other commands the addresses of what runs here, until the block ends."""
    path = folder / "run" / "services.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"pid": os.getpid(), "services": dict(services)}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        json.dump(record, draft)
    os.replace(draft.name, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3.0).status_code < 500
    except httpx.HTTPError:
        return False
