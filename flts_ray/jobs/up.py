"""A broker and an S3 server in the background: what `flts up` and `flts down` do.

Design choices: one supervisor process, in a session of its own, has both servers as its children
and starts again what dies; if it is killed, their guards take them down, so there is nothing that
only a process number leads to. It is asked to stop through a named pipe that only it reads, so
`flts down` can never hit a stranger. Addresses and keys are told in a file that is locked while
they hold and that nobody else may read. A command that needs both for its own length runs the same
stack in the same folder, or joins the one that runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from flts_ray.config import Config
from flts_ray.errors import ConfigError, Conflict, FltsError, Unavailable
from flts_ray.events import TOPICS
from flts_ray.jobs.announce import announce, announced
from flts_ray.jobs.folder import local_folder
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.local.s3 import check_bucket
from flts_ray.local.stack import S3, Addresses, Plan, Stack, in_use, make, sole_user, take
from flts_ray.local.stop_pipe import ask_to_stop, stop_when_asked
from flts_ray.narrate import set_up_logging
from flts_ray.s3_clients import endpoint
from flts_ray.services import Narrator

NAME, PIPE, LOG = "stack", "stop.pipe", "up.log"
BUCKET = "flts"
LOOK_S = 1.0
"""Seconds between two looks at whether the servers live."""
START_S, STOP_S = 90.0, 30.0
_SESSION = "AWS_SESSION_TOKEN"
"""Belongs to the keys of another server."""
_OWNER, _PROCESS, _BROKERS = "owner", "process", "brokers"
_SUPERVISOR, _COMMAND = "flts up", "a command"


def up(config: Config, narrator: Narrator, *, s3: bool = True) -> Addresses:
    """Start what is not running yet, wait until it works, and leave it running.

    Raises Unavailable if a server does not start (nothing is left behind then), Conflict if a
    command runs them for its own length, ConfigError if there is nothing to start.
    """
    folder, plan = up_folder(config), plan_of(config, s3=s3)
    if not plan.topics and not plan.buckets:
        raise ConfigError("nothing to start: stream.brokers names a broker, and S3 is not wanted")
    limit = time.monotonic() + START_S
    while (found := _joined(folder, plan)) is None:
        if not in_use(folder):
            narrator.step("Start", f"broker and S3 server in {folder}")
        found = _started(folder, plan, limit)
        if found is not None:
            break
        if time.monotonic() > limit:
            raise Unavailable(
                f"{folder}: what works there neither answers nor ends; see {folder / LOG}"
            )
        time.sleep(0.1)  # another is starting or stopping there
    narrator.step("Running", ", ".join(filter(None, (found.brokers, found.s3))))
    return found


def down(config: Config) -> bool:
    """Stop what `up` started and wait until it is gone. Returns whether anything ran.

    Raises Conflict if a command runs it for its own length, Unavailable if it does not end.
    """
    folder = up_folder(config)
    limit, asked = time.monotonic() + STOP_S, False
    while in_use(folder):
        if announced(folder, NAME).get(_OWNER) == _COMMAND:
            raise Conflict(
                f"{folder}: a command runs broker and S3 server for its own length; end that"
            )
        asked = asked or ask_to_stop(folder / PIPE)
        if time.monotonic() > limit:
            raise Unavailable(f"{folder}: does not stop; its log is {folder / LOG}")
        time.sleep(0.05)
    return asked


@contextmanager
def local_stack(config: Config, *, s3: bool = True) -> Iterator[Addresses]:
    """Broker and S3 server for the length of the block; those of `up` where they run.

    The environment of this process tells of the S3 server meanwhile, unless it tells of another.
    """
    folder, plan = up_folder(config), plan_of(config, s3=s3)
    found = _told(folder)
    if found is not None:
        _check(found, plan, folder)
        make(found, plan)
        with _adopted(found.environment):
            yield found
        return
    with (
        sole_user(folder),
        Stack(folder, plan) as stack,
        announce(folder, NAME, _record(stack.addresses, _COMMAND)),
        _adopted(stack.addresses.environment),
    ):
        yield stack.addresses


def running(config: Config) -> Addresses | None:
    """What runs in the configuration's folder; None if nothing does."""
    return _told(up_folder(config))


def brokers_of(config: Config) -> str:
    """The broker that is configured, else the one that runs here. Raises Unavailable."""
    if config.stream.brokers is not None:
        return config.stream.brokers
    found = running(config)
    if found is None or not found.brokers:
        raise Unavailable(
            "no broker: name one in stream.brokers, or run `flts up` to start one on this machine"
        )
    return found.brokers


def adopt_local(config: Config) -> None:
    """Use the S3 server that runs here, where an address needs one and the environment has none.

    Call it before Ray starts, so that its workers inherit the address and the keys. An environment
    that names an endpoint is left as it is. Raises Unavailable if the root was kept here and no
    server runs: without an endpoint, clients would look for the bucket at AWS.
    """
    if not _buckets(config) or endpoint() is not None:
        return
    found = running(config)
    if found is not None and found.s3:
        os.environ.pop(_SESSION, None)
        os.environ.update(found.environment)
    elif config.root.startswith("s3://") and (kept := up_folder(config) / S3).is_dir():
        raise Unavailable(
            f"{config.root} is kept by the S3 server of this machine ({kept}), which does not "
            "run: start it with `flts up -c` and this configuration, or name another server in "
            "AWS_ENDPOINT_URL"
        )


