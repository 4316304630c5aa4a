"""`flts train` on very many series: seconds, processor time and the most memory of all processes.

    python -m benchmarks.many_series                         # 100,000 series of 400 hours
    python -m benchmarks.many_series --series 1000000 --output many.json     # 2 GB of input, 12 min

The command runs as users run it, from Parquet files to a champion, in a process of its own with a
Ray that it starts. Memory is proportional set size: a page that processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bulk_offline import Watched
from benchmarks.serving.servers import MARK, OWN, ROOT, SERVERS, Running

HOURS = 400
EACH = 20_000
"""Series of one file."""
HOUR_US = 3_600_000_000
START_US = 1_704_067_200_000_000
SETTINGS = {
    "task": {"horizon": 6},
    "models": {
        "seasonal_naive": {},
        "ar": {},
        "gru": {"trials": 1, "params": {"lookback": 96}},
    },
}


def write_input(folder: Path, series: int) -> None:
    """Days and weeks of sizes of their own, with errors that last some hours."""
    folder.mkdir()
    hours = np.arange(HOURS)
    ds = pa.array(START_US + HOUR_US * hours).cast(pa.timestamp("us", "UTC"))
    for number, begin in enumerate(range(0, series, EACH)):
        rng = np.random.default_rng(number)
        n = min(EACH, series - begin)
        day, week = rng.uniform(0.1, 0.6, (n, 1)), rng.uniform(0.05, 0.3, (n, 1))
        clock = 2 * np.pi * (hours + rng.uniform(0, 24, (n, 1))) / 24
        error = rng.normal(size=(n, HOURS)).astype(np.float32)
        for hour in range(1, HOURS):
            error[:, hour] += 0.7 * error[:, hour - 1]
        y = 1 + day * np.sin(clock) + week * np.sin(2 * np.pi * hours / 168) + 0.08 * error
        y = 10 ** rng.uniform(0, 4, (n, 1)) * np.maximum(y, 0.01)
        ids = pa.array([f"cell-{begin + i:07d}" for i in range(n)])
        rows = pa.array(np.repeat(np.arange(n, dtype=np.int32), HOURS))
        steps = pa.array(np.tile(np.arange(HOURS, dtype=np.int32), n))
        named = pa.DictionaryArray.from_arrays(rows, ids)
        values = pa.array(y.astype(np.float32).ravel())
        table = pa.table({"unique_id": named, "ds": ds.take(steps), "y": values})
        pq.write_table(table, folder / f"part-{number:04d}.parquet")


def measure(series: int, folder: Path) -> dict[str, float | int | str]:
    """One training. Raises RuntimeError where it does not end with a champion."""
    write_input(folder / "in", series)
    config = {
        "name": "many",
        "root": str(folder / "root"),
        "data": {"path": str(folder / "in"), "id": "unique_id", "frequency": "1h"},
        "ray": {"num_cpus": os.cpu_count(), "object_store_mb": 1000, "dashboard_port": 0},
        **SETTINGS,
    }
    (folder / "many.yaml").write_text(json.dumps(config))
    mark = uuid.uuid4().hex
    about = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    watched = Watched(Running(SERVERS[0], 0, mark))
    thread = threading.Thread(target=watched.watch)
    begun = time.monotonic()
    command = [str(OWN.parent / "flts"), "train", "--config", str(folder / "many.yaml")]
    with subprocess.Popen(command, env=about, stdout=subprocess.PIPE, text=True) as process:
        thread.start()
        assert process.stdout is not None
        lines = [_told(line, begun) for line in process.stdout]
    watched.stop()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"flts train ended with {process.returncode}: {''.join(lines[-5:])}")
    return {
        "series": series,
        "rows": series * HOURS,
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(sum(watched.cpu.values()), 1),
        "peak_mb": watched.peak_mb,
        "decision": lines[-1].strip(),
    }


def _told(line: str, begun: float) -> str:
    print(f"{time.monotonic() - begun:7.1f} s  {line}", end="", file=sys.stderr)
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, action="append", help="default: 100000")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    found = []
    for series in options.series or [100_000]:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(series, Path(folder)))
        print(json.dumps(found[-1]))
        if options.output is not None:
            options.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
