"""The deployment of `flts serve`, or an empty handler in its place, behind the same ingress.

python -m benchmarks.serving.with_ours FOLDER PORT WORKERS [empty]
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.replica_start import registry_of
from flts_ray.config import Config, parse_config
from flts_ray.jobs.interrupt import interrupt_on_sigterm, wait_for_interrupt
from flts_ray.jobs.session import ray_cluster


def main(folder: str, port: str, workers: str, empty: bool) -> None:
    replicas = int(workers)
    interrupt_on_sigterm()
    with ExitStack() as stack:
        tags = json.loads((Path(folder) / "tags.json").read_text())
        registry = stack.enter_context(registry_of(tags))
        config = parse_config(
            {
                "name": "bench",
                "root": str(Path(folder) / "store"),
                "data": {"path": "unused.csv"},
                "mlflow": {"uri": registry},
                "serve": {
                    "port": int(port),
                    "min_replicas": replicas,
                    "max_replicas": replicas,
                    "auth": {"required": False},
                },
            }
        )
        stack.enter_context(ray_cluster(config))
        if empty:
            deploy_empty(config, replicas)
        else:
            from flts_ray.serve.deployment import deploy

            deploy(config, registry)
        wait_for_interrupt()


def deploy_empty(config: Config, replicas: int) -> None:
    """With the settings of the forecasting deployment."""
    from ray import serve

    from benchmarks.serving.empty import Empty
    from flts_ray.serve import deployment
    from flts_ray.serve.replica import registry_source

    serve.start(
        http_options=deployment._http_options(config.serve), logging_config=deployment.QUIET
    )
    source = partial(registry_source, str(config.mlflow.uri), config.root, config.name)
    forecasting = deployment.application(config, source)._bound_deployment
    made = forecasting.options(func_or_class=Empty, name="empty", num_replicas=replicas)
    serve.run(made.bind(), name="empty", logging_config=deployment.QUIET)


if __name__ == "__main__":
    folder, port, workers = sys.argv[1:4]
    main(folder, port, workers, "empty" in sys.argv[4:])
