"""Answers of servers become numbers and verdicts, and none of them is flattered."""

from __future__ import annotations

import math

import pytest

from benchmarks.serving.callers import complete
from benchmarks.serving.servers import Failed, check_answer
from benchmarks.serving.verdict import Bar, Point, as_json, judge, markdown, over_rounds, point

RATIO = Bar("ratio", 32, 2.0, "other")
LATENCY = Bar("p99", 8, 25.0)


def made(server: str, per_s: float, number: int = 1, clients: int = 32, p99: float = 9.0) -> Point:
    return Point(server, "closed", clients, number, per_s, 1.0, 2.0, p99, {}, 0.5)


def test_a_point_counts_answers_of_its_span() -> None:
    found = point(("a", "closed", 8, 1), [0.001] * 98 + [0.2, 0.4], {"503": 2}, 2.0, 0.5)
    assert found.per_s == 50.0
    assert found.p50 == pytest.approx(1.0)
    assert 200.0 <= found.p99 <= 400.0
    assert found.cpu_ms == pytest.approx(5.0)
    assert found.errors == {"503": 2}


def test_a_server_that_answered_nothing_has_no_latency() -> None:
    found = point(("a", "closed", 8, 1), [], {"closed": 7}, 2.0, 0.5)
    assert found.per_s == 0.0
    assert math.isnan(found.p99) and math.isnan(found.cpu_ms)


def test_rounds_become_medians_and_errors_a_sum() -> None:
    rounds = [made("a", per_s, i) for i, per_s in enumerate((10.0, 30.0, 20.0))]
    one = Point("a", "closed", 32, 3, 25.0, 1.0, 2.0, math.nan, {"500": 3}, 0.5)
    two = Point("a", "closed", 32, 4, 25.0, 1.0, 2.0, 11.0, {"500": 1, "closed": 1}, 0.5)
    middle = over_rounds([*rounds, one, two])["a", "closed", 32]
    assert middle.per_s == 25.0
    assert middle.p99 == 9.0
    assert middle.errors == {"500": 4, "closed": 1}


def test_ratios_are_taken_within_a_round() -> None:
    """A machine twice as slow in one round changes neither ratio."""
    points = [made("ours", 300.0, 1), made("other", 100.0, 1)]
    points += [made("ours", 150.0, 2), made("other", 50.0, 2)]
    (found,) = judge(points, [RATIO])
    assert found.rounds == [3.0, 3.0]
    assert found.met and found.value == 3.0


@pytest.mark.parametrize(("per_s", "met"), [(200.0, True), (199.0, False)])
def test_a_ratio_meets_its_bar_from_the_limit_on(per_s: float, met: bool) -> None:
    (found,) = judge([made("ours", per_s), made("other", 100.0)], [RATIO])
    assert found.met is met


@pytest.mark.parametrize(("p99", "met"), [(24.9, True), (25.0, False)])
def test_a_latency_is_to_be_below_its_bar(p99: float, met: bool) -> None:
    (found,) = judge([made("ours", 1.0, clients=8, p99=p99)], [LATENCY])
    assert found.met is met


@pytest.mark.parametrize("others", [[], [made("other", 0.0)], [made("other", 10.0, number=2)]])
def test_what_was_not_measured_is_not_met(others: list[Point]) -> None:
    (found,) = judge([made("ours", 100.0), *others], [RATIO])
    assert found.value is None and not found.met


def test_tables_show_errors_and_who_did_not_start() -> None:
    broken = point(("other", "closed", 32, 1), [], {"closed": 7, "500": 1}, 2.0, 0.5)
    points = [made("ours", 1234.0), broken]
    judged = judge(points, [RATIO])
    titles = {"ours": "Ours", "other": "Other", "third": "Third"}
    memory = {"ours": {"resident": 1500, "proportional": 900, "processes": 12}}
    text = markdown(points, judged, titles, memory, {"third": "no such file"})
    assert "| Ours | 1,234 | 1.0 | 2.0 | 9.0 | 0 | 0.50 |" in text
    assert "1 500, 7 closed" in text
    assert "- Third: no such file" in text
    assert "| Ours | 1,500 | 900 | 12 |" in text
    assert "not measured" in text
    assert as_json(points, judged)["points"][1]["p99"] is None


@pytest.mark.parametrize(
    ("got", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, True)),
        (b"HTTP/1.1 429 Slow\r\ncontent-length:2\r\nConnection: close\r\n\r\n{}", (429, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", (200, True)),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", None),
    ],
)
def test_an_answer_is_whole_or_waited_for(got: bytes, told: tuple[int, bool] | None) -> None:
    assert complete(got) == told


def test_a_wrong_forecast_is_no_answer() -> None:
    golden = {"mean": [1.0, 2.0], "quantiles": [[0.0, 1.0], [2.0, 3.0]], "tolerance": 0.01}
    check_answer({"mean": [1.001, 2.0], "quantiles": {"0.1": [0, 1], "0.9": [2, 3]}}, golden)
    with pytest.raises(Failed, match="away"):
        check_answer({"mean": [1.0, 2.0], "quantiles": {"0.1": [0, 1], "0.9": [2, 3.1]}}, golden)
    with pytest.raises(Failed, match="away"):
        check_answer({"mean": [1.0, math.nan], "quantiles": {"a": [0, 1], "b": [2, 3]}}, golden)
