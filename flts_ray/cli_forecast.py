"""`flts forecast` into a folder: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flts_ray.cli_options import say
from flts_ray.config import Config
from flts_ray.errors import DataError

InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        "-i",
        help="Histories, in the format of the configured input: a file, folder or glob, local or "
        "s3://.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="Write a .csv or .parquet file; or (out/, s3://bucket/out) a folder of Parquet "
        "files, for any number of series.",
    ),
]
BulkOption = Annotated[
    bool,
    typer.Option(
        "--bulk",
        help="OUTPUT is a folder. Series that cannot be forecast are listed in its _refused and "
        "stop no other; large inputs run on Ray.",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--force", help="Write over the forecasts in OUTPUT, a folder.")
]


def is_folder(output: str | None) -> bool:
    """True for an address, and for a folder that is there or ends with a slash."""
    if output is None:
        return False
    return output.endswith("/") or "://" in output or Path(output).is_dir()


def check_alone(apart: Sequence[str]) -> None:
    """Raises DataError for options that do not go with a folder."""
    if apart:
        raise DataError(
            f"{', '.join(apart)}: not for a folder of forecasts; leave it out, or write one file"
        )


def forecast_folder(
    config: Config,
    file: str | None,
    output: str | None,
    horizon: int | None,
    quantiles: Sequence[float],
    force: bool,
) -> str:
    """Forecast all series of the input. Returns what to tell. Raises DataError."""
    if file is None or output is None:
        raise DataError("a folder of forecasts needs both --input and --output")
    from flts_ray.jobs.forecast_table import forecast_table

    with say() as narrator:
        made = forecast_table(
            config, file, output, narrator, horizon=horizon, quantiles=quantiles, force=force
        )
    found = made.manifest
    told = f"{found['rows']} rows of {found['series']} series"
    if not made.made:
        version = found["version"]
        return f"{told} by version {version} are in {made.place} already; --force makes them again"
    told += f" written to {made.place}"
    if found["refused"]:
        told += f"; {found['refused']} series refused, its _refused tells why"
    return told
