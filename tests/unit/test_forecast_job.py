from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, DataError, Unavailable
from flts_ray.jobs import forecast as job
from flts_ray.jobs.announce import announce
from flts_ray.jobs.forecast import ForecastApi, forecast, parts
from flts_ray.prepare.run import prepare
from flts_ray.serve.parity import app_on_loopback
from tests.raw_files import load_config, write_load
from tests.served import KnownSet, known_set, served, stamps, transparent

DATA = known_set()
HORIZON = 6


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The API over a model whose mean is the last value plus the known covariate."""
    with app_on_loopback(served(transparent(DATA.contract), known=KnownSet(DATA))) as address:
        yield address


@pytest.fixture
def config(tmp_path: Path) -> Config:
    covariates = {"event": "known_future", "lagged": "past", "number": "static"}
    data = {"path": "unused.csv", "id": "unique_id", "covariates": covariates}
    return parse_config({"name": "demo", "root": str(tmp_path), "data": data})


def origin(step: int) -> str:
    return stamps(step + 1)[step]


def test_a_known_series_is_forecast_from_its_origin(url: str, config: Config) -> None:
    (answer,) = forecast(config, series=["s1"], origin=origin(150), quantiles=[0.5], url=url)
    (one,) = answer["forecasts"]
    event = DATA.take([1]).future[150 : 150 + HORIZON, -1]
    np.testing.assert_allclose(one["mean"], DATA.take([1]).y[149] + event)
    assert list(one["quantiles"]) == ["0.5"]
    assert one["ds"][0] == origin(150)


def test_a_file_is_forecast_with_what_it_knows_ahead(
    url: str, config: Config, tmp_path: Path
) -> None:
    ds = stamps(36)
    rows = [f"new,{ds[i]},{i},0,{i},4" for i in range(30)]
    rows += [f"new,{ds[30 + k]},,{10 * k},," for k in range(HORIZON)]
    path = tmp_path / "new.csv"
    path.write_text("\n".join(["unique_id,ds,y,event,lagged,number", *rows]))
    (answer,) = forecast(config, path=str(path), horizon=4, url=url + "/")
    (one,) = answer["forecasts"]
    assert (one["unique_id"], one["ds"]) == ("new", ds[30:34])
    np.testing.assert_allclose(one["mean"], [29, 39, 49, 59])
    path.write_text("\n".join(["unique_id,ds,y,event,lagged,number", *rows[:31], *rows[32:]]))
    with pytest.raises(DataError, match=r"^new: known_future\.event\[31\]: no value for step 2"):
        forecast(config, path=str(path), url=url)


def test_many_series_are_asked_for_in_parts(
    url: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SERIES_PER_REQUEST", 2)
    names = ["s1", "s0", "s1", "s0", "s1"]
    answers = forecast(config, series=names, origin=origin(150), url=url)
    got = [[one["unique_id"] for one in answer["forecasts"]] for answer in answers]
    assert got == [["s1", "s0"], ["s1", "s0"], ["s1"]]
    with pytest.raises(DataError, match=r"^ghost: unique_id: .* 'ghost' is none"):
        forecast(config, series=["s1", "s0", "s1", "ghost"], origin=origin(150), url=url)


def test_a_request_holds_only_so_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "VALUES_PER_REQUEST", 100)
    bodies: list[dict[str, Any]] = [
        {"unique_id": str(n), "ds": [""] * 30, "y": [0.0] * 10, "past": {"a": [0.0] * n}}
        for n in (0, 20, 10, 500, 0)
    ]
    got = [[body["unique_id"] for body in part] for part in parts(bodies)]
    assert got == [["0", "20"], ["10"], ["500"], ["0"]]
    assert list(parts([])) == []


def test_refusals_are_the_words_of_the_api(url: str, config: Config) -> None:
    with pytest.raises(DataError, match=r"^quantiles\[0\]: 0\.99 lies outside .* 0\.025 to 0\.975"):
        forecast(config, series=["s1"], origin=origin(150), quantiles=[0.99], url=url)
    with pytest.raises(DataError, match=r"^horizon: 7 steps are more than the model's 6"):
        forecast(config, series=["s1"], origin=origin(150), horizon=7, url=url)
    with pytest.raises(DataError, match=r"^s1: known_future\.event: the prepared data end"):
        forecast(config, series=["s1"], url=url)
    with pytest.raises(DataError, match=r"--series .* --input"):
        forecast(config, url=url)


def test_a_series_in_quarantine_is_told_with_its_reason(url: str, tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    prepare(config)
    with pytest.raises(DataError, match=r"flat is in quarantine: every value is 7"):
        forecast(config, series=["s1", "flat"], origin=origin(150), url=url)


def test_the_announced_api_of_this_model_is_asked(url: str, config: Config) -> None:
    with announce(Path(config.root), "demo", {"api": url}):
        (answer,) = forecast(config, series=["s0"], origin=origin(150))
    assert answer["forecasts"][0]["unique_id"] == "s0"


def test_an_api_that_is_away_is_unavailable(config: Config) -> None:
    for address in ("http://127.0.0.1:1", "nonsense", "http://[::bad"):
        with pytest.raises(Unavailable, match=r"does not answer.*`flts serve`") as error:
            forecast(config, series=["s0"], url=address)
        assert error.value.exit_code == 5


class Foreign(BaseHTTPRequestHandler):
    """Some other web server, or an API that has no champion yet."""

    def do_GET(self) -> None:
        self.respond(200, b"<html>")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/empty/"):
            self.respond(503, b'{"error": {"code": "unavailable", "message": "train one"}}')
        else:
            self.respond(404, b'{"detail": "Not Found"}')

    def respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def foreign() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_server_at_the_address_is_recognised(foreign: str) -> None:
    api = ForecastApi(foreign)
    with pytest.raises(Unavailable, match="answered 200, but not as a forecast API"):
        api.get("/v1/model")
    with pytest.raises(Unavailable, match="answered 404, but not as a forecast API"):
        api.ask({})


def test_an_api_without_a_champion_is_unavailable_in_its_own_words(foreign: str) -> None:
    with pytest.raises(Unavailable, match=r"^train one$"):
        ForecastApi(f"{foreign}/empty").ask({})


class Scripted(BaseHTTPRequestHandler):
    """Answers each request with the next (status, body) of `script`; None breaks the connection."""

    script: list[tuple[int, bytes] | None]
    tokens: list[str | None]

    def do_POST(self) -> None:
        self.tokens.append(self.headers["authorization"])
        self.rfile.read(int(self.headers["content-length"]))
        answer = self.script.pop(0)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer[0])
        self.send_header("retry-after", "7")
        self.send_header("content-length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at answers."""


