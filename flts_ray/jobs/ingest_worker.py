"""One ingesting process without Ray: `python -m flts_ray.jobs.ingest_worker --config flts.yaml`.

Design choices: the same worker as in an actor, for operators with a process manager of their own
and for tests of crashes; the first SIGTERM or Ctrl-C drains, a second one ends at once, which
loses nothing either; exit codes are those of the command line, 0 after a drain.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from types import FrameType

from flts_ray.config import Config, load_config
from flts_ray.errors import FltsError
from flts_ray.ingest.claims import ClaimReader
from flts_ray.ingest.decode import Decoder
from flts_ray.ingest.faults import Faults
from flts_ray.ingest.worker import Worker
from flts_ray.jobs.up import adopt_local, brokers_of
from flts_ray.narrate import set_up_logging
from flts_ray.store import Store
from flts_ray.streams.connect import admin, consumer, epoch_of


def open_worker(config: Config, brokers: str, index: int, of: int) -> Worker:
    """Worker `index` of `of` with all its clients, in a process that does nothing else.

    Raises Unavailable if broker, topic or store cannot be used or the store lets two conditional
    writes win; ConfigError for a covariate that has the name of a segment's column.
    """
    faults = Faults.from_environment(os.environ)
    store = Store.open(config.root)
    store.probe_put_new()
    # Messages are many and hold no cycles: looking for some costs a quarter of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    reader = consumer(
        config.stream, brokers, group=config.stream.group, member=f"{config.name}-{index}"
    )
    return Worker(
        config, store, reader, decoder_of(config), epoch=epoch_at(config, brokers),
        writer=f"{config.name}-{index}-{uuid.uuid4().hex[:12]}", index=index, of=of, faults=faults,
        epoch_now=lambda: epoch_at(config, brokers),
    )  # fmt: skip


def epoch_at(config: Config, brokers: str) -> str:
    """Name of the topic's present life at these brokers."""
    clerk = admin(config.stream, brokers)
    try:
        identity = clerk.topic_identity(config.stream.topic)
    finally:
        clerk.close()
    return epoch_of(identity, config.stream.topic, config.stream.generation)


def decoder_of(config: Config) -> Decoder:
    """Decoder of the topic's messages, and of what they point at."""
    stream, data = config.stream, config.data
    claims = None
    if stream.claims:
        most = config.ingest.buffer_bytes
        claims = ClaimReader(stream.claims, data, stream.max_claim_bytes, max_row_bytes=most)
    return Decoder(
        data.covariates,
        max_message_bytes=stream.max_message_bytes,
        time_zone=data.stamp_time_zone or data.time_zone,
        claims=claims,
        max_batch_bytes=config.ingest.segment_bytes,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    options = _options(arguments)
    stop = _stop_on_signals()
    set_up_logging(json_lines=not sys.stderr.isatty())
    try:
        config = load_config(options.config, options.set)
        adopt_local(config)
        worker = open_worker(config, brokers_of(config), options.index, options.of)
        try:
            worker.run(stop, until_end=options.until_end)
        finally:
            worker.close()
    except FltsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ingest_worker", description=__doc__.split("\n")[0])
    parser.add_argument("--config", "-c", default="flts.yaml")
    parser.add_argument("--set", action="append", default=[], help="section.key=value; repeatable")
    parser.add_argument("--index", type=int, default=0, help="this process, from 0")
    parser.add_argument("--of", type=int, default=1, help="how many share the partitions")
    parser.add_argument("--until-end", action="store_true", help="end where the logs end now")
    options = parser.parse_args(arguments)
    if not 0 <= options.index < options.of:
        parser.error(f"--index {options.index} is not one of 0..{options.of - 1} (--of)")
    return options


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def drain(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)
    return stop


if __name__ == "__main__":
    sys.exit(main())
