from __future__ import annotations

import httpx
import pytest

from flts_ray.errors import Unavailable
from flts_ray.run_tables import run_table, series_scores

BODY = "unique_id,windows,mae\n007,3,1.5\nb,3,\n"


def answering(status: int, body: str = "") -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/get-artifact"
        assert dict(request.url.params) == {"run_id": "r1", "path": "test/per_series.csv"}
        return httpx.Response(status, text=body)

    return httpx.MockTransport(answer)


def test_a_table_is_read_back_and_ids_stay_text() -> None:
    table = run_table("http://here/", "r1", "test/per_series", answering(200, BODY))
    assert table is not None
    assert table["unique_id"].to_pylist() == ["007", "b"]
    assert series_scores(table, "mae") == {"007": 1.5}
    assert series_scores(table, "rmse") == {}


def test_a_table_that_is_not_there_is_an_answer() -> None:
    assert run_table("http://here", "r1", "test/per_series", answering(404)) is None
    assert series_scores(None, "mae") == {}


def test_a_server_that_is_away_is_unavailable() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unavailable, match=r"http://here .* run r1 \(refused\)"):
        run_table("http://here", "r1", "x", httpx.MockTransport(fail))
