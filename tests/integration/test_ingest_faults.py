"""A short run of the benchmark that kills, stops and doubles workers, on both brokers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ingest_faults import measure, options_of

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("broker", "kills"), [("noida", 6), ("tansu", 4)])
def test_under_fire_nothing_is_lost_or_repeated(broker: str, kills: int, tmp_path: Path) -> None:
    arguments = ["--broker", broker, "--kills", str(kills), "--messages", "20000", "--life", "4"]
    result = measure(options_of(arguments), tmp_path)
    assert (result.lost, result.repeated, result.wrong) == (0, 0, 0), result
    assert result.problems == []
    assert result.kills >= kills and result.messages >= 20_000 and result.segments > 0
