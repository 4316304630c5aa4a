"""CSV files of hourly load with covariates, and the configuration that reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flts_ray.config import Config, parse_config
from flts_ray.prepare.loading import PreparedSet

BEGIN = datetime(2024, 3, 25, tzinfo=UTC)
HEAD = "time,id,load,temperature,workday,floor,region\n"
REGIONS = ("north", "west", "east")
FILES = {"a.csv": ("s0", "s1", "flat"), "b.csv": ("s2", "s3", "huge"), "c.csv": ("s4", "short")}
"""Series by file: five good ones, a constant, one that overflows arithmetic, one too short."""


def write_load(folder: Path, begin: int = 0, length: int = 240) -> None:
    """Write every file; `begin` in hours after BEGIN. `short` has five rows."""
    folder.mkdir(parents=True)
    for name, series in FILES.items():
        steps = {one: range(begin, begin + (5 if one == "short" else length)) for one in series}
        lines = [_line(one, i) for one in series for i in steps[one]]
        (folder / name).write_text(HEAD + "".join(lines))


def _line(series: str, i: int) -> str:
    number = int(series[1:]) if series[1:].isdigit() else 9
    value = {"flat": "7", "huge": f"{1 - 2 * (i % 2)}e308"}.get(
        series, str(10 * number + i % 24 + i % 5)
    )
    stamp = (BEGIN + timedelta(hours=i)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{stamp},{series},{value},{i % 9},{int(i % 3 == 0)},{number},{REGIONS[number % 3]}\n"


def load_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """Configuration for `folder/in`, prepared under `folder/root` in three buckets."""
    data = {
        "path": str(folder / "in"),
        "time": "time",
        "id": "id",
        "target": "load",
        "frequency": "1h",
        "time_zone": "Europe/Berlin",
        "covariates": {
            "temperature": "past",
            "workday": "known_future",
            "floor": "static",
            "region": "static",
        },
    }
    return parse_config(
        {
            "name": "load",
            "root": str(folder / "root"),
            "data": {**data, **sections.get("data", {})},
            "prepare": {
                "buckets": 3,
                "holidays": "DE",
                "engine": "local",
                **sections.get("prepare", {}),
            },
            "task": {"horizon": 6, **sections.get("task", {})},
        }
    )


def contents(made: PreparedSet) -> dict[str, bytes]:
    """Every file of a prepared set on this machine, by its path in the set."""
    folder = Path(made.location)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
