"""Bulk forecasts a second over HTTP, against the model alone on the same cores.

    python -m benchmarks.bulk [--kind ar] [--series 10000] [--rounds 5] [--output results.json]
    python -m benchmarks.bulk --serve       # a whole deployment: `bulk_serve.py`
    python -m benchmarks.bulk --offline     # `flts forecast --output`: `bulk_offline.py`

One process serves the app on a loopback port; bodies are made beforehand. In every round the model,
in the form that replicas load, forecasts the same windows by itself, all its quantiles, in batches
of the service's size and on one thread, right before each wire is asked once; a ratio is the median
of those of the rounds, a rate that of the best. Seconds of CPU, the client's included, are told
beside seconds of the clock: on a busy machine only they mean anything. An answer whose numbers
differ from the model's own is an error.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from flts_ray.config_serve import ServeConfig
from flts_ray.models.base import Fitted, Task, fit_fully
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows
from flts_ray.prepare.calendar import calendar_columns
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.history import calendar_of, stamps_text
from flts_ray.serve.laying import windows_of
from flts_ray.serve.rows import AskedSeries

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
HORIZON, POINTS, FITTED_ON = 24, 384, 50
START_US = 1_704_067_200_000_000
PATH = "/v1/forecast:batch"
OPTIONS = {"horizon": HORIZON, "quantiles": [0.1, 0.5, 0.9]}
PARAMS: dict[str, dict[str, Any]] = {
    "gru": {"hidden": 128, "layers": 2, "lookback": 96, "epochs": 1},
    "lstm": {"hidden": 128, "layers": 2, "lookback": 96, "epochs": 1},
}


def load_set(series: int, length: int) -> SeriesArrays:
    """Hourly series with a daily cycle, a weekly one and noise."""
    contract = Contract(freq="1h", season=24, calendar=calendar_columns("1h"), max_gap=3)
    rng = np.random.default_rng(7)
    steps = np.arange(length)
    level = rng.uniform(50, 500, (series, 1))
    phase = rng.uniform(0, 24, (series, 1))
    daily = 0.3 * np.sin(2 * np.pi * (steps + phase) / 24)
    weekly = 0.1 * np.sin(2 * np.pi * steps / 168)
    y = level * (1 + daily + weekly + rng.normal(0, 0.05, (series, length)))
    calendar = calendar_of(steps_after(np.asarray(START_US), steps, contract), contract)
    stats = SeriesStats(
        ids=tuple(f"load-{i}" for i in range(series)),
        mean=y.mean(axis=1),
        std=y.std(axis=1),
        scale=np.abs(y[:, 24:] - y[:, :-24]).mean(axis=1),
        clip_lo=np.full(series, -np.inf),
        clip_hi=np.full(series, np.inf),
    )
    rows = series * length
    return SeriesArrays(
        contract=contract,
        stats=stats,
        offsets=np.arange(series + 1) * length,
        start_us=np.full(series, START_US),
        train_end=np.full(series, length * 7 // 10),
        valid_end=np.full(series, length * 9 // 10),
        y=y.ravel(),
        observed=np.ones(rows, dtype=bool),
        future=np.tile(calendar, (series, 1)),
        past=np.zeros((rows, 0), np.float32),
        static=np.zeros((series, 0), np.float32),
    )


@dataclass(frozen=True)
class Wire:
    """A body, its kind, and how the means are read from its answer: float64 [n, H]."""

    media: str
    body: bytes
    query: str
    means: Callable[[bytes], np.ndarray]


def wires(ids: list[str], y: np.ndarray) -> dict[str, Wire]:
    """The same histories in every form. y: float32 [n, points]."""
    return {"json": json_wire(ids, y), "msgpack": msgpack_wire(ids, y), "arrow": arrow_wire(ids, y)}


def json_wire(ids: list[str], y: np.ndarray) -> Wire:
    start = stamps_text(np.array([START_US]))[0]
    series = [{"unique_id": n, "start": start, "y": row.tolist()}
              for n, row in zip(ids, y, strict=True)]  # fmt: skip
    return Wire("application/json", orjson.dumps({"series": series} | OPTIONS), "", json_means)


def msgpack_wire(ids: list[str], y: np.ndarray) -> Wire:
    start = stamps_text(np.array([START_US]))[0]
    series = [{"unique_id": n, "start": start, "y": row.tobytes(), "dtype": "float32"}
              for n, row in zip(ids, y, strict=True)]  # fmt: skip
    body = msgspec.msgpack.encode({"series": series} | OPTIONS)
    return Wire("application/msgpack", body, "", msgpack_means)


def arrow_wire(ids: list[str], y: np.ndarray) -> Wire:
    starts = pa.array(np.full(len(ids), START_US)).cast(pa.timestamp("us", "UTC"))
    offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * y.shape[1])
    lists = pa.ListArray.from_arrays(offsets, pa.array(y.ravel()))
    sink = io.BytesIO()
    table = pa.table({"unique_id": ids, "start": starts, "y": lists})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    query = "?horizon=24&quantiles=0.1,0.5,0.9"
    return Wire("application/vnd.apache.arrow.stream", sink.getvalue(), query, arrow_means)


def json_means(raw: bytes) -> np.ndarray:
    return np.array([one["mean"] for one in orjson.loads(raw)["forecasts"]])


def msgpack_means(raw: bytes) -> np.ndarray:
    import msgpack  # type: ignore[import-untyped]

    parts = [one for one in msgpack.Unpacker(io.BytesIO(raw), max_buffer_size=0) if "mean" in one]
    found = [np.frombuffer(one["mean"], "<f8").reshape(-1, HORIZON) for one in parts]
    return np.concatenate(found)


def arrow_means(raw: bytes) -> np.ndarray:
    column = pa.ipc.open_stream(raw).read_all()["mean"].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy()
    return values.reshape(-1, HORIZON)


class Service:
    """The app on a free port of this process."""

    def __init__(self, fitted: Fitted, limits: ServeConfig) -> None:
        import socket

        import uvicorn

        self._slot = ModelSlot("bulk", limits)
        self._slot.install(ServedModel("bulk", "1", "digest", fitted))
        config = uvicorn.Config(build_app(self._slot), log_config=None, ws="none", lifespan="on")
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self._thread.start()

    def ask(self, wire: Wire) -> bytes:
        """The answer's body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"content-type": wire.media, "x-request-timeout-ms": "600000"}
        connection.request("POST", PATH + wire.query, body=wire.body, headers=headers)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{wire.media}: {answer.status} {raw[:300]!r}")
        return raw

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._slot.close()


