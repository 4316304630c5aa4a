"""The load of `tests.raw_files` as if it had come through a topic of two partitions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from flts_ray.config import Config, parse_config
from flts_ray.ingest.segment import Batch, encode, metadata_of, segment_schema
from flts_ray.panel import Role
from flts_ray.store import Store
from tests.raw_files import BEGIN, FILES, REGIONS, load_config

TOPIC, EPOCH = "load", "00112233aabbccdd"
ROLES: dict[str, Role] = {
    "temperature": "past",
    "workday": "known_future",
    "floor": "static",
    "region": "static",
}


def table_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """The configuration of `load_config`, reading the newest snapshot."""
    raw = load_config(folder).model_dump(mode="json", include={"name", "root", "prepare", "task"})
    data = {
        "snapshot": "latest",
        "frequency": "1h",
        "time_zone": "Europe/Berlin",
        "covariates": ROLES,
    }
    merged = {name: {**raw.get(name, {}), **given} for name, given in sections.items()}
    return parse_config({**raw, **merged, "data": {**data, **sections.get("data", {})}})


def load_rows(begin: int = 0, length: int = 240) -> list[dict[str, Any]]:
    """Every sample of `write_load`, by time; `begin` in hours."""
    rows = [
        _sample(series, i)
        for i in range(begin, begin + length)
        for names in FILES.values()
        for series in names
        if series != "short" or i < begin + 5
    ]
    return rows


def _sample(series: str, i: int) -> dict[str, Any]:
    number = int(series[1:]) if series[1:].isdigit() else 9
    special = {"flat": 7.0, "huge": float(f"{1 - 2 * (i % 2)}e308")}
    return {
        "unique_id": series,
        "ds": BEGIN + timedelta(hours=i),
        "y": special.get(series, float(10 * number + i % 24 + i % 5)),
        "temperature": float(i % 9),
        "workday": float(i % 3 == 0),
        "floor": str(number),
        "region": REGIONS[number % 3],
    }


def store_rows(
    store: Store,
    rows: Sequence[dict[str, Any]],
    starts: dict[int, int],
    roles: dict[str, Role] = ROLES,
    epoch: str = EPOCH,
) -> dict[int, int]:
    """One segment a partition with a message a row; returns the offsets that follow."""
    ends = dict(starts)
    for partition in (0, 1):
        mine = rows[partition::2]
        begin = starts.get(partition, 0)
        if not mine:
            continue
        held = [
            {**{k: v for k, v in row.items() if k in (*roles, "unique_id", "ds", "y")},
             "offset": begin + i, "index": 0, "timestamp_ms": 1}
            for i, row in enumerate(mine)
        ]  # fmt: skip
        table = pa.Table.from_pylist(held, schema=segment_schema(roles))
        end = begin + len(held)
        data, info = encode(
            [Batch(begin, end, table, 1)],
            begin,
            end,
            topic=TOPIC,
            epoch=epoch,
            partition=partition,
            writer="test",
        )
        store.put_new(info.key, data, metadata_of(info))
        ends[partition] = end
    return ends
