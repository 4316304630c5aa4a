"""A file in the format of the configured input as series of a forecast request.

Design choices: the origin of a series is the step after its last value; rows after that carry
known-future covariates and are placed by their stamps, so a missing row is named by the API
instead of shifting the others; only the part of a long history that a window can depend on is
sent, with each covariate's last value from before it, so the answer is that of the whole history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.config import Config, DataConfig
from flts_ray.errors import DataError
from flts_ray.panel import Contract, steps_after
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_input


@dataclass(frozen=True)
class About:
    """What a model needs to know the future and the past of a series. Both in steps."""

    horizon: int
    lookback: int
    contract: Contract

    @classmethod
    def of_model(cls, described: Mapping[str, Any]) -> About:
        """From the answer of `GET /v1/model`."""
        contract = Contract.from_json(described["contract"])
        return cls(int(described["horizon"]), int(described["lookback"]), contract)

    @property
    def reach(self) -> int:
        """Steps before the origin that a window can depend on."""
        return self.lookback + max(self.contract.season, self.contract.max_gap) + 1


def histories(config: Config, path: str, about: About) -> list[dict[str, Any]]:
    """Request bodies of all series in a file, folder or glob, sorted by name.

    Raises DataError for what cannot be read and for a series without any value.
    """
    data = data_at(config.data, path)
    table = pa.concat_tables([read_input(item, data) for item in find_inputs(data)])
    table = table.sort_by([(name, "ascending") for name in ("unique_id", "ds", "order")])
    ids = table["unique_id"].to_pylist()
    starts = [i for i, name in enumerate(ids) if i == 0 or name != ids[i - 1]]
    ends = [*starts[1:], len(ids)]
    return [
        _body(config, str(ids[start]), table[start:end], about)
        for start, end in zip(starts, ends, strict=True)
    ]


def data_at(data: DataConfig, path: str) -> DataConfig:
    """A file with the columns of the configured input, also where that is a table."""
    columns = {"snapshot": None, "id": data.id or "unique_id"} if data.snapshot is not None else {}
    return data.model_copy(update={**columns, "path": path, "test_path": None})


def _body(config: Config, name: str, rows: pa.Table, about: About) -> dict[str, Any]:
    y = rows["y"].to_numpy()
    told = np.flatnonzero(np.isfinite(y))
    if not told.size:
        raise DataError(f"{name}: every value of {config.data.target!r} is missing", field="y")
    ds_us = rows["ds"].cast(pa.int64()).to_numpy()
    end = int(told[-1]) + 1
    first_us = steps_after(ds_us[end - 1 : end], np.array([-about.reach]), about.contract)
    begin = int(np.searchsorted(ds_us, first_us)[0])
    past = slice(begin, end)
    roles = config.data.covariates
    columns = {name: rows[name] for name, role in roles.items() if role != "static"}
    sent = {name: _carried(column.to_numpy(), past) for name, column in columns.items()}
    ahead = _ahead_rows(ds_us, end, about)
    return {
        "unique_id": name,
        "ds": [stamp.isoformat() for stamp in rows["ds"][past].to_pylist()],
        "y": _json(y[past]),
        "known_future": {
            name: _json(sent[name]) + _json(_taken(column.to_numpy(), ahead))
            for name, column in columns.items()
            if roles[name] == "known_future"
        },
        "past": {name: _json(sent[name]) for name in columns if roles[name] == "past"},
        "static": _static(rows, [name for name, role in roles.items() if role == "static"]),
    }


def _ahead_rows(ds_us: np.ndarray, end: int, about: About) -> np.ndarray:
    """Row that holds each step of the horizon, the last of several; -1 for none: int64 [H]."""
    step_us = about.contract.frequency.step_us
    # Rounded, so a day of 23 or 25 hours is one step too.
    steps = np.rint((ds_us[end - 1 :] - ds_us[end - 1]) / step_us).astype(np.int64)
    found = np.full(about.horizon, -1, np.int64)
    inside = np.flatnonzero((steps >= 1) & (steps <= about.horizon))
    found[steps[inside] - 1] = inside + end - 1
    return found


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(rows >= 0, values[rows], np.nan)


def _carried(values: np.ndarray, part: slice) -> np.ndarray:
    """The part, its first value filled with the last one there was until then."""
    sent = values[part].copy()
    before = values[: part.start + 1]
    known = before[np.isfinite(before)]
    if known.size:
        sent[0] = known[-1]
    return sent


def _static(rows: pa.Table, names: Sequence[str]) -> dict[str, float]:
    """First number of each column; the codes of labels are known to the prepared data alone."""
    found: dict[str, float] = {}
    for name in names:
        if pa.types.is_floating(rows[name].type):
            values = rows[name].to_numpy()
            values = values[np.isfinite(values)]
            if values.size:
                found[name] = float(values[0])
    return found


def _json(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
