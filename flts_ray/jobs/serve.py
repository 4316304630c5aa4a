"""Serve the champion: `python -m flts_ray.jobs.serve --config configs/demo.yaml`.

What `ray job submit` runs and what `flts serve` calls. On a cluster that was there before, the
application stays after the command ends (`--remove` takes it down); on a cluster started for the
command it serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from flts_ray.config import Config, load_config
from flts_ray.errors import ConfigError, Conflict, FltsError
from flts_ray.jobs.announce import announce, announced
from flts_ray.jobs.interrupt import interrupt_on_sigterm, wait_for_interrupt
from flts_ray.jobs.own_token import own_token
from flts_ray.jobs.session import (
    cluster_address,
    local_folder,
    open_session,
    ray_cluster,
)
from flts_ray.local.process import free_port
from flts_ray.narrate import LogNarrator, set_up_logging
from flts_ray.promotions import PromotionLog
from flts_ray.services import Narrator, Services

NUDGE_S = 10.0
_log = structlog.get_logger("flts_ray.serve")


def joins_a_cluster(config: Config) -> bool:
    """True when the configuration or the environment names a running cluster."""
    return cluster_address(config) is not None


def check_served(config: Config) -> None:
    """Raises Conflict if a command serves the model from this folder."""
    running = announced(local_folder(config), config.name).get("api")
    if running is not None:
        raise Conflict(f"{config.name} is served at {running} already; stop that first")


def check_port(config: Config) -> None:
    """Raises Conflict if the port is taken, before anything is started for it."""
    host, port = config.serve.host, config.serve.port
    if port and free_port(host, port) != port:
        raise Conflict(
            f"serve.port: {port} on {host} is taken by another program; choose another, or any "
            "free one with --set serve.port=0"
        )


@contextmanager
def serving(config: Config, services: Services, narrator: Narrator) -> Iterator[str]:
    """The forecast API in the cluster this process has joined; yields its address."""
    from flts_ray.serve.deployment import deploy, undeploy

    _quieten_serve()
    narrator.step("Serve", f"starting {config.serve.min_replicas} replica(s)")
    if PromotionLog(services.store, config.name).newest() is None:
        narrator.step("Waiting", "no champion yet; it is served as soon as `flts train` made one")
    url = deploy(config, services.mlflow_uri)
    addresses = {"api": url}
    if services.dashboard:
        addresses["dashboard"] = services.dashboard
    try:
        with own_token(config), announce(services.folder, config.name, addresses):
            yield url
    finally:
        undeploy(config.name)


def serve_until(
    config: Config,
    narrator: Narrator,
    wait: Callable[[str, Services], None],
) -> None:
    """Serve on a cluster started for the command until `wait` returns or is interrupted.

    Raises Conflict like `check_served` and `check_port`.
    """
    check_served(config)
    check_port(config)
    with (
        open_session(config, ray=True) as services,
        serving(config, services, narrator) as url,
    ):
        wait(url, services)


def deploy_to_cluster(config: Config, narrator: Narrator) -> str:
    """Deploy to the running cluster and leave it there. Returns the address.

    Raises ConfigError without a tracking server that outlives this command.
    """
    if config.mlflow.uri is None:
        raise ConfigError(
            "mlflow.uri: replicas on a cluster need a tracking server that stays; start one and "
            "name it in the configuration"
        )
    from flts_ray.serve.deployment import deploy

    _quieten_serve()
    with open_session(config, ray=True) as services:
        url = deploy(config, services.mlflow_uri)
        narrator.step("Deployed", url)
        return url


def remove_from_cluster(config: Config) -> None:
    """Take the application off the running cluster. Raises ConfigError if none is named."""
    if not joins_a_cluster(config):
        raise ConfigError(
            "ray.address: --remove needs the cluster that serves; name it there or in RAY_ADDRESS"
        )
    with ray_cluster(config):
        from flts_ray.serve.deployment import undeploy

        _quieten_serve()
        undeploy(config.name)


def tell_replicas(config: Config) -> None:
    """Let replicas in the cluster that this process has joined look at the registry now.

    They look by themselves every `serve.poll_s`, so whatever hinders this is no error.
    """
    if not joins_a_cluster(config):
        return
    from flts_ray.serve.deployment import nudge

    _quieten_serve()
    try:
        versions = asyncio.run(asyncio.wait_for(nudge(config.name), NUDGE_S))
    except (FltsError, TimeoutError, RuntimeError) as error:
        _log.info("replicas_not_told", name=config.name, why=str(error))
    else:
        _log.info("replicas_told", name=config.name, versions=versions)


def _quieten_serve() -> None:
    """What Ray Serve tells of each step is told by the narrator; importing it resets the level."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _wait_for_ever(url: str, services: Services) -> None:
    wait_for_interrupt()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the job; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.serve", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--remove", action="store_true", help="take the application down")
    given = parser.parse_args(arguments)
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        config = load_config(given.config, given.overrides)
        if given.remove:
            remove_from_cluster(config)
        elif joins_a_cluster(config):
            print(deploy_to_cluster(config, LogNarrator()))
        else:
            serve_until(config, LogNarrator(), _wait_for_ever)
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
