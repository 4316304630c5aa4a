"""Raw tables as sources give them, made in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.config import PrepareConfig, SplitConfig
from flts_ray.panel import Contract
from flts_ray.prepare.calendar import calendar_columns
from flts_ray.prepare.kernel import Rules

HOUR_US = 3_600_000_000
START_US = 1_700_006_400_000_000
"""2023-11-15 00:00 UTC."""


def raw_table(
    series: Mapping[str, Sequence[float | None]],
    step_us: int = HOUR_US,
    is_test_from: int | None = None,
    **columns: Any,
) -> pa.Table:
    """Regular series end to end; `columns` give the covariates of all rows."""
    ids = [name for name, values in series.items() for _ in values]
    position = np.concatenate([np.arange(len(values)) for values in series.values()])
    return pa.table(
        {
            "unique_id": pa.array(ids, pa.string()),
            "ds": stamps(START_US + position * step_us),
            "y": pa.array([v for values in series.values() for v in values], pa.float64()),
            **columns,
            "is_test": pa.array(position >= (len(ids) if is_test_from is None else is_test_from)),
            "order": pa.array(np.arange(len(ids))),
        }
    )


def stamps(ds_us: Sequence[int | None] | np.ndarray) -> pa.Array:
    return pa.array(ds_us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def rules(
    freq: str = "1h",
    season: int = 4,
    horizon: int = 2,
    time_zone: str = "UTC",
    has_test_files: bool = False,
    past: tuple[str, ...] = (),
    known_future: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
    **policy: Any,
) -> Rules:
    return Rules(
        contract=Contract(
            freq=freq,
            season=season,
            time_zone=time_zone,
            calendar=calendar_columns(freq, policy.get("holidays")),
            past=past,
            known_future=known_future,
            static=static,
            holidays=policy.get("holidays"),
        ),
        prepare=PrepareConfig(**policy),
        split=SplitConfig(),
        horizon=horizon,
        has_test_files=has_test_files,
    )
