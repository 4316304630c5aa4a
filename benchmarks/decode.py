"""Messages decoded a second on one core, beside `json.loads` message by message into pandas.

    python -m benchmarks.decode
    python -m benchmarks.decode --messages 20000 --rounds 9 --output decode.json

Both read the same 100-byte samples in batches of one poll and end with typed columns (series, UTC
time, two numbers). They take turns, so that both meet the same machine; the best round of each
counts. Arrow's own JSON reader on the joined messages runs too, for comparison: it refuses the
whole batch for one bad message.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.json as pajson

from flts_ray.ingest.decode import Decoder
from flts_ray.panel import BASE_SCHEMA
from flts_ray.streams.records import Records

_ARROW = BASE_SCHEMA.append(pa.field("temperature", pa.float64()))


def messages(count: int, bad_share: float = 0.0) -> list[bytes]:
    """Samples of 100 bytes; a share of them is cut off in the middle."""
    rng = random.Random(7)
    made = []
    for at in range(count):
        sample = {
            "unique_id": f"house-{rng.randrange(2000):04d}",
            "ds": f"2024-03-{1 + at % 28:02d}T{at % 24:02d}:{at % 60:02d}:00Z",
            "y": round(rng.random() * 90 + 10, 3),
            "temperature": round(rng.random() * 30 + 10, 2),
        }
        value = json.dumps(sample).ljust(100).encode()
        made.append(value[:50] if rng.random() < bad_share else value)
    return made


def polled(values: Sequence[bytes]) -> Records:
    """One poll that returned these values."""
    count = len(values)
    return Records(0, range(count), values, [0] * count, (), [None] * count, sum(map(len, values)))


def by_rows(values: Sequence[bytes]) -> pd.DataFrame:
    """Every message parsed alone, the table made of the dictionaries."""
    frame = pd.DataFrame([json.loads(value) for value in values])
    frame["ds"] = pd.to_datetime(frame["ds"], utc=True)
    return frame


def by_arrow(values: Sequence[bytes]) -> pa.Table:
    """All messages as lines of one text."""
    block = b"\n".join(values)
    return pajson.read_json(
        pa.BufferReader(block),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pajson.ParseOptions(explicit_schema=_ARROW),
    )


def rates(count: int, rounds: int) -> dict[str, float]:
    """Messages a second of CPU time of this process's one thread, best of all rounds."""
    decoder = Decoder({"temperature": "past"}, max_message_bytes=1 << 20)
    good, poisoned = polled(messages(count)), polled(messages(count, 0.5))
    ways: dict[str, Callable[[], object]] = {
        "decoder": lambda: decoder.decode(good),
        "decoder, half of the messages bad": lambda: decoder.decode(poisoned),
        "pyarrow.json, one thread": lambda: by_arrow(list(good.values)),  # type: ignore[arg-type]
        "json.loads into pandas": lambda: by_rows(list(good.values)),  # type: ignore[arg-type]
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, act in ways.items():
            start = time.process_time()
            act()
            best[name] = min(best[name], time.process_time() - start)
    return {name: count / seconds for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=20_000, help="messages of one poll")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    found = rates(arguments.messages, arguments.rounds)
    base = found["json.loads into pandas"]
    for name, rate in found.items():
        print(f"{name:36} {rate / 1e6:6.2f} M messages/s   {rate / base:5.1f} x json.loads")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
