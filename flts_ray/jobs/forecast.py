"""Forecasts from the command line, by the same code that answers HTTP.

Design choices: a running API is asked; without one the champion is loaded behind the same app on
a loopback port for the length of the command, so there is one way to read a request and one
answer; rows of the input without a value after the last one carry known-future covariates.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from flts_ray.config import Config
from flts_ray.errors import DataError, Unavailable
from flts_ray.jobs.session import announced, local_folder, open_session
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_input

SERIES_PER_REQUEST = 100


def forecast(
    config: Config,
    *,
    series: Sequence[str] = (),
    path: str | None = None,
    origin: str | None = None,
    horizon: int | None = None,
    quantiles: Sequence[float] = (),
    url: str | None = None,
) -> list[dict[str, Any]]:
    """Answers of the API for known series, or for the histories in a file.

    Raises DataError with what the API refused, Unavailable without a champion.
    """
    bodies = [{"unique_id": name} for name in series]
    if path is not None:
        bodies += histories(config, path)
    if not bodies:
        raise DataError("nothing to forecast: give --series with known ids, or --input with a file")
    if origin is not None:
        bodies = [body | {"origin": origin} for body in bodies]
    common: dict[str, Any] = {}
    if horizon is not None:
        common["horizon"] = horizon
    if quantiles:
        common["quantiles"] = list(quantiles)
    with _api(config, url) as address:
        return [
            _ask(address, common | {"series": bodies[at : at + SERIES_PER_REQUEST]})
            for at in range(0, len(bodies), SERIES_PER_REQUEST)
        ]


@contextmanager
def _api(config: Config, url: str | None) -> Iterator[str]:
    """Address of a running API, or of one that lives as long as the block."""
    found = url or announced(local_folder(config)).get("api")
    if found is not None:
        yield found
        return
    from flts_ray.serve.parity import app_on_loopback
    from flts_ray.serve.source import RegistrySource

    with open_session(config) as services:
        source = RegistrySource(
            services.mlflow_uri, config.root, config.name, services.folder / "fetched"
        )
        champion = source.current()
        if champion is None:
            raise Unavailable(f"{config.name} has no champion yet; `flts train` makes one")
        with app_on_loopback(source.load(champion)) as address:
            yield address


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = httpx.post(f"{url}/v1/forecast", json=body, timeout=60.0)
    except httpx.HTTPError as error:
        raise Unavailable(f"{url} does not answer: {error}; is `flts serve` running?") from error
    if answer.status_code != httpx.codes.OK:
        said = answer.json().get("error", {}).get("message", answer.text)
        raise DataError(said) if answer.status_code < 500 else Unavailable(said)
    found: dict[str, Any] = answer.json()
    return found


def histories(config: Config, path: str) -> list[dict[str, Any]]:
    """Request bodies of the series in a file that looks like the configured input."""
    data = config.data.model_copy(update={"path": path, "test_path": None})
    table = pa.concat_tables([read_input(item, data) for item in find_inputs(data)])
    table = table.sort_by([("unique_id", "ascending"), ("ds", "ascending")])
    ids = table["unique_id"].to_pylist()
    if not ids:
        raise DataError(f"{path}: no rows to forecast from")
    starts = [i for i, name in enumerate(ids) if i == 0 or name != ids[i - 1]]
    ends = [*starts[1:], len(ids)]
    return [_history(config, table[start:end]) for start, end in zip(starts, ends, strict=True)]


def _history(config: Config, rows: pa.Table) -> dict[str, Any]:
    y = rows["y"].to_numpy()
    told = np.flatnonzero(np.isfinite(y))
    if not len(told):
        raise DataError(f"{rows['unique_id'][0]}: every value of y is missing", field="y")
    end = int(told[-1]) + 1
    stamps = [stamp.isoformat() for stamp in rows["ds"][:end].to_pylist()]
    roles = config.data.covariates
    known = {n: rows[n].to_pylist() for n, role in roles.items() if role == "known_future"}
    past = {n: rows[n][:end].to_pylist() for n, role in roles.items() if role == "past"}
    return {
        "unique_id": rows["unique_id"][0].as_py(),
        "ds": stamps,
        "y": [None if not np.isfinite(v) else float(v) for v in y[:end]],
        "known_future": known,
        "past": past,
    }


def write_answers(answers: Sequence[dict[str, Any]], path: Path) -> int:
    """Write forecasts as CSV or Parquet (by suffix), one row a step. Returns the rows.

    Raises DataError for another suffix.
    """
    rows = list(answer_rows(answers))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise DataError(f"--output {path}: the suffix must be .csv or .parquet", field="output")
    return len(rows)


def answer_rows(answers: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One flat row a series and step, with who made it."""
    for answer in answers:
        for one in answer["forecasts"]:
            for h, ds in enumerate(one["ds"]):
                levels = {f"q{level}": values[h] for level, values in one["quantiles"].items()}
                yield {
                    "unique_id": one["unique_id"],
                    "ds": ds,
                    "mean": one["mean"][h],
                    "median": one["median"][h],
                    **levels,
                    "model_version": answer["model"]["version"],
                    "forecast_id": answer["forecast_id"],
                }