def asked(token: str | None, *script: tuple[int, bytes] | None) -> tuple[dict[str, Any], list[Any]]:
    """What an API with these answers told a caller, and the tokens it was shown."""

    class Handler(Scripted):
        pass

    Handler.script, Handler.tokens = list(script), []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            api = ForecastApi(f"http://127.0.0.1:{server.server_address[1]}", token)
            return api.ask({}), Handler.tokens
        finally:
            server.shutdown()


def test_a_broken_connection_is_no_reason_to_give_up_at_once() -> None:
    assert asked("flts_x", None, (200, b'{"a": 1}')) == ({"a": 1}, ["Bearer flts_x"] * 2)
    assert asked(None, (200, b"{}")) == ({}, [None])
    with pytest.raises(Unavailable, match="does not answer"):
        asked(None, None, None)


def test_a_refused_token_and_a_crowd_are_told_apart_from_bad_requests() -> None:
    problem = b'{"error": {"code": "x", "message": "too many wait", "field": null}}'
    with pytest.raises(ConfigError, match="FLTS_TOKEN"):
        asked("flts_old", (401, problem))
    with pytest.raises(Unavailable, match="too many wait; repeat after 7 s"):
        asked(None, (429, problem))
    with pytest.raises(DataError, match="too many wait"):
        asked(None, (422, problem))
