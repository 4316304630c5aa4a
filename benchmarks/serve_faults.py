"""Serving under fire: how many requests fail while everything around them dies or changes.

    python -m benchmarks.serve_faults                      # the whole schedule, 100,000 requests
    python -m benchmarks.serve_faults --requests 5000 --only replica,swap

Constant callers ask one champion through Ray Serve's HAProxy. An event is made to happen, the
callers go on for a while, and what they saw is counted for each event. A connection that breaks
because the process at its other end was killed cannot be mended by a server; callers repeat such a
request once, as any client of an idempotent API may, and both counts are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.serve_load import Load, Seen, load, request_bytes
from benchmarks.serve_stage import NAME, Nodes, Stage, cluster, haproxies, pids, running
from flts_ray.errors import ArtifactError
from flts_ray.local.ray_environment import set_for_ray
from tests.running import until

RESULT = Path(__file__).parent / "results" / "serve_faults.json"
SETTLE_S = 4.0


@dataclass
class Event:
    """What callers saw from the event's beginning to the next one's."""

    name: str
    requests: int
    failed: int
    broken: int
    mixed: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    answers: dict[str, int]
    notes: dict[str, float | str] = field(default_factory=dict)


class Schedule:
    """The events, one method each; returns notes for the table."""

    def __init__(self, stage: Stage, callers: Load, replicas: int) -> None:
        self._stage = stage
        self._load = callers
        self._replicas = replicas
        self._versions = [stage.register(season) for season in (12, 6, 8)]

    def names(self) -> list[str]:
        """In order."""
        return [n for n in vars(type(self)) if not n.startswith("_") and n != "names"]

    def quiet(self) -> dict[str, float | str]:
        """Nothing happens."""
        time.sleep(SETTLE_S)
        return {}

    def replica(self) -> dict[str, float | str]:
        """kill -9 of one replica."""
        return self._killed(1)

    def replicas(self) -> dict[str, float | str]:
        """kill -9 of all replicas at once."""
        return self._killed(self._replicas)

    def manager(self) -> dict[str, float | str]:
        """kill -9 of the actor that manages HAProxy."""
        for pid in pids("SERVE_PROXY_ACTOR", without="fallback").values():
            os.kill(pid, signal.SIGKILL)
        time.sleep(12)
        return {"managers": float(len(pids("SERVE_PROXY_ACTOR", without="fallback")))}

    def haproxy(self) -> dict[str, float | str]:
        """kill -9 of HAProxy."""
        for pid in haproxies():
            os.kill(pid, signal.SIGKILL)
        time.sleep(12)
        return {"haproxies": float(len(haproxies()))}

    def controller(self) -> dict[str, float | str]:
        """kill -9 of Serve's controller."""
        for pid in pids("SERVE_CONTROLLER").values():
            os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        until(lambda: pids("SERVE_CONTROLLER"), 60, "another controller")
        until(lambda: running() == self._replicas, 60, "its knowledge of the replicas")
        taken = time.monotonic() - begin
        time.sleep(SETTLE_S)
        return {"controller back after s": taken}

    def store_away(self) -> dict[str, float | str]:
        """The object store stops, and a replica is killed meanwhile."""
        port = self._stage.s3.port
        self._stage.s3.stop()
        notes = self._killed(1)
        self._stage.s3.port = port
        self._stage.s3.start()
        return notes

    def mlflow_away(self) -> dict[str, float | str]:
        """MLflow stops, and a replica is killed meanwhile."""
        self._stage.mlflow.stop()
        notes = self._killed(1)
        self._stage.mlflow.start()
        self._stage.mlflow.wait()
        return notes

    def corrupt(self) -> dict[str, float | str]:
        """A champion is promoted whose stored files were changed."""
        before = self._served()
        version = self._versions[2]
        self._stage.spoil(version)
        self._stage.promote(version)
        time.sleep(5 * self._stage.config.serve.poll_s)
        after = self._served()
        with suppress(ArtifactError):
            self._stage.fetch()
            raise AssertionError("the champion was to be spoiled")
        self._stage.registry.rollback(self._stage.now, "it is spoiled")
        return {"served before": before, "served after": after}

    def swap(self) -> dict[str, float | str]:
        """Another version is promoted; replicas find it by themselves."""
        return self._swapped(lambda: self._stage.promote(self._versions[0]))

    def nudged(self) -> dict[str, float | str]:
        """Another version is promoted, and the replicas are told."""
        from flts_ray.serve.deployment import nudge

        def change() -> None:
            self._stage.promote(self._versions[1])
            asyncio.run(nudge(NAME))

        return self._swapped(change)

    def rollback(self) -> dict[str, float | str]:
        """The version before comes back."""
        return self._swapped(
            lambda: self._stage.registry.rollback(self._stage.now, "the schedule wants it")
        )

    def redeploy(self) -> dict[str, float | str]:
        """Every replica is replaced."""
        begin = time.monotonic()
        self._stage.deploy()
        taken = time.monotonic() - begin
        time.sleep(SETTLE_S)
        return {"seconds": taken}

    def elastic(self) -> dict[str, float | str]:
        """One replica, then a crowd, then few callers again."""
        self._stage.deploy(
            min_replicas=1, max_replicas=2, target_ongoing_requests=4,
            upscale_delay_s=0.5, downscale_delay_s=3.0,
        )  # fmt: skip
        self._load.callers(1)
        until(lambda: running() == 1, 60, "one replica")
        begin = time.monotonic()
        self._load.callers(24)
        until(lambda: running() == 2, 90, "the second replica")
        up = time.monotonic() - begin
        time.sleep(SETTLE_S)
        self._load.callers(1)
        until(lambda: running() == 1, 90, "one replica again")
        return {"second replica after s": up}

    def overload(self) -> dict[str, float | str]:
        """Far more callers than the bounded queue holds."""
        self._stage.deploy(
            min_replicas=1, max_replicas=1, max_ongoing_requests=4, max_queued_requests=8
        )
        self._load.callers(96)
        time.sleep(6)
        self._load.callers(8)
        self._stage.deploy()
        return {}

    def _killed(self, count: int) -> dict[str, float | str]:
        begin = time.monotonic()
        victims = dict(list(pids("SERVE_REPLICA").items())[:count])
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        until(
            lambda: len(pids("SERVE_REPLICA").keys() - victims) >= self._replicas, 120, "new ones"
        )
        taken = time.monotonic() - begin
        time.sleep(SETTLE_S)
        return {"full strength after s": taken}

    def _served(self) -> str:
        self._load.part_versions()
        time.sleep(1.0)
        return ",".join(sorted(self._load.part_versions()))

    def _swapped(self, change: Callable[[], object]) -> dict[str, float | str]:
        old = self._served()
        begin = time.time()
        change()
        changed = time.time()
        time.sleep(SETTLE_S + 2)
        last = self._load.look().versions.get(old, (0.0, begin))[1]
        new = self._served()
        return {"from": old, "to": new, "last old answer after s": max(0.0, last - changed)}


