"""What a prepared set is: where it came from, what it holds, and the hash that names it.

Design choices: the manifest is written last, so a set with a manifest is complete; it holds no
time, path or machine, so that the same hash means the same bytes; the hash covers everything
that changes the rows and nothing else (the engine does not).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from flts_ray.config import Config
from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.panel import Contract, Frequency, Role
from flts_ray.prepare.calendar import HOLIDAY_COLUMN, calendar_columns

PREPARATION_VERSION = 2
"""Raised whenever the same rows and configuration would give different prepared rows."""
MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.parquet"
_RESERVED = ("unique_id", "ds", "y", "observed", "is_test", "order")


class InputFile(Protocol):
    """The part of a source's input that identifies it, wherever it lies."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def is_test(self) -> bool: ...


@dataclass(frozen=True)
class Manifest:
    """A prepared set in words. Paths in `files` are relative to the set's folder.

    config: what entered the hash. rows and series: of the prepared data; `input_rows` and
    `quarantine` (series by code) account for the rest. splits: rows and series of each span.
    repairs: sums over series. categories: sorted values of each static text column, whose
    positions are the codes in `SeriesArrays.static`. files: path, sha256 and size of each.
    snapshot: topic, epoch, number and offset ranges of the table it was made from; None: of files.
    """

    hash: str
    version: int
    config: dict[str, Any]
    inputs: list[dict[str, Any]]
    contract: Contract
    season: int
    horizon: int
    buckets: int
    input_rows: int
    rows: int
    series: int
    splits: dict[str, int]
    repairs: dict[str, int]
    quarantine: dict[str, int]
    categories: dict[str, list[str]]
    files: list[dict[str, Any]]
    snapshot: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        """Canonical bytes: the same manifest gives the same file."""
        raw = {f.name: getattr(self, f.name) for f in fields(self)}
        raw["contract"] = self.contract.to_json()
        if self.snapshot is None:
            del raw["snapshot"]
        return (json.dumps(raw, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest. Raises ArtifactError if it is damaged or of another version."""
        try:
            raw = json.loads(data)
            if raw["version"] != PREPARATION_VERSION:
                raise ArtifactError(
                    f"{where}: preparation version {raw['version']}, this program reads "
                    f"{PREPARATION_VERSION}; run `flts prepare` again"
                )
            contract = labelled(Contract.from_json(raw["contract"]), raw["categories"])
            return cls(**{**raw, "contract": contract})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{where}: no readable manifest ({error}); run `flts prepare --force`"
            ) from None


def make_contract(config: Config, frequency: Frequency) -> Contract:
    """The contract of the prepared set. Raises ConfigError for a covariate name in use.

    Covariates of one role are ordered by name, so that their order in the file is no matter.
    """
    data = config.data
    calendar = calendar_columns(frequency, config.prepare.holidays)
    clash = sorted({*_RESERVED, *calendar, HOLIDAY_COLUMN} & set(data.covariates))
    if clash:
        raise ConfigError(
            f"data.covariates: {', '.join(clash)} is a column of every prepared set; rename the "
            "column in the file"
        )

    def of(role: Role) -> tuple[str, ...]:
        return tuple(sorted(name for name, has in data.covariates.items() if has == role))

    return Contract(
        freq=frequency.text,
        season=config.task.season or frequency.default_season,
        time_zone=data.time_zone,
        targets=data.targets or (data.target,),
        units=data.units,
        calendar=calendar,
        known_future=of("known_future"),
        past=of("past"),
        static=of("static"),
        holidays=config.prepare.holidays,
        max_gap=config.prepare.max_gap,
    )


def labelled(contract: Contract, categories: Mapping[str, Sequence[str]]) -> Contract:
    """The contract with the labels of every static text column, none of which has any yet."""
    if not categories:
        return contract
    labels = tuple(tuple(categories.get(name, ())) for name in contract.static)
    return replace(contract, categories=labels)


def hashed_config(config: Config, contract: Contract) -> dict[str, Any]:
    """The part of the configuration that decides the prepared rows, JSON-ready."""
    return {
        "data": config.data.model_dump(mode="json", exclude={"path", "test_path", "snapshot"}),
        "prepare": config.prepare.model_dump(mode="json", exclude={"engine"}),
        "split": config.split.model_dump(mode="json"),
        "task": {"horizon": config.task.horizon, "season": contract.season},
        "frequency": contract.freq,
    }


def describe_inputs(inputs: Sequence[InputFile]) -> list[dict[str, Any]]:
    """Inputs as the manifest lists them: no absolute paths."""
    return [
        {
            "name": one.name,
            "size": one.size,
            "fingerprint": one.fingerprint,
            "is_test": one.is_test,
        }
        for one in inputs
    ]


def prepared_hash(
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    snapshot: Mapping[str, Any] | None = None,
) -> str:
    """SHA-256 (hex) that names a prepared set.

    config: `hashed_config`; inputs: `describe_inputs`, in reading order; snapshot: what they are
    a state of.
    """
    named: dict[str, Any] = {
        "version": PREPARATION_VERSION,
        "config": config,
        "inputs": list(inputs),
    }
    if snapshot is not None:
        named["snapshot"] = snapshot
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def set_folder(set_hash: str) -> str:
    """Folder of a prepared set under the root."""
    return f"prepared/{set_hash[:16]}"
