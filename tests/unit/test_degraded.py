from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import msgpack  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import Expired, Overloaded, Unavailable
from flts_ray.models.base import Forecast, Task
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.degraded import MOST_AT_ONCE, Degraded, LastForecasts, reason_of, seasonal_naive
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.observe import Made
from tests.calling import call
from tests.served import (
    HORIZON,
    LEVELS,
    KnownSet,
    Transparent,
    history,
    known_set,
    plain_contract,
    served,
    transparent,
)

TASK = Task(HORIZON, LEVELS)
ALLOWED = {"x-allow-degraded": "true"}


def windows(y: np.ndarray, season: int, scale: float = np.nan) -> Windows:
    n, lookback = y.shape
    return Windows(
        contract=plain_contract(season=season),
        ids=tuple(f"s{i}" for i in range(n)),
        origin_us=np.arange(n),
        y=y,
        observed=np.ones(y.shape, bool),
        past=np.zeros((n, lookback, 0), np.float32),
        future=np.zeros((n, lookback + HORIZON, 0), np.float32),
        static=np.zeros((n, 0), np.float32),
        scale=np.full(n, scale),
    )


def test_the_last_season_is_repeated_with_a_growing_spread() -> None:
    made = seasonal_naive(windows(np.array([[9.0, 9.0, 1.0, 2.0, 3.0, 4.0]]), 4, 0.7979), TASK)
    np.testing.assert_array_equal(made.mean[0], [1, 2, 3, 4, 1, 2])
    width = made.quantiles[0, :, -1] - made.mean[0]
    np.testing.assert_allclose(width[:4], 1.96, atol=1e-3)
    np.testing.assert_allclose(width[4:], 1.96 * np.sqrt(2), atol=1e-3)
    np.testing.assert_allclose(made.median, made.mean)


@pytest.mark.parametrize("lookback", [1, 3, 4])
def test_a_window_shorter_than_a_season_repeats_its_last_value(lookback: int) -> None:
    y = np.arange(1.0, lookback + 1)[None]
    made = seasonal_naive(windows(y, 5), TASK)
    np.testing.assert_array_equal(made.mean[0], np.full(HORIZON, lookback))
    assert np.isfinite(made.quantiles).all()
    assert (np.diff(made.quantiles, axis=-1) >= 0).all()


def forecast(n: int, origin: int = 0, value: float = 1.0) -> Forecast:
    return Forecast(
        tuple(f"s{i}" for i in range(n)),
        np.full(n, origin),
        LEVELS,
        np.full((n, HORIZON), value),
        np.full((n, HORIZON, len(LEVELS)), value),
    )


def test_the_last_forecast_of_the_same_origin_is_kept() -> None:
    last = LastForecasts(keep=2)
    last.remember(forecast(2, origin=5), [True, False])
    assert last.recall(["s0"], np.array([5])) is not None
    assert last.recall(["s0"], np.array([6])) is None
    assert last.recall(["s0"], None) is not None
    assert last.recall(["s1"], None) is None
    assert last.recall(["s0", "s1"], None) is None
    last.remember(forecast(3), [True] * 3)
    kept = last.recall(["s2", "s1"], None)
    assert kept is not None
    assert kept.ids == ("s2", "s1")
    assert last.recall(["s0"], None) is None
    last.remember(forecast(MOST_AT_ONCE + 1, origin=7), [True] * (MOST_AT_ONCE + 1))
    assert last.recall(["s1"], np.array([7])) is None


def test_the_reason_is_told() -> None:
    assert reason_of(Overloaded("", 1)) == "overloaded"
    assert reason_of(Expired("")) == "expired"
    assert reason_of(Unavailable("")) == "unavailable"


class Slow(Transparent):
    """Waits for `gate`; forecasts what it was made with."""

    gate = threading.Event()

    def forecast(self, windows: Windows) -> Forecast:
        assert self.gate.wait(30)
        return super().forecast(windows)


