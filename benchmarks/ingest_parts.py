"""CPU time of one worker, by what it is spent on, in microseconds a message.

    python -m benchmarks.ingest_parts CONFIG

The worker runs in this process; its consumer, decoder, sink and store are timed from outside with
the clock of the thread that does the work, so that waiting and other threads do not count.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from flts_ray.config import Config, load_config
from flts_ray.ingest import errands, worker
from flts_ray.ingest.decode import Decoder
from flts_ray.jobs.ingest_worker import open_worker
from flts_ray.narrate import set_up_logging
from flts_ray.store import Store
from flts_ray.streams import kafka_python


def parts(config: Config) -> dict[str, float]:
    """Ingest the topic to its end; CPU microseconds a message. `loop`: the main thread's rest."""
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for place, name, part in (
            (kafka_python.KafkaPythonConsumer, "poll", "poll"),
            (kafka_python, "_columns", "columns"),
            (Decoder, "decode", "decode"),
            (errands, "encode", "encode"),
            (type(Store.open(config.root)), "put_new", "put"),
            (worker, "step", "sink"),
        ):
            timed = _timed(getattr(place, name), part, spent)
            stack.enter_context(patch.object(place, name, timed))
        running = open_worker(config, config.stream.brokers or "", 0, 1)
        before = time.process_time(), time.thread_time()
        running.run(threading.Event(), until_end=True)
        total, main = time.process_time() - before[0], time.thread_time() - before[1]
        running.close()
    count = running.snapshot().totals["messages"]
    spent["poll"] -= spent["columns"]
    named = sum(spent[part] for part in ("poll", "columns", "decode", "sink"))
    found = {**spent, "loop": main - named, "main thread": main, "process": total}
    return {part: round(1e6 * seconds / count, 3) for part, seconds in found.items()}


def _timed(call: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            spent[part] += time.thread_time() - start  # type: ignore[assignment]

    return timed


if __name__ == "__main__":
    set_up_logging(json_lines=False)
    print(json.dumps(parts(load_config(sys.argv[1]))))
