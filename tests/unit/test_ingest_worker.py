from __future__ import annotations

import json
from pathlib import Path

import pytest

from flts_ray.config import parse_config
from flts_ray.jobs.ingest_worker import decoder_of
from flts_ray.streams.records import Records


@pytest.mark.parametrize(("segment_bytes", "taken"), [(1, 1), (10**6, 3)])
def test_claimed_objects_are_read_until_they_fill_a_segment(
    tmp_path: Path, segment_bytes: int, taken: int
) -> None:
    (tmp_path / "load.csv").write_text("unique_id,ds,y\na,2024-01-01 00:00:00,1.5\n")
    config = parse_config(
        {
            "name": "demo",
            "data": {"snapshot": "latest"},
            "stream": {"claims": {"here": str(tmp_path)}},
            "ingest": {"segment_bytes": segment_bytes},
        }
    )
    claim = json.dumps({"bucket": "here", "object": "load.csv"}).encode()
    records = Records(0, range(3), [claim] * 3, [0] * 3, (), [None] * 3, 3 * len(claim))
    batch = decoder_of(config).decode(records)
    assert (batch.begin, batch.end, batch.rows, batch.bad_rows) == (0, taken, taken, 0)
