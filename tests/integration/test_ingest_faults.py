"""A short run of the benchmark that kills, stops and doubles workers, on both brokers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ingest_faults import measure, options_of

pytestmark = pytest.mark.integration


# noida-db, killed because it stopped too slowly, may forget what was stored already.
@pytest.mark.parametrize(
    ("broker", "kills", "restarts"), [("noida", 6, "0"), ("tansu", 4, "10")], ids=str
)
def test_under_fire_nothing_is_lost_or_repeated(
    broker: str, kills: int, restarts: str, tmp_path: Path
) -> None:
    size = ["--kills", str(kills), "--messages", "20000", "--life", "4"]
    options = options_of(["--broker", broker, *size, "--restarts", restarts])
    result = measure(options, tmp_path)
    assert (result.lost, result.repeated, result.wrong) == (0, 0, 0), result
    assert result.problems == []
    assert result.kills >= kills and result.messages >= 20_000 and result.segments > 0
