"""The app as a Ray Serve deployment; the only file here that knows Ray.

Design choices: a replica counts as started only after its first look at the registry, so that
scaling up or replacing one puts no empty replica before callers; new replicas start before old
ones stop, so that redeploying a single one does not stall; requests are not logged one by one,
because nobody would read a file that grows with traffic.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException

from flts_ray.config import Config, load_config
from flts_ray.config_serve import ServeConfig
from flts_ray.errors import ConfigError, Conflict, Unavailable
from flts_ray.local.process import free_port
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.refresh import ModelSource, Refresher

DEPLOYMENT = "forecaster"
DRAIN_S = 20.0
LOOK_BACK_S = 12.0
QUIET = {"enable_access_log": False}
_log = structlog.get_logger("flts_ray.serve")


@serve.ingress()
class ForecastReplica:
    """One process that serves the app."""

    def __init__(
        self, name: str, limits: ServeConfig, make_source: Callable[[], ModelSource]
    ) -> None:
        self._slot = ModelSlot(name, limits)
        self._refresher = Refresher(make_source(), self._slot, limits.poll_s)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        await self._refresher.step()
        return build_app(self._slot, self._refresher.run)


@dataclass(frozen=True)
class ServeState:
    """`status` and `message` are Ray Serve's; `replicas` counts them by state."""

    status: str
    message: str
    replicas: Mapping[str, int]


def registry_source(mlflow_uri: str, store_uri: str, name: str) -> ModelSource:
    """Champions of the registry, cached in a folder of this machine that only we can read."""
    from flts_ray.serve.source import RegistrySource

    folder = Path(tempfile.gettempdir()) / f"flts-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of your own")
    return RegistrySource(mlflow_uri, store_uri, name, folder / name)


def application(config: Config, make_source: Callable[[], ModelSource]) -> serve.Application:
    """The Serve application of a configuration, not yet deployed."""
    limits = config.serve
    options: dict[str, Any] = {"num_replicas": limits.min_replicas}
    if limits.max_replicas > limits.min_replicas:
        options = {
            "autoscaling_config": {
                "min_replicas": limits.min_replicas,
                "max_replicas": limits.max_replicas,
                "target_ongoing_requests": limits.target_ongoing_requests,
                "upscale_delay_s": limits.upscale_delay_s,
                "downscale_delay_s": limits.downscale_delay_s,
                # Shorter than Serve's own, whose half minute would outlast the delay above.
                "look_back_period_s": LOOK_BACK_S,
            }
        }
    deployment = serve.deployment(
        ForecastReplica,
        name=DEPLOYMENT,
        ray_actor_options={
            "num_cpus": limits.cpus_per_replica,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
        },
        max_ongoing_requests=limits.max_ongoing_requests,
        max_queued_requests=limits.max_queued_requests,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        max_surge_percent=100,
        logging_config=QUIET,
        **options,
    )
    return deployment.bind(config.name, limits, make_source)


def app_builder(args: Mapping[str, Any]) -> serve.Application:
    """Entry for `serve deploy`: `import_path: flts_ray.serve.deployment:app_builder`.

    args: `config`, path of the YAML; `set`, a list of overrides; `mlflow_uri`, where the
    configuration names none. Raises ConfigError.
    """
    if "config" not in args:
        raise ConfigError("args.config: required; give the path of the configuration file")
    overrides: Sequence[str] = args.get("set", ())
    config = load_config(args["config"], overrides)
    mlflow_uri = args.get("mlflow_uri") or config.mlflow.uri
    if mlflow_uri is None:
        raise ConfigError("args.mlflow_uri: required, because mlflow.uri is not set either")
    return application(config, partial(registry_source, mlflow_uri, _absolute(config), config.name))


def deploy(
    config: Config, mlflow_uri: str, make_source: Callable[[], ModelSource] | None = None
) -> str:
    """Deploy, or replace, the application in the Ray cluster that this process has joined.

    Returns its address once its replicas run; `wait_ready` tells when a champion is loaded. A
    Ray Serve that runs already keeps its own host and port.
    `make_source` runs in each replica, by default it reads the registry. Raises Conflict if
    another application holds the route, Unavailable if the deployment fails.
    """
    made = make_source or partial(registry_source, mlflow_uri, _absolute(config), config.name)
    if _address() is None:
        port = config.serve.port or free_port(config.serve.host)
        serve.start(http_options={"host": config.serve.host, "port": port}, logging_config=QUIET)
    try:
        serve.run(application(config, made), name=config.name, logging_config=QUIET)
    except RayServeException as error:
        raise Conflict(f"{config.name}: {error}; `serve status` shows what runs") from error
    except RuntimeError as error:
        raise Unavailable(f"{config.name}: the deployment failed: {error}") from error
    url = _address()
    if url is None:
        raise Unavailable(f"{config.name}: Ray Serve stopped during the deployment; repeat it")
    _log.info("deployed", name=config.name, url=url)
    return url


def undeploy(name: str) -> None:
    """Delete the application; requests in flight are finished. Unknown names are no error."""
    try:
        serve.delete(name)
    except RayServeException as error:
        raise Unavailable(f"{name}: Ray Serve does not run in this cluster") from error


def status(name: str) -> ServeState | None:
    """State of the application, None where it is not deployed."""
    found = serve.status().applications.get(name)
    if found is None:
        return None
    replicas: Counter[str] = Counter()
    for deployment in found.deployments.values():
        replicas.update(deployment.replica_states)
    return ServeState(str(found.status.value), found.message, dict(replicas))


def wait_ready(url: str, timeout_s: float = 60.0) -> None:
    """Return when a champion is loaded. Raises Unavailable with the last answer."""
    until = time.monotonic() + timeout_s
    said = "no answer"
    while time.monotonic() < until:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5.0)
            if answer.status_code == httpx.codes.OK:
                return
            said = f"{answer.status_code} {answer.text[:300]}"
        except httpx.HTTPError as error:
            said = repr(error)
        time.sleep(0.1)
    raise Unavailable(f"{url}/readyz: not ready after {timeout_s:g} s; last answer: {said}")


def _absolute(config: Config) -> str:
    """The root as replicas see it, whose working folder is another."""
    return config.root if "://" in config.root else str(Path(config.root).resolve())


def _address() -> str | None:
    """Where the proxy of this cluster listens, None while Ray Serve does not run in it."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options = client.http_config
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{host}:{options.port}"
