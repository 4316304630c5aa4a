"""Ingest the topic: `python -m flts_ray.jobs.ingest --config configs/demo.yaml`.

What `ray job submit` runs and what `flts ingest run|start|stop` call. On a cluster that was there
before, the actors stay after the command ends (`--remove` takes them down); on a cluster started
for the command they work until Ctrl-C, or with `--until-end` until all that was sent is stored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flts_ray.config import Config, load_config
from flts_ray.errors import ConfigError, Conflict, DataError, FltsError, Unavailable
from flts_ray.ingest.dead_letters import BackgroundForwarder, Forwarder
from flts_ray.ingest.fleet import Fleet, environment_for_actors, seen_from_elsewhere
from flts_ray.ingest.progress import IngestProgress, IngestView, Tally, states_text
from flts_ray.jobs.ingest_check import compact_told
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.jobs.session import check_root, cluster_address, ray_cluster
from flts_ray.jobs.up import adopt_local, brokers_of
from flts_ray.narrate import LogNarrator, set_up_logging
from flts_ray.report_stream import summary
from flts_ray.services import Narrator
from flts_ray.store import Store

LOOK_S = 1.0
DRAIN_S = 60.0
START_S = 120.0
SHORTEST_S, LONGEST_S = 1.0, 1e9
"""Seconds between two compactions."""
HOPELESS = 5
"""Starts within minutes after which a run that should end gives up."""


def joins_a_cluster(config: Config) -> bool:
    """True when the configuration or the environment names a running cluster."""
    return cluster_address(config) is not None


def fleet_of(
    config: Config, *, until_end: bool = False, compact_every_s: float | None = None
) -> Fleet:
    """The actors of a configuration, after a look at whether they could work.

    Creates the topic where it is missing. Raises Unavailable without a broker or with a store
    that lets two conditional writes win, ConfigError for a root that actors cannot see or an
    interval that is none.
    """
    _check_interval(compact_every_s)
    from flts_ray.jobs.ingest_worker import open_worker
    from flts_ray.streams.connect import admin

    check_root(config)
    adopt_local(config)
    config = seen_from_elsewhere(config)
    Store.open(config.root).probe_put_new()
    brokers = brokers_of(config)
    clerk = admin(config.stream, brokers)
    try:
        clerk.create_topic(config.stream.topic, config.stream.partitions)
    finally:
        clerk.close()
    return Fleet(
        config,
        brokers,
        open_worker,
        until_end=until_end,
        compact_every_s=compact_every_s,
        compact=compact_told,
        open_forwarder=open_forwarder,
        environment=environment_for_actors(),
    )


def _check_interval(seconds: float | None) -> None:
    if seconds is not None and not SHORTEST_S <= seconds <= LONGEST_S:
        raise ConfigError(
            f"--compact-every is {seconds:g}; write seconds from {SHORTEST_S:g} to {LONGEST_S:g}"
        )


def open_forwarder(config: Config, brokers: str, epoch: str) -> BackgroundForwarder:
    """Sends dead letters on to their topic, which is made when the first one is found."""
    from flts_ray.ingest.letter_topic import KafkaLetterTopic

    stream = config.stream
    connect = partial(KafkaLetterTopic, stream, brokers)
    return BackgroundForwarder(Forwarder(Store.open(config.root), stream.topic, epoch, connect))


def run(
    config: Config,
    narrator: Narrator,
    *,
    until_end: bool = False,
    compact_every_s: float | None = None,
    watch: Callable[[IngestView], None] = lambda view: None,
) -> IngestView:
    """Ingest in the foreground until Ctrl-C, or until the end of the topic as it is at the start.

    However it ends, the actors write what they hold and are gone. Returns what was done.
    Raises Unavailable or DataError if an actor cannot do its work, Conflict if the same
    ingestion runs on the cluster already.
    """
    fleet = fleet_of(config, until_end=until_end, compact_every_s=compact_every_s)
    narrator.step("Ingest", f"topic {fleet.config.stream.topic} at {fleet.brokers}")
    with ray_cluster(fleet.config):
        from flts_ray.ingest.supervisor import find

        if find(fleet.supervisor) is not None:
            raise Conflict(
                f"{fleet.supervisor} runs on this cluster already; `flts ingest status` shows how "
                "it is, `flts ingest stop` ends it"
            )
        tally = Tally()
        try:
            _attend(fleet, tally, watch)
        except KeyboardInterrupt:
            view = _drained(fleet, narrator, tally)
            raise KeyboardInterrupt(f"stopped after a drain: {summary(view)}") from None
        except BaseException:
            _drained(fleet, narrator, tally)
            raise
        return _drained(fleet, narrator, tally)


def _drained(fleet: Fleet, narrator: Narrator, tally: Tally) -> IngestView:
    narrator.step("Drain", f"{fleet.size} actor(s) write what they hold")
    return tally.add(_stop(fleet), time.monotonic())


def _attend(fleet: Fleet, tally: Tally, watch: Callable[[IngestView], None]) -> None:
    """Look at the actors until they are done."""
    handle = _launch(fleet)
    while True:
        actors = _status(handle)
        view = tally.add(actors, time.monotonic())
        watch(view)
        if view.done:
            return
        _check(fleet, actors)
        time.sleep(LOOK_S)


def _check(fleet: Fleet, actors: Sequence[dict[str, Any]]) -> None:
    for actor in actors:
        if actor["state"] == "failed":
            raise DataError(f"{fleet.actor(actor['index'])}: {actor['error']}")
        if fleet.until_end and actor["starts"] >= HOPELESS:
            raise Unavailable(
                f"{fleet.actor(actor['index'])} was started {actor['starts']} times in ten "
                f"minutes; its last error: {actor['error'] or 'none, it was killed'}"
            )


def start(
    config: Config, narrator: Narrator, *, compact_every_s: float | None = None
) -> list[dict[str, Any]]:
    """Leave the actors on the running cluster, in place of other ones of the same name.

    Returns their first status. Raises ConfigError without a cluster, and like `fleet_of`.
    """
    _needs_cluster(config, "start")
    fleet = fleet_of(config, compact_every_s=compact_every_s)
    with ray_cluster(fleet.config):
        from flts_ray.ingest.supervisor import find

        running = find(fleet.supervisor)
        if running is not None and _call(running.digest) != fleet.digest():
            narrator.step("Replace", "the actors that run were started otherwise; they drain")
            _stop(fleet)
        actors = _status(_launch(fleet))
        narrator.step("Started", f"{fleet.size} actor(s) named {fleet.actor(0)} and so on")
        return actors


def stop(config: Config, narrator: Narrator) -> list[dict[str, Any]]:
    """Drain and remove the actors on the running cluster; none is no error.

    Returns their last status, empty if there was none. Raises ConfigError without a cluster.
    """
    _needs_cluster(config, "stop")
    with ray_cluster(config):
        from flts_ray.ingest.supervisor import find

        name = Fleet(config, "", _nobody).supervisor
        if find(name) is None:
            narrator.step("Stopped", f"{name} does not run on this cluster")
            return []
        actors = _stop(Fleet(config, "", _nobody))
        narrator.step("Stopped", states_text([one["state"] for one in actors]))
        return actors


def _nobody(config: Config, brokers: str, index: int, of: int) -> Any:
    raise ConfigError(f"{config.name}: this fleet is only a name; start one with flts ingest start")


def _needs_cluster(config: Config, what: str) -> None:
    if not joins_a_cluster(config):
        raise ConfigError(
            f"ray.address: `flts ingest {what}` needs a cluster that stays; name it there or in "
            "RAY_ADDRESS, or ingest in the foreground with `flts ingest run`"
        )


def _launch(fleet: Fleet) -> Any:
    from flts_ray.ingest.supervisor import supervise

    return supervise(fleet)


def _status(handle: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _call(handle.status)["actors"]
    return found


def _stop(fleet: Fleet) -> list[dict[str, Any]]:
    """Drain through the supervisor, then remove it too."""
    from flts_ray.ingest.supervisor import find, remove

    handle = find(fleet.supervisor)
    if handle is None:
        return []
    found = _call(handle.stop, DRAIN_S, timeout_s=2 * DRAIN_S)["actors"]
    remove(fleet.supervisor)
    return list(found)


def _call(method: Any, *arguments: Any, timeout_s: float = START_S) -> Any:
    """What the supervisor answers, asked again while it is being restarted.

    Raises Unavailable if it does not answer in time.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    limit = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(method.remote(*arguments), timeout=max(1.0, limit - time.monotonic()))
        except GetTimeoutError:
            raise Unavailable(
                f"the supervisor of the ingestion did not answer within {timeout_s:g} s; has the "
                "cluster a free CPU for each actor (ingest.cpus_per_actor)?"
            ) from None
        except RayActorError as error:
            if time.monotonic() > limit:
                raise Unavailable(f"the supervisor of the ingestion ended: {error}") from error
            time.sleep(LOOK_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the job; returns the exit code."""
    given = _parser().parse_args(arguments)
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        config, narrator = load_config(given.config, given.overrides), LogNarrator()
        if given.remove:
            stop(config, narrator)
        elif joins_a_cluster(config) and not given.until_end:
            start(config, narrator, compact_every_s=given.compact_every)
        else:
            with IngestProgress() as watch:
                run(
                    config,
                    narrator,
                    until_end=given.until_end,
                    compact_every_s=given.compact_every,
                    watch=watch,
                )
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted; nothing was started", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.ingest", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--until-end", action="store_true", help="leave when all is stored")
    parser.add_argument("--compact-every", type=float, metavar="S", help="seconds between two")
    parser.add_argument("--remove", action="store_true", help="drain and take the actors down")
    return parser


if __name__ == "__main__":
    sys.exit(main())
