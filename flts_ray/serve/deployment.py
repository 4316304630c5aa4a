"""The app as a Ray Serve deployment, and how it is put into a cluster.

Design choices: new replicas start before old ones stop, so that redeploying a single one does not
stall; requests are not logged one by one, because nobody would read a file that grows with
traffic; what runs too long or waits too long is refused with 429 by whoever notices first, the
replica before it reads the body or the engine.
"""

from __future__ import annotations

import ssl
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions
from ray.serve.exceptions import RayServeException

from flts_ray.config import Config, load_config
from flts_ray.config_serve import ServeConfig, is_loopback
from flts_ray.errors import ConfigError, Conflict, Unavailable
from flts_ray.local.process import free_port
from flts_ray.local.ray_environment import haproxy_is_set, in_address
from flts_ray.serve.app import RETRY_AFTER_S
from flts_ray.serve.door import door_of
from flts_ray.serve.lean_process import lean_environment
from flts_ray.serve.refresh import ModelSource
from flts_ray.serve.replica import ForecastReplica, registry_source
from flts_ray.serve.scaling_memory import memory_name
from flts_ray.serve.scaling_policy import ScalingPolicy

DEPLOYMENT = "forecaster"
DRAIN_S = 20.0
REPORT_S = 0.5
LOOK_BACK_S = 2.0
INSIDE, EVERYWHERE = "127.0.0.1", "0.0.0.0"
QUIET = {"enable_access_log": False}
# Below this level Ray makes a record of each request before it finds that nobody wants it.
QUIET_REPLICA = QUIET | {"log_level": "WARNING"}
_log = structlog.get_logger("flts_ray.serve")


@dataclass(frozen=True)
class ServeState:
    """`status` and `message` are Ray Serve's; `replicas` counts them by state."""

    status: str
    message: str
    replicas: Mapping[str, int]


def application(config: Config, make_source: Callable[[], ModelSource]) -> serve.Application:
    """The Serve application of a configuration, not yet deployed."""
    limits = config.serve
    options: dict[str, Any] = {"num_replicas": limits.min_replicas}
    if limits.max_replicas > limits.min_replicas:
        memory = memory_name(config.name, _absolute(config))
        options = {"autoscaling_config": _scaling(limits, memory)}
    deployment = serve.deployment(
        ForecastReplica,
        name=DEPLOYMENT,
        ray_actor_options={
            "num_cpus": limits.cpus_per_replica,
            "runtime_env": {"env_vars": lean_environment()},
        },
        # Those that wait for the model count as ongoing: scaling sees them, and the engine can
        # say how long a refused caller should wait.
        max_ongoing_requests=limits.max_in_work,
        max_queued_requests=limits.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        max_surge_percent=100,
        logging_config=QUIET_REPLICA,
        **options,
    )
    return deployment.bind(config.name, limits, make_source, door_of(config), _absolute(config))


def _scaling(limits: ServeConfig, memory: str) -> AutoscalingConfig:
    with warnings.catch_warnings():
        # The environment variables that shall replace `metrics_interval_s` have no effect yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=limits.min_replicas,
            max_replicas=limits.max_replicas,
            target_ongoing_requests=limits.target_ongoing_requests,
            upscale_delay_s=limits.upscale_delay_s,
            downscale_delay_s=limits.downscale_delay_s,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(
                policy_function=ScalingPolicy,
                policy_kwargs={
                    "target_ongoing": limits.target_ongoing_requests,
                    "target_p95_ms": limits.target_latency_ms,
                    "scale_ahead": limits.scale_ahead,
                    "interval_s": limits.ahead.interval_s,
                    "ahead_s": limits.ahead.ahead_s,
                    "season_s": limits.ahead.season_s,
                    "memory": memory,
                },
            ),
        )


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
    if _address(config.serve) is None:
        serve.start(http_options=_http_options(config.serve), logging_config=QUIET)
    try:
        serve.run(application(config, made), name=config.name, logging_config=QUIET)
    except RayServeException as error:
        raise Conflict(f"{config.name}: {error}; `serve status` shows what runs") from error
    except RuntimeError as error:
        raise Unavailable(f"{config.name}: the deployment failed: {error}") from error
    url = _address(config.serve)
    if url is None:
        raise Unavailable(f"{config.name}: Ray Serve stopped during the deployment; repeat it")
    _log.info("deployed", name=config.name, url=url)
    return url


def _http_options(limits: ServeConfig) -> HTTPOptions:
    """Behind HAProxy these are the replicas', which it reaches at 127.0.0.1 on its own node.

    HAProxy itself listens on `serve.host` alone; replicas on all interfaces unless that is a
    loopback address, which is why each of them asks for tokens itself.
    """
    port = limits.port or free_port(limits.host)
    if haproxy_is_set():
        return HTTPOptions(host=INSIDE if is_loopback(limits.host) else EVERYWHERE, port=port)
    if limits.tls is None:
        return HTTPOptions(host=limits.host, port=port)
    return HTTPOptions(
        host=limits.host,
        port=port,
        ssl_certfile=limits.tls.cert_file,
        ssl_keyfile=limits.tls.key_file,
    )


async def nudge(name: str) -> list[str | None]:
    """Let every replica look at the registry now; returns the versions they serve then.

    A replica that starts at this moment looks by itself. Raises Unavailable where the
    application does not run in this cluster.
    """
    try:
        handle = serve.get_app_handle(name)
    except RayServeException as error:
        raise Unavailable(f"{name}: does not run in this cluster: {error}") from error
    found: list[str | None] = await handle.broadcast("refresh").results_async()
    return found


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


def wait_ready(url: str, timeout_s: float = 60.0, cert_file: str | None = None) -> None:
    """Return when a champion is loaded. Raises Unavailable with the last answer.

    cert_file: the certificate that the listener shows, under whatever name.
    """
    trusted: ssl.SSLContext | bool = True
    if cert_file is not None:
        trusted = ssl.create_default_context(cafile=cert_file)
        trusted.check_hostname = False
    until = time.monotonic() + timeout_s
    said = "no answer"
    while time.monotonic() < until:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5.0, verify=trusted)
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


def _address(limits: ServeConfig) -> str | None:
    """Where the proxy of this cluster listens, None while Ray Serve does not run in it."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options = client.http_config
    host = limits.host if haproxy_is_set() else str(options.host)
    host = INSIDE if host in (EVERYWHERE, "::") else in_address(host)
    scheme = "http" if limits.tls is None else "https"
    return f"{scheme}://{host}:{options.port}"