def happened(name: str, seen: Seen, notes: dict[str, float | str]) -> Event:
    """One row of the table."""
    return Event(
        name, seen.requests, seen.failed, seen.broken, seen.mixed,
        round(seen.percentile_ms(0.5), 1), round(seen.percentile_ms(0.99), 1),
        round(seen.percentile_ms(1.0), 1), dict(seen.answers),
        {k: round(v, 2) if isinstance(v, float) else v for k, v in notes.items()},
    )  # fmt: skip


def run_nodes(callers: int) -> list[Event]:
    """One of two nodes leaves and another one joins, a replica on each."""
    events: list[Event] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flts-")))
        stage = Stage(folder, stack, 2)
        stage.promote(stage.register(24))
        set_for_ray(starts_cluster=True, serving=stage.config.serve)
        nodes = stack.enter_context(Nodes())
        nodes.join()
        url = stage.deploy(min_replicas=2, max_replicas=2, cpus_per_replica=1.0)
        until(lambda: running() == 2, 120, "two replicas")
        with load(url, request_bytes(url, stage.request()), callers) as work:
            time.sleep(SETTLE_S)
            _show(events, happened("two nodes", work.part(), {"replicas": float(running())}))
            nodes.leave()
            time.sleep(20)
            _show(events, happened("node leaves", work.part(), {"replicas": float(running())}))
            nodes.join()
            until(lambda: running() == 2, 120, "the second replica")
            time.sleep(SETTLE_S)
        _show(events, happened("node joins", work.part(), {"replicas": float(running())}))
    return events


def run(requests: int, callers: int, replicas: int, only: set[str]) -> list[Event]:
    """The schedule, then quiet until there were enough requests."""
    events: list[Event] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flts-")))
        stage = Stage(folder, stack, replicas)
        stage.promote(stage.register(24))
        stack.enter_context(cluster(stage.config.serve))
        url = stage.deploy()
        request = request_bytes(url, stage.request())
        assert httpx.post(f"{url}/v1/forecast", content=stage.request()).status_code == 200
        with load(url, request, callers) as work:
            schedule = Schedule(stage, work, replicas)
            for name in [n for n in schedule.names() if not only or n in only]:
                notes = getattr(schedule, name)()
                work.callers(callers)
                _show(events, happened(name, work.part(), notes))
            while work.look() and work.total.requests < requests:
                time.sleep(1.0)
        _show(events, happened("the rest", work.part(), {}))
    return events


def _show(events: list[Event], event: Event) -> None:
    events.append(event)
    print(
        f"{event.name:12} {event.requests:7} requests {event.failed:3} failed {event.broken:3} "
        f"broken {event.mixed} mixed  p50 {event.p50_ms:7.1f} p99 {event.p99_ms:8.1f} max "
        f"{event.max_ms:8.1f} ms  {event.answers} {event.notes}",
        flush=True,
    )


def main() -> int:
    """Print the table, write it, and fail where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--only", default="", help="names of events, with commas between")
    given = parser.parse_args()
    only = set(filter(None, given.only.split(",")))
    events = []
    if only != {"node"}:
        events += run(given.requests, given.callers, given.replicas, only)
    if not only or "node" in only:
        events += run_nodes(given.callers)
    total = {k: sum(getattr(e, k) for e in events) for k in ("requests", "failed", "broken")}
    print(total)
    if not only:
        RESULT.write_text(
            json.dumps({"total": total, "events": [vars(e) for e in events]}, indent=1)
        )
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
