"""The services one command needs, and nothing left behind.

Design choices: what the configuration names is used, what it leaves out is started for the
length of the command on the loopback interface; MLflow of a folder is shared by the commands that
run at the same time, Ray is each command's own; who started a service stops it, in reverse order,
however the command ends: an error, Ctrl-C and SIGTERM all unwind the same stack. A broker that is
away costs the events, never the command.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from flts_ray.config import Config
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.events import Events, KafkaEvents, NoEvents
from flts_ray.jobs.folder import local_folder as local_folder
from flts_ray.jobs.up import adopt_local, brokers_of
from flts_ray.local.mlflow_server import answers
from flts_ray.local.process import free_port
from flts_ray.local.ray_environment import set_for_ray
from flts_ray.local.shared_mlflow import SharedMlflow
from flts_ray.services import Services
from flts_ray.store import Store

MLFLOW_PORT = 5000


@contextmanager
def open_session(config: Config, *, ray: bool = False) -> Iterator[Services]:
    """Connect to, or start, MLflow and (if asked) Ray; stop what was started.

    Raises Unavailable naming the address that does not answer, ConfigError for a folder or an
    address that cannot be used.
    """
    check_root(config)
    adopt_local(config)
    folder = local_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"root: the folder {folder} cannot be made: {error.strerror}; choose another root"
        ) from None
    with _tracking(config, folder) as tracking, _events(config) as events:
        store = Store.open(config.root)
        if not ray:
            yield Services(config, folder, store, tracking.wait(), events=events)
            return
        # Both take seconds to start, so they start side by side.
        with ray_cluster(config) as dashboard:
            yield Services(config, folder, store, tracking.wait(), dashboard, events)


class _Named:
    """The tracking server that the configuration names."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def wait(self) -> str:
        if not answers(self.uri):
            raise Unavailable(
                f"mlflow.uri {self.uri} does not answer; start it, correct the address, or "
                "leave mlflow.uri out to start one for the command"
            )
        return self.uri


@contextmanager
def _tracking(config: Config, folder: Path) -> Iterator[_Named | SharedMlflow]:
    if config.mlflow.uri is not None:
        named = _Named(config.mlflow.uri)
        named.wait()  # before Ray is started in vain
        yield named
        return
    shared = SharedMlflow(folder / "mlflow", MLFLOW_PORT)
    try:
        shared.start()
        yield shared
    finally:
        shared.stop()


@contextmanager
def _events(config: Config) -> Iterator[Events]:
    """Events for the broker, or nobody where they are off or no broker is known."""
    events = _kafka_events(config) if config.events.enabled else None
    if events is None:
        yield NoEvents()
        return
    try:
        yield events
    finally:
        events.close()


def _kafka_events(config: Config) -> KafkaEvents | None:
    from flts_ray.streams.connect import producer

    try:
        brokers = brokers_of(config)
    except Unavailable as away:
        structlog.get_logger().warning("events_off", why=str(away))
        return None
    connect = partial(producer, config.stream, brokers)
    return KafkaEvents(connect, config.name, config.events.queue)


def cluster_address(config: Config) -> str | None:
    """The running cluster that the configuration, else RAY_ADDRESS, names.

    Raises ConfigError for the address of a job API, which is not the cluster's.
    """
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        where = "ray.address" if config.ray.address else "RAY_ADDRESS"
        raise ConfigError(
            f"{where} {address} is a job API; submit `python -m flts_ray.jobs.train ...` to it "
            "with `ray job submit`, or give the cluster's own address, such as host:6379"
        )
    return address


def check_root(config: Config) -> None:
    """Refuse a relative root in a submitted job, whose working folder is thrown away."""
    root = config.root.removeprefix("file://")
    if in_a_job() and "://" not in root and not Path(root).is_absolute():
        raise ConfigError(
            f"root: {config.root} lies in the working folder of the job, which is thrown away; "
            "give a folder that all nodes see, --set root=/data/flts, or s3://bucket/prefix"
        )


def in_a_job() -> bool:
    """True in a process that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


@contextmanager
def ray_cluster(config: Config) -> Iterator[str | None]:
    """Join the named cluster or start a local one. Yields the dashboard's address.

    Raises Unavailable if neither succeeds.
    """
    address = cluster_address(config)
    if address is not None:
        _probe(address)
    set_for_ray(starts_cluster=address is None, serving=config.serve)
    import ray

    if ray.is_initialized():
        yield None
        return
    try:
        shown = _connect(config, address)
        yield f"http://{shown}" if shown else None
    finally:
        ray.shutdown()


def _connect(config: Config, address: str | None) -> str:
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        return str(ray.init(**_ray_options(config, address)).dashboard_url or "")
    except Exception as error:  # Ray raises a plain one for a node that starts too slowly
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray did not start"
        raise Unavailable(f"{what}: {error}") from error
    except SystemExit as stop:  # Ray's own handler of SIGTERM, which it sets meanwhile
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)


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
        "dashboard_port": free_port(preferred=config.ray.dashboard_port),
    }


def _probe(address: str) -> None:
    """Fail in seconds where nobody listens; Ray would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        raise Unavailable(
            f"the Ray cluster at {address} does not answer ({error}); start it, or correct "
            "ray.address and RAY_ADDRESS"
        ) from None
