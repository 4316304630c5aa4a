"""N ingestion actors as named, detached actors of Ray, and the one that starts and asks them.

Design choices: detached, so that they outlive the command that started them; restarted for ever
by Ray and by nobody's retry of a method (`max_task_retries=0`), because a drain that is repeated
on a fresh process would stop what should run; the supervisor keeps nothing: after its own restart
it finds the actors by name, and makes those that are missing; another number of actors is another
fleet, since each actor's partitions depend on how many there are, and nothing is lost while both
are there; a stop kills only after a drain, and killing an actor that does not answer loses
nothing either, since what it had buffered is read again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import structlog
from ray.exceptions import RayActorError, RayError, RayTaskError

from flts_ray.config import Config
from flts_ray.ingest.actor import IngestActor
from flts_ray.ingest.fleet import NAMESPACE, ActorStatus, Fleet, surrounded_by
from flts_ray.ingest.metrics import RayMeter

LOOK_S = 5.0
ANSWER_S = 5.0
_log = structlog.get_logger("flts_ray.ingest")


class Supervisor:
    """Starts a fleet when it is made, and whatever of it is missing, until it is stopped."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._chores: dict[str, str] = {}
        self._ensure()
        threading.Thread(target=self._look_after, name="look-after", daemon=True).start()
        if fleet.compact is not None and fleet.compact_every_s is not None:
            chore = (fleet.compact, fleet.compact_every_s)
            threading.Thread(target=self._compact, args=chore, name="compact", daemon=True).start()

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def digest(self) -> str:
        """Of the fleet, to tell whether it is the wanted one."""
        return self._fleet.digest()

    def status(self) -> dict[str, Any]:
        """`actors`: an `ActorStatus` each, as JSON data; `chores`: how the last ones went."""
        return {"actors": _ask(self._fleet), "chores": dict(self._chores)}

    def stop(self, timeout_s: float) -> dict[str, Any]:
        """Drain all, then remove them. Returns their last status."""
        self._stopped.set()
        with self._lock:
            actors = _drain(self._fleet, timeout_s)
            for index in range(self._fleet.size):
                remove(self._fleet.actor(index))
        return {"actors": actors, "chores": dict(self._chores)}

    def _ensure(self) -> None:
        with self._lock:
            if not self._stopped.is_set():
                for index in range(self._fleet.size):
                    _actor(self._fleet, index)

    def _look_after(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self._ensure()
            except Exception as error:  # noqa: BLE001 - or nobody would look any more
                _log.error("ingest_not_looked_after", error=repr(error), exc_info=error)

    def _compact(self, compact: Callable[[Config, str], str], every_s: float) -> None:
        """Now and then."""
        while not self._stopped.wait(every_s):
            try:
                said = _compacted_elsewhere(self._fleet, compact)
            except Exception as error:  # noqa: BLE001 - the next one may succeed
                said = f"failed: {reason(error)}"
                _log.error("compaction_failed", error=said)
            self._chores["compaction"] = said


def supervise(fleet: Fleet) -> Any:
    """The handle of the fleet's supervisor, made if there is none."""
    options = _options(fleet.supervisor, cpus=0)
    return ray.remote(Supervisor).options(**options).remote(fleet)


def find(name: str) -> Any | None:
    """Handle of a named actor; None where there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def remove(name: str) -> None:
    """End an actor for good; one that is not there is no error."""
    handle = find(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def compacted(
    compact: Callable[[Config, str], str],
    config: Config,
    brokers: str,
    environment: Mapping[str, str],
) -> str:
    """Compact with the keys and addresses that the actors were given."""
    with surrounded_by(environment):
        return compact(config, brokers)


def _compacted_elsewhere(fleet: Fleet, compact: Callable[[Config, str], str]) -> str:
    """In a process of its own, whose memory is given back."""
    # No CPU is reserved: with all of them given to actors, the task would wait for ever.
    task = ray.remote(num_cpus=0, max_retries=0)(compacted)
    said: str = ray.get(task.remote(compact, fleet.config, fleet.brokers, fleet.environment))
    return said


def reason(error: Exception) -> str:
    """What went wrong, here or in the other process, in a line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _options(name: str, cpus: float) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        # A status is asked for while a drain is under way.
        "max_concurrency": 4,
        "num_cpus": cpus,
    }


def _actor(fleet: Fleet, index: int) -> Any:
    options = _options(fleet.actor(index), fleet.config.ingest.cpus_per_actor)
    return ray.remote(IngestActor).options(**options).remote(fleet, index, _meter)


def _meter(fleet: Fleet, index: int) -> RayMeter:
    return RayMeter(fleet.config.name, index)


def _ask(fleet: Fleet) -> list[dict[str, Any]]:
    handles = [find(fleet.actor(index)) for index in range(fleet.size)]
    return _answers(fleet, [h and h.status.remote() for h in handles], ANSWER_S)


def _drain(fleet: Fleet, timeout_s: float) -> list[dict[str, Any]]:
    handles = [find(fleet.actor(index)) for index in range(fleet.size)]
    answers = [handle and handle.drain.remote(timeout_s) for handle in handles]
    return _answers(fleet, answers, timeout_s + ANSWER_S)


def _answers(fleet: Fleet, asked: Sequence[Any], timeout_s: float) -> list[dict[str, Any]]:
    """What each actor answers in time; one that does not is being restarted, or overwhelmed."""
    waiting = [one for one in asked if one is not None]
    ready = (
        set(ray.wait(waiting, num_returns=len(waiting), timeout=timeout_s)[0]) if waiting else ()
    )
    found = []
    for index, one in enumerate(asked):
        try:
            if one in ready:
                found.append(ray.get(one))
                continue
            error = "" if one is None else f"no answer within {timeout_s:g} s"
        except RayActorError:
            error = ""
        except RayError as failed:
            error = reason(failed)
        found.append(ActorStatus(index, fleet.size, "restarting", error=error).as_json())
    return found
