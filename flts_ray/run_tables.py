"""Tables that a run keeps, read back without MLflow's weight.

Design choices: one plain request to the tracking server; a table that is not there is an answer,
because older runs did not keep every table.
"""

from __future__ import annotations

import io

import httpx
import pyarrow as pa
from pyarrow import csv

from flts_ray.errors import Unavailable


def run_table(
    uri: str, run_id: str, name: str, transport: httpx.BaseTransport | None = None
) -> pa.Table | None:
    """The table that `StudyRuns.log_table` kept as `name`; None if the run has none.

    uri: of the tracking server. Raises Unavailable when it is away.
    """
    query = {"run_id": run_id, "path": f"{name}.csv"}
    try:
        with httpx.Client(timeout=20.0, transport=transport) as http:
            answer = http.get(f"{uri.rstrip('/')}/get-artifact", params=query)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"MLflow at {uri} does not give the tables of run {run_id} ({error}); start it there, "
            "or set mlflow.uri to a running server"
        ) from error
    if answer.status_code != httpx.codes.OK:
        return None
    # A column of ids stays text, whatever they look like.
    texts = csv.ConvertOptions(column_types={"unique_id": pa.string()})
    return csv.read_csv(io.BytesIO(answer.content), convert_options=texts)


def series_scores(table: pa.Table | None, score: str) -> dict[str, float]:
    """One measure by series; empty without a table that has it."""
    if table is None or not {"unique_id", score} <= set(table.column_names):
        return {}
    ids, values = (table[name].to_pylist() for name in ("unique_id", score))
    return {name: value for name, value in zip(ids, values, strict=True) if value is not None}
