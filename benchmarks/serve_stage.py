"""What a schedule of faults acts on: services, a registry, a cluster, and a deployment."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from flts_ray.config import Config, parse_config
from flts_ray.local.mlflow_server import MlflowServer
from flts_ray.local.process import free_port
from flts_ray.local.ray_environment import set_for_ray
from flts_ray.local.s3 import S3Server
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.prepare.arrays import windows_at
from flts_ray.registry import Registry
from flts_ray.runs import StudyRuns
from flts_ray.store import Store
from tests.served import LEVELS, true_calendar
from tests.synthetic import seasonal_set

NAME = "faults"
YES = {"accepted": True, "reason": "the schedule wants it"}


class Stage:
    """The services, the registry and the deployment that the schedule acts on."""

    def __init__(self, folder: Path, stack: ExitStack, replicas: int) -> None:
        self.folder = folder
        self.s3 = S3Server(folder / "s3", "faults")
        self.s3.start()
        stack.callback(self.s3.stop)
        os.environ.update(self.s3.environment())
        self.mlflow = MlflowServer(folder / "mlflow")
        self.mlflow.__enter__()
        stack.callback(self.mlflow.stop)
        self.store = Store.open(f"{self.s3.uri}/data")
        self.registry = Registry.connect(self.mlflow.uri, self.store, NAME, by="benchmark")
        self.config = self._config(min_replicas=replicas, max_replicas=replicas)
        self.data = true_calendar(seasonal_set(length=300))
        self.now = datetime(2024, 1, 1, tzinfo=UTC)

    def _config(self, **serve: Any) -> Config:
        base = {"port": 0, "cpus_per_replica": 0.25, "auth": {"required": False}}
        return parse_config(
            {
                "name": NAME,
                "root": self.store.root,
                "data": {"path": "unused.csv"},
                "mlflow": {"uri": self.mlflow.uri},
                "serve": base | serve,
            }
        )

    def deploy(self, **serve: Any) -> str:
        """Deploy, or replace what runs; returns the address."""
        from flts_ray.serve.deployment import deploy, wait_ready

        url = deploy(self._config(**serve) if serve else self.config, self.mlflow.uri)
        wait_ready(url, 120)
        return url

    def register(self, season: int) -> int:
        """A new version, not promoted."""
        fitted = fit_fully("seasonal_naive", self.data, Task(6, LEVELS), {"season": season})
        folder = self.folder / f"model-{season}"
        artifact.save(fitted, folder)
        runs = StudyRuns.connect(self.mlflow.uri, NAME, NAME)
        run = runs.start_trial(runs.start_study({}, {}), f"s{season}", "seasonal_naive", {})
        runs.log_folder(run, folder, "model")
        return self.registry.add_version(folder, run, "0" * 64).version

    def promote(self, version: int) -> None:
        """Make it champion, whatever the one before was."""
        champion = self.registry.champion()
        expected = None if champion is None else champion.version
        self.registry.promote(version, YES, expected, self.now)

    def spoil(self, version: int) -> None:
        """Change one byte of its stored arrays."""
        key = f"{self.registry.version(version).artifact_key}/{artifact.ARRAYS}"
        body = self.store.get(key)
        client = self.s3.administration()
        path = key if self.store.root.count("/") < 3 else f"data/{key}"
        changed = body[:-1] + bytes([body[-1] ^ 1])
        client.put_object("faults", path, io.BytesIO(changed), len(changed))

    def fetch(self) -> None:
        """Load the champion as a new replica does. Raises ArtifactError for a spoiled one."""
        from flts_ray.serve.source import RegistrySource

        place = (self.mlflow.uri, self.store.root, NAME, self.folder / "fetched")
        source = RegistrySource(*place)
        champion = source.current()
        assert champion is not None
        source.load(champion)

    def request(self) -> bytes:
        """A body for two series with their history."""
        from flts_ray.serve.parity import request_of

        windows = windows_at(self.data, np.array([0, 1]), np.array([250, 260]), 48, 6)
        return json.dumps(request_of(windows, LEVELS)).encode()


def pids(prefix: str, *, without: str = "\0") -> dict[str, int]:
    """Numbers of the processes of Serve's actors, by their names."""
    import ray

    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(prefix) and without not in actor["name"]:
            with suppress(Exception):
                handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
                asked = handle.__ray_call__.remote(lambda self: os.getpid())
                found[actor["name"]] = ray.get(asked, timeout=10)
    return found


def haproxies() -> list[int]:
    """HAProxy processes of this cluster."""
    folder = os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"].removesuffix("haproxy.cfg")
    nodes = [str(node["NodeID"]) for node in _nodes()]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().decode()
            if "confined.cfg" in line and any(f"{folder}{node}" in line for node in nodes):
                found.append(int(process.name))
    return found


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def running() -> int:
    """Replicas that serve."""
    from flts_ray.serve.deployment import status

    state = status(NAME)
    return 0 if state is None else state.replicas.get("RUNNING", 0)


class Nodes:
    """Two Ray nodes on this machine; the second one comes and goes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args=self._about())
        self.second: Any = None

    def __enter__(self) -> Nodes:
        import ray
        from ray import serve

        quiet = {"log_to_driver": False, "logging_level": "error"}
        ray.init(address=self._cluster.address, **quiet)
        self._stop = serve.shutdown
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self._stop()
        ray.shutdown()
        self._cluster.shutdown()

    def join(self) -> None:
        """The second node; its HAProxy needs ports of its own on the same machine."""
        ports = ("RAY_SERVE_WORKER_PROXY_HTTP_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
        self.second = self._cluster.add_node(
            **self._about(), env_vars={name: str(free_port()) for name in ports}
        )

    def leave(self) -> None:
        """Its processes are killed."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    @staticmethod
    def _about() -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@contextmanager
def cluster(serving: Any) -> Iterator[None]:
    """A Ray cluster of this machine."""
    import ray
    from ray import serve

    set_for_ray(starts_cluster=True, serving=serving)
    ray.init(
        address="local", num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False,
        log_to_driver=False, logging_level="error",
    )  # fmt: skip
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
