from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flts_ray.cli import app
from flts_ray.cli_forecast import is_folder
from flts_ray.errors import DataError
from flts_ray.jobs import forecast_table as job
from flts_ray.jobs.forecast_table import Outcome

FOUND = {"rows": 12, "series": 2, "refused": 0, "version": "3"}


def call(folder: Path, *arguments: str) -> Result:
    config = folder / "flts.yaml"
    config.write_text(f"name: load\nroot: {folder / 'root'}\ndata: {{path: load.csv}}\n")
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["forecast", "-c", str(config), *arguments])


def test_a_folder_is_told_from_a_file(tmp_path: Path) -> None:
    for output in ("out/", "s3://bucket/out", "s3://bucket/out.parquet", str(tmp_path)):
        assert is_folder(output), output
    for file in ("out.csv", str(tmp_path / "new.parquet"), None):
        assert not is_folder(file), file


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("-o", "out/"), "needs both --input and --output"),
        (("-i", "new.csv", "--bulk"), "needs both --input and --output"),
        (("-i", "new.csv", "-o", "out/", "--series", "a"), "--series: not for a folder"),
        (("-i", "a", "-o", "b/", "--url", "http://x", "--origin", "2024"), "--origin, --url: not"),
    ],
)
def test_what_does_not_go_with_a_folder_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = call(tmp_path, *arguments)
    assert done.exit_code == DataError.exit_code
    assert problem in done.stderr


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome("/out", FOUND, True), "12 rows of 2 series written to /out\n"),
        (
            Outcome("/out", FOUND | {"refused": 4}, True),
            "12 rows of 2 series written to /out; 4 series refused, its _refused tells why\n",
        ),
        (
            Outcome("/out", FOUND, False),
            "12 rows of 2 series by version 3 are in /out already; --force makes them again\n",
        ),
    ],
)
def test_options_reach_the_job_and_its_outcome_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, said: str
) -> None:
    calls: list[tuple[Any, ...]] = []

    def made(config: Any, path: str, output: str, narrator: Any, **about: Any) -> Outcome:
        calls.append((path, output, about))
        return outcome

    monkeypatch.setattr(job, "forecast_table", made)
    options = ("--horizon", "4", "--quantile", "0.1", "--quantile", "0.9", "--bulk", "--force")
    assert call(tmp_path, "-i", "s3://b/in", "-o", "out", *options).stdout == said
    assert calls == [("s3://b/in", "out", {"horizon": 4, "quantiles": [0.1, 0.9], "force": True})]
