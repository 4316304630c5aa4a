from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from structlog.testing import capture_logs

from flts_ray.ingest.progress import COUNTS, IngestProgress, IngestView, Tally, line, size_text


def actor(
    rows: int, lag: int | None = 0, *, index: int = 0, pid: int = 1, state: str = "running"
) -> dict[str, Any]:
    totals = {**dict.fromkeys(COUNTS, 0), "rows": rows, "bytes": 10 * rows}
    worker = {"started_at": "t", "totals": totals, "partitions": {str(index): {"lag": lag}}}
    return {"index": index, "pid": pid, "state": state, "error": "", "worker": worker}


def away(index: int = 0) -> dict[str, Any]:
    return {"index": index, "pid": 0, "state": "restarting", "error": "killed", "worker": None}


def test_totals_go_on_over_a_restart_and_lag_is_kept_meanwhile() -> None:
    tally = Tally()
    tally.add([actor(100, 50)], 0.0)
    assert tally.add([actor(150, 40)], 1.0).totals["rows"] == 150
    gone = tally.add([away()], 2.0)
    assert (gone.totals["rows"], gone.lag, gone.error) == (150, 40, "killed")
    back = tally.add([actor(30, 10, pid=2)], 3.0)
    assert (back.totals["rows"], back.lag, back.elapsed_s) == (180, 10, 3.0)


def test_rates_are_over_the_last_seconds_of_all_actors() -> None:
    tally = Tally()
    assert tally.add([actor(0), actor(0, index=1)], 0.0).rows_s == 0
    view = tally.add([actor(100), actor(50, index=1)], 1.0)
    assert (view.rows_s, view.bytes_s) == (150, 1500)
    for second in range(2, 40):
        view = tally.add([actor(100), actor(50, index=1)], float(second))
    assert view.rows_s == 0


def test_all_must_be_done_and_lag_is_unknown_until_somebody_says() -> None:
    tally = Tally()
    assert tally.add([actor(1, None), away(1)], 0.0).lag is None
    both = [actor(1, state="done"), actor(1, index=1)]
    assert not tally.add(both, 1.0).done
    assert tally.add([actor(1, state="done"), actor(1, index=1, state="done")], 2.0).done


def view(**changes: Any) -> IngestView:
    totals = {**dict.fromkeys(COUNTS, 0), "rows": 1234567, "segments": 8, "bad_rows": 3}
    return IngestView(**{
        "elapsed_s": 3.0, "totals": totals, "rows_s": 50123.4, "bytes_s": 2.5e6, "lag": 1000,
        "states": ("running", "running"), **changes,
    })  # fmt: skip


def test_a_line_tells_rows_rate_lag_and_what_is_wrong() -> None:
    assert line(view()).plain.split(maxsplit=1)[1] == (
        "1,234,567 rows · 50,123 rows/s · 2.5 MB/s · lag 1,000 · 8 segments · 3 dead letters"
    )
    shown = line(view(states=("running", "waiting"), error="no broker\nmore", lag=None)).plain
    assert "lag ? " in shown
    assert "1 running, 1 waiting" in shown
    assert shown.splitlines()[1].strip() == "no broker"


def test_without_a_terminal_there_is_an_event_every_ten_seconds_and_at_the_end() -> None:
    with capture_logs() as logs, IngestProgress(Console(file=io.StringIO())) as show:
        for second in range(25):
            show(view(elapsed_s=float(second)))
        show(view(elapsed_s=25.0, states=("done",)))
    assert [log["event"] for log in logs] == ["ingest_progress"] * 4
    assert (logs[0]["rows"], logs[0]["lag"], logs[0]["rows_s"]) == (1234567, 1000, 50123)


def test_a_terminal_is_left_clean() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=100)
    with IngestProgress(console) as show:
        show(view())
    assert "1,234,567 rows" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")


def test_sizes_have_one_to_three_digits_before_the_point() -> None:
    sizes = (0, 999, 1000, 2.5e6, 7.1e9, 3e12, 5e15)
    assert [size_text(size) for size in sizes] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "7.1 GB", "3.0 TB", "5000.0 TB",
    ]  # fmt: skip