def slow() -> tuple[ServedModel, threading.Event]:
    fitted = transparent(plain_contract())
    made = Slow(fitted.spec, fitted.stats)
    made.gate = threading.Event()
    return served(made), made.gate


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/forecast", history(60)),
    ("/predict", {"index_col": "t", "data": {"t": history(60)["ds"], "y": history(60)["y"]}}),
    (
        "/v1/timeseries/forecast",
        {
            "model": "demo",
            "inputs": [
                {
                    "type": "univariate_time_series",
                    "name": "a",
                    "series": history(60)["y"],
                    "frequency": "H",
                }
            ],
            "options": {"horizon": 2},
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_deadline_ends_in_504_or_in_a_plain_forecast(path: str, body: dict[str, Any]) -> None:
    model, gate = slow()

    async def work(http: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        soon = {"x-request-timeout-ms": "30"}
        try:
            late = await http.post(path, json=body, headers=soon)
            plain = await http.post(path, json=body, headers={**soon, **ALLOWED})
        finally:
            gate.set()
        return late, plain

    late, plain = call(work, model)
    assert late.status_code == 504
    assert "error" in late.json()
    assert plain.status_code == 200
    assert plain.json()["degraded"] is True
    assert plain.json()["degraded_reason"] == "expired"
    assert plain.json()["degraded_method"] == "seasonal_naive"


def test_a_caller_who_would_wait_too_long_in_the_queue_is_told_at_once() -> None:
    import asyncio

    model, gate = slow()
    limits = ServeConfig(max_queued_requests=1)

    async def work(http: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response]]:
        tasks = []
        for _ in range(2):
            tasks.append(asyncio.create_task(http.post("/v1/forecast", json=history(60))))
            await asyncio.sleep(0.05)
        refused = [
            await http.post("/v1/forecast", json=history(60), headers=headers)
            for headers in ({}, ALLOWED)
        ]
        many = {"series": [history(60)]}
        refused += [
            await http.post("/v1/forecast:batch", json=many, headers=headers)
            for headers in ({}, ALLOWED)
        ]
        gate.set()
        return refused, list(await asyncio.gather(*tasks))

    (refused, plain, bulk, plain_bulk), answered = call(work, model, limits)
    assert [one.status_code for one in answered] == [200, 200]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "overloaded"
    assert bulk.status_code == 429
    assert plain.status_code == 200
    assert plain.json()["degraded_reason"] == "overloaded"
    assert plain.json()["forecasts"][0]["mean"] == [36.0 + i for i in range(HORIZON)]
    assert plain_bulk.status_code == 200
    marks = {"status": "ok", **Degraded("overloaded", "seasonal_naive").marks()}
    assert plain_bulk.json()["forecasts"] == [{**plain.json()["forecasts"][0], **marks}]


class Told:
    """Forecasts by whether the model made them."""

    def __init__(self) -> None:
        self.ids: dict[bool, list[str]] = {True: [], False: []}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Forecasts alone count here."""

    def forecast(self, made: Made) -> None:
        assert made.windows.ids == made.forecast.ids
        self.ids[made.degraded] += made.forecast.ids


def late_bulk(accept: str) -> tuple[httpx.Response, Told]:
    """Of five series in parts of two: the third cannot be read, after the first part it is late."""
    told = Told()

    class Late(Transparent):
        def forecast(self, windows: Windows) -> Forecast:
            if "a" not in windows.ids:
                raise Expired("too late")
            return super().forecast(windows)

    made = transparent(plain_contract())
    series: list[dict[str, Any]] = [{**history(60), "unique_id": name} for name in "abcde"]
    series[2] = {"unique_id": "c", "y": ["x"]}
    headers = {"accept": accept, **ALLOWED}

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/v1/forecast:batch", json={"series": series}, headers=headers)

    model = served(Late(made.spec, made.stats))
    return call(work, model, ServeConfig(max_batch=2), observer=told), told


MARKS = [None, None, None, "expired", "expired"]


def test_late_series_of_many_are_marked_one_by_one() -> None:
    answer, told = late_bulk("application/json")
    entries = answer.json()["forecasts"]
    assert [one["status"] for one in entries] == ["ok", "ok", "error", "ok", "ok"]
    assert [one.get("degraded_reason") for one in entries] == MARKS
    assert entries[0]["mean"][0] == 59.0  # the model's last value, and the last season's
    assert entries[4]["mean"] == [36.0 + i for i in range(HORIZON)]
    assert answer.json()["failed"] == 1
    assert told.ids == {False: ["a", "b"], True: ["d", "e"]}


def test_late_series_are_marked_in_msgpack_and_arrow() -> None:
    answer, _ = late_bulk("application/msgpack")
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(answer.content)
    found: dict[str, str | None] = {}
    for part in list(unpacker)[1:-1]:
        marked = {one["position"]: one["degraded_reason"] for one in part.get("degraded", [])}
        found |= {name: marked.get(i) for i, name in enumerate(part["unique_id"])}
    assert list(found.values()) == MARKS
    answer, _ = late_bulk("application/vnd.apache.arrow.stream")
    rows = pa.ipc.open_stream(answer.content).read_all()
    assert rows["degraded_reason"].to_pylist() == MARKS
    assert set(rows["degraded_method"].to_pylist()) == {None, "seasonal_naive"}
    assert rows["status"].to_pylist() == ["ok", "ok", "error", "ok", "ok"]


def test_only_callers_who_allow_it_get_two_more_columns() -> None:
    model = served(transparent(plain_contract()))
    arrow = {"accept": "application/vnd.apache.arrow.stream"}
    body = {"series": [history(60)]}
    answer = call(lambda http: http.post("/v1/forecast:batch", json=body, headers=arrow), model)
    assert "degraded_reason" not in pa.ipc.open_stream(answer.content).schema.names


def test_without_a_champion_nothing_stands_in() -> None:
    async def work(http: httpx.AsyncClient) -> list[int]:
        bulk = ("/v1/forecast:batch", {"series": [history(60)]})
        return [
            (await http.post(path, json=body, headers=ALLOWED)).status_code
            for path, body in [*BODIES, bulk]
        ]

    assert call(work) == [503] * 4


def test_the_last_forecast_stands_in_where_prepared_data_are_away() -> None:
    data = known_set(covariates=False)
    known = KnownSet(data)

    class Sometimes:
        away = False

        def series(self, ids: list[str]) -> Any:
            if self.away:
                raise Unavailable("the store is away")
            return known.series(ids)

    source = Sometimes()
    model = served(transparent(data.contract, data.ids), known=source)

    async def work(http: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"unique_id": "s1"}
        first = await http.post("/v1/forecast", json=body)
        source.away = True
        without = await http.post("/v1/forecast", json=body)
        stood_in = await http.post("/v1/forecast", json=body, headers=ALLOWED)
        other = await http.post("/v1/forecast", json={"unique_id": "s0"}, headers=ALLOWED)
        return [first, without, stood_in, other]

    first, without, stood_in, other = call(work, model)
    assert first.status_code == 200
    assert "degraded" not in first.json()
    assert without.status_code == 503
    assert stood_in.json()["degraded_method"] == "last_forecast"
    assert stood_in.json()["forecasts"] == first.json()["forecasts"]
    assert other.status_code == 503


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"x-request-timeout-ms": "soon"}, "x-request-timeout-ms"),
        ({"x-request-timeout-ms": "0"}, "x-request-timeout-ms"),
        ({"x-request-timeout-ms": "nan"}, "x-request-timeout-ms"),
        ({"x-allow-degraded": "maybe"}, "x-allow-degraded"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/forecast", "/v1/forecast:batch", "/predict"])
def test_a_header_that_is_none_is_named(headers: dict[str, str], field: str, path: str) -> None:
    model = served(transparent(plain_contract()))
    answer = call(lambda http: http.post(path, json=history(), headers=headers), model)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def test_the_configured_time_bounds_every_request() -> None:
    model, gate = slow()
    begin = time.monotonic()

    async def work(http: httpx.AsyncClient) -> httpx.Response:
        long = {"x-request-timeout-ms": "60000"}
        try:
            return await http.post("/v1/forecast", json=history(), headers=long)
        finally:
            gate.set()

    answer = call(work, model, ServeConfig(timeout_s=0.05))
    assert answer.status_code == 504
    assert time.monotonic() - begin < 20