def up_folder(config: Config) -> Path:
    """Where `up` keeps data, logs and addresses."""
    return local_folder(config).resolve() / "up"


def plan_of(config: Config, *, s3: bool = True) -> Plan:
    """Topics and buckets of a configuration; no topics where it names a broker of its own.

    Raises ConfigError for a secured stream without a broker, since the local one speaks plain
    text, and for a bucket with a name that S3 does not allow.
    """
    stream = config.stream
    topics: dict[str, int] = {}
    if stream.brokers is None:
        if stream.security != "PLAINTEXT":
            raise ConfigError(
                f"stream.security: {stream.security} needs stream.brokers; the broker that `flts "
                "up` runs speaks plain text on the loopback interface"
            )
        topics = {stream.topic: stream.partitions, f"DLQ-{stream.topic}": stream.partitions}
        topics |= {topic: 1 for topic in TOPICS if topic not in topics}
    buckets = (_buckets(config) or (BUCKET,)) if s3 else ()
    for bucket in buckets:
        check_bucket(bucket)
    return Plan(topics, buckets)


def _buckets(config: Config) -> tuple[str, ...]:
    """Buckets that the configuration writes to or takes claims from, without repeats."""
    places = [config.root, *config.stream.claims.values()]
    rest = [place.removeprefix("s3://") for place in places if place.startswith("s3://")]
    return tuple(dict.fromkeys(place.partition("/")[0] for place in rest))


@contextmanager
def _adopted(environment: Mapping[str, str]) -> Iterator[None]:
    if not environment or endpoint() is not None:
        yield
        return
    names = [*environment, _SESSION]
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            os.environ.pop(name, None)
        os.environ.update(before)


def _record(addresses: Addresses, owner: str) -> dict[str, str]:
    about = {_OWNER: owner, _PROCESS: str(os.getpid()), _BROKERS: addresses.brokers}
    return about | dict(addresses.environment)


def _told(folder: Path) -> Addresses | None:
    told = announced(folder, NAME)
    if not told:
        return None
    about = (_OWNER, _PROCESS, _BROKERS)
    environment = {name: value for name, value in told.items() if name not in about}
    return Addresses(told[_BROKERS], environment.get("AWS_ENDPOINT_URL", ""), environment)


def _joined(folder: Path, plan: Plan) -> Addresses | None:
    """What `up` runs already, with the topics and buckets of this plan too."""
    found = _told(folder)
    if found is None:
        return None
    if announced(folder, NAME).get(_OWNER) == _COMMAND:
        raise Conflict(f"{folder}: a command runs broker and S3 server for its own length")
    _check(found, plan, folder)
    make(found, plan)
    return found


def _check(found: Addresses, plan: Plan, folder: Path) -> None:
    missing = "broker" if plan.topics and not found.brokers else ""
    missing = "S3 server" if plan.buckets and not found.s3 else missing
    if missing:
        raise Conflict(f"{folder}: what runs there has no {missing}; `flts down`, then `flts up`")


def _started(folder: Path, plan: Plan, limit: float) -> Addresses | None:
    """Start a supervisor; None if another one, starting or stopping, was there first."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "flts_ray.jobs.up", "--serve", str(folder), plan.text()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _awaited(process, folder, begin, limit)
    except BaseException:
        _end(process)
        raise


def _awaited(
    process: subprocess.Popen[bytes], folder: Path, begin: int, limit: float
) -> Addresses | None:
    while (found := _told(folder)) is None:
        code = process.poll()
        if code == Conflict.exit_code:
            return None
        if code is not None or time.monotonic() > limit:
            why = (folder / LOG).read_bytes()[begin:].decode(errors="replace").strip()
            kind = ConfigError if code == ConfigError.exit_code else Unavailable
            raise kind(f"`flts up` failed: {why.rpartition('error: ')[2] or f'exit code {code}'}")
        time.sleep(0.05)
    if announced(folder, NAME).get(_PROCESS) != str(process.pid):
        _end(process)
        return None
    # It outlives this process; while both live, somebody has to take note of its end.
    threading.Thread(target=process.wait, daemon=True).start()
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(folder: Path, plan: Plan) -> None:
    """Run the stack until somebody asks for its end, or deletes the folder.

    SIGTERM and Ctrl-C end it too.
    """
    take(folder)  # until the very end of this process: then it is gone
    stop_when_asked(folder / PIPE)
    with (
        Stack(folder, plan) as stack,
        announce(folder, NAME, _record(stack.addresses, _SUPERVISOR)),
    ):
        told = stack.addresses
        structlog.get_logger().info("local_stack_up", brokers=told.brokers, s3=told.s3)
        while (folder / PIPE).exists():  # without it nobody could ask any more
            time.sleep(LOOK_S)
            stack.tend()
        structlog.get_logger().warning("local_stack_folder_gone", folder=str(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the supervisor; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flts_ray.jobs.up", description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PLAN"), required=True)
    folder, plan = parser.parse_args(arguments).serve
    set_up_logging(json_lines=True)
    interrupt_on_sigterm()
    try:
        serve(Path(folder), Plan.of_text(plan))
    except FltsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        structlog.get_logger().info("local_stack_down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