def alone(fitted: Fitted, windows: Windows, batch: int) -> np.ndarray:
    """The model without anything around it."""
    starts = range(0, len(windows), batch)
    parts = [fitted.forecast(windows.part(slice(at, at + batch))).mean for at in starts]
    return np.concatenate(parts)


def served_form(kind: str) -> Fitted:
    """A fitted model as a replica has it: networks are run by ONNX Runtime."""
    from flts_ray.models.onnx_export import exported, needs_export

    fitted = fit_fully(kind, load_set(FITTED_ON, 2000), Task(HORIZON, LEVELS), PARAMS.get(kind, {}))
    return exported(fitted) if needs_export(fitted) else fitted


def measure(kind: str, series: int, rounds: int) -> dict[str, Any]:
    """Forecasts a second of the model alone and of every wire."""
    fitted = served_form(kind)
    y = load_set(series, POINTS).y.reshape(series, POINTS).astype(np.float32)
    ids = [f"new-{i}" for i in range(series)]
    asked = [
        AskedSeries(field="", id=name, named=True, start=START_US, y=row)
        for name, row in zip(ids, y, strict=True)
    ]
    limits = ServeConfig(timeout_s=600, max_bulk_series=max(series, 10_000))
    windows = windows_of(asked, ServedModel("bulk", "1", "digest", fitted))
    model: list[np.ndarray] = []
    spent: dict[str, list[np.ndarray]] = {}
    ratios: dict[str, list[np.ndarray]] = {}
    service = Service(fitted, limits)
    forms = wires(ids, y)
    try:
        for name, wire in [*forms.items()] * (rounds + 1):
            begin = clocks()
            want = alone(fitted, windows, limits.max_batch)
            raw, begin = clocks() - begin, clocks()
            answer = service.ask(wire)
            took = clocks() - begin
            np.testing.assert_allclose(wire.means(answer), want, rtol=1e-5)
            model.append(raw)
            spent.setdefault(name, []).append(took)
            ratios.setdefault(name, []).append(raw / took)
    finally:
        service.close()
    # The first round warms everything up.
    best = {"model": np.min(model[len(forms) :], axis=0)}
    best |= {name: np.min(seconds[1:], axis=0) for name, seconds in spent.items()}
    median = {name: np.median(found[1:], axis=0) for name, found in ratios.items()}
    return {
        "kind": kind,
        "series": series,
        "points": POINTS,
        "horizon": HORIZON,
        "forecasts_per_s": {name: round(series / float(s[0])) for name, s in best.items()},
        "ratio_to_model": {name: round(float(r[0]), 3) for name, r in median.items()},
        "ratio_to_model_cpu": {name: round(float(r[1]), 3) for name, r in median.items()},
        "body_mb": {name: round(len(wire.body) / 1e6, 2) for name, wire in forms.items()},
    }


def clocks() -> np.ndarray:
    """Seconds of the clock and of the CPU."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", action="append", help="model kinds; ar and gru by default")
    parser.add_argument("--series", action="append", type=int, help="in a request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=os.cpu_count(), help="with --serve")
    parser.add_argument("--serve", action="store_true", help="a whole deployment; bulk_serve.py")
    parser.add_argument("--offline", action="store_true", help="the command; bulk_offline.py")
    parser.add_argument("--output", help="JSON file; its other parts are kept")
    given = parser.parse_args()
    kinds = given.kind or ("ar", "gru")
    part, rows = measured(given, kinds)
    print(markdown(rows))
    if given.output:
        path = Path(given.output)
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | {part: rows}, indent=1) + "\n")


def measured(given: argparse.Namespace, kinds: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Name and rows of what was asked for."""
    if given.offline:
        from benchmarks.bulk_offline import measure_offline

        sizes = given.series or (10_000, 50_000, 150_000)
        return "offline", [row for kind in kinds for row in measure_offline(kind, sizes)]
    if given.serve:
        from benchmarks.bulk_serve import measure_served

        sizes, rounds = given.series or (10_000, 1_000), given.rounds
        found = [measure_served(kind, sizes, rounds, given.replicas) for kind in kinds]
        return "serve", [row for rows in found for row in rows]
    sizes = given.series or (10_000,)
    return "process", [measure(kind, series, given.rounds) for kind in kinds for series in sizes]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a column for each value; those in dicts by both names."""
    flat = [
        {
            f"{name} {inner}".strip(): value
            for name, values in row.items()
            for inner, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        for row in rows
    ]
    lines = [list(flat[0]), ["---"] * len(flat[0])]
    lines += [[f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
              for row in flat]  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
