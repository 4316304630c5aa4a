from __future__ import annotations

import io
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.engine import ServedModel
from tests.calling import call
from tests.served import (
    HORIZON,
    LOOKBACK,
    KnownSet,
    Transparent,
    history,
    known_set,
    plain_contract,
    served,
    stamps,
    transparent,
)
from tests.synthetic import START_US

LIMITS = ServeConfig(max_batch=3, max_bulk_series=20, max_points=100)
MSGPACK = "application/msgpack"
ARROW = "application/vnd.apache.arrow.stream"
PATH = "/v1/forecast:batch"


def plain(**about: Any) -> ServedModel:
    return served(transparent(plain_contract(units="MW"), **about), version="7")


def send(
    content: bytes,
    kind: str,
    model: ServedModel | None = None,
    accept: str = "",
    query: str = "",
    limits: ServeConfig = LIMITS,
) -> httpx.Response:
    headers = {"content-type": kind, **({"accept": accept} if accept else {})}
    return call(
        lambda http: http.post(PATH + query, content=content, headers=headers),
        model or plain(),
        limits,
    )


def as_json(model: ServedModel | None = None, **body: Any) -> httpx.Response:
    return send(msgspec.json.encode(body), "application/json", model)


def arrow_body(columns: dict[str, Any], options: Any = None) -> bytes:
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def arrow_rows(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    rows: list[dict[str, Any]] = pa.ipc.open_stream(answer.content).read_all().to_pylist()
    return rows


def lists(count: int = 4, points: int = 30, **columns: Any) -> dict[str, Any]:
    start = pa.array([START_US] * count, pa.timestamp("us", "UTC"))
    y = [[float(100 * i + j) for j in range(points)] for i in range(count)]
    return {"unique_id": [f"x{i}" for i in range(count)], "start": start, "y": y, **columns}


def test_every_series_has_its_own_status_in_json() -> None:
    many = [history(unique_id=f"s{i}") for i in range(7)]
    many[1] = history(unique_id="short", count=4)
    many[3] = history(unique_id="text", y=["a"] * 30)
    many[5] = history(unknown=1)
    many[6] = {"unique_id": "s1", "y": [1.0] * 30, "start": stamps(1)[0]}
    answer = as_json(series=many, horizon=2, quantiles=[0.1])
    assert answer.status_code == 200
    body = answer.json()
    assert [one["status"] for one in body["forecasts"]] == [
        "ok", "error", "ok", "error", "ok", "error", "ok",
    ]  # fmt: skip
    assert body["failed"] == 3
    assert body["model"]["version"] == answer.headers["x-flts-model-version"] == "7"
    assert body["forecast_id"] == answer.headers["x-flts-forecast-id"]
    good, bad = body["forecasts"][0], body["forecasts"][3]
    assert good["mean"] == [29.0, 29.0]
    assert good["quantiles"] == {"0.1": [29.1, 29.1]}
    assert good["cold_start"] is False
    assert body["forecasts"][2]["cold_start"] is True
    assert bad["unique_id"] == "text"
    assert bad["error"]["field"] == "series[3].y[0]"
    assert body["forecasts"][5]["unique_id"] == "5"
    assert [one["error"]["field"] for one in body["forecasts"] if "error" in one] == [
        "series[1].y", "series[3].y[0]", "series[5].unknown",
    ]  # fmt: skip


def test_bulk_and_single_answers_agree() -> None:
    data = known_set()
    model = served(transparent(data.contract, data.ids), known=KnownSet(data))
    asked = {"unique_id": "s1", "known_future": {"event": [0.5] * HORIZON}}

    async def work(http: httpx.AsyncClient) -> tuple[Any, Any]:
        one = await http.post("/v1/forecast", json={"series": [asked]})
        many = await http.post(PATH, json={"series": [asked]})
        return one.json()["forecasts"][0], many.json()["forecasts"][0]

    single, bulk = call(work, model)
    assert bulk == {"status": "ok", **single}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "series"),
        (b'{"series": []}', "series"),
        (b'{"series": 1}', "series"),
        (b'{"series": [1]}', "series[0]"),
        (b'{"series": [{}], "horizon": 7}', "horizon"),
        (b'{"series": [{}], "horizon": 0}', "horizon"),
        (b'{"series": [{}], "quantiles": [0.999]}', "quantiles[0]"),
        (b'{"series": [{}], "extra": 1}', "extra"),
        (b'{"series": [' + b"{}," * 20 + b"{}]}", "series"),
        (b'{"series": [' + b"{}," * 9000 + b"{}]}", "series"),
        (b'{"series": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "body"),
        (b"[]", "body"),
        (b"{", "body"),
    ],
)
def test_a_body_that_is_no_bulk_request_is_refused(body: bytes, field: str) -> None:
    answer = send(body, "application/json")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


def msgpack_answer(answer: httpx.Response) -> list[dict[str, Any]]:
    import msgpack  # type: ignore[import-untyped]

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == MSGPACK
    return list(msgpack.Unpacker(io.BytesIO(answer.content)))


def test_msgpack_with_raw_histories_is_answered_with_raw_forecasts() -> None:
    y = np.arange(30, dtype="<f4")
    series: list[dict[str, Any]] = [
        {"unique_id": f"x{i}", "start": stamps(1)[0], "y": (y + i).tobytes(), "dtype": "float32"}
        for i in range(4)
    ]
    series[2]["y"] = b"123"
    series.append({"start": stamps(1)[0], "y": [float(v) for v in y]})
    body = msgspec.msgpack.encode({"series": series, "horizon": 2, "quantiles": [0.1, 0.9]})
    head, first, second, last = msgpack_answer(send(body, MSGPACK))
    assert head["quantiles"] == [0.1, 0.9]
    assert head["horizon"] == 2
    assert first["unique_id"] == ["x0", "x1", "x2"]
    assert first["ok"] == [0, 1]
    mean = np.frombuffer(first["mean"], "<f8").reshape(2, 2)
    np.testing.assert_array_equal(mean, [[29, 29], [30, 30]])
    quantiles = np.frombuffer(first["quantiles"], "<f8").reshape(2, 2, 2)
    np.testing.assert_allclose(quantiles[1], [[30.1, 30.1], [30.9, 30.9]])
    (error,) = first["errors"]
    assert error["position"] == 2
    assert error["field"] == "series[2].y"
    assert second["ok"] == [0, 1]
    assert np.frombuffer(second["origin_us"], "<i8")[0] == START_US + 30 * 3_600_000_000
    assert last == {"done": True, "failed": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", b"\x80", b"\x81\xa6series\x01", b"\x81\xa6series\xdd\xff\xff\xff\xff",
        b"\x81\xa6series\x90", b"\x81\xa6series\xdc\x00\xff" + b"\x80" * 255,
    ],
)  # fmt: skip
def test_msgpack_that_is_no_bulk_request_is_refused(body: bytes) -> None:
    answer = send(body, MSGPACK)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] in ("body", "series")


def test_arrow_lists_of_one_length() -> None:
    answer = send(arrow_body(lists()), ARROW, query="?horizon=2&quantiles=0.1,0.9")
    rows = arrow_rows(answer)
    assert [row["unique_id"] for row in rows] == ["x0", "x1", "x2", "x3"]
    assert {row["status"] for row in rows} == {"ok"}
    assert rows[3]["mean"] == [329.0, 329.0]
    assert rows[3]["q0.9"] == pytest.approx([329.9, 329.9])
    assert rows[0]["cold_start"] is True
    assert rows[0]["ds"][0].isoformat().replace("+00:00", "Z") == stamps(31)[30]
    schema = pa.ipc.open_stream(answer.content).schema
    assert schema.metadata[b"model_version"] == b"7"
    assert schema.metadata[b"units"] == b"MW"


def test_arrow_rows_that_cannot_be_forecast_say_why() -> None:
    columns = lists(5)
    columns["y"][1] = [1.0]
    columns["y"][2] = None
    columns["y"][3] = [1.0] * 29 + [None]
    columns["y"][4] = [1.0] * 200
    rows = arrow_rows(send(arrow_body(columns), ARROW))
    assert [row["status"] for row in rows] == ["ok", "error", "error", "ok", "error"]
    assert rows[1]["error_field"] == "series[1].y"
    assert rows[2]["error_field"] == "series[2].unique_id"
    assert rows[4]["error_message"].endswith("send the last 100 at most")
    assert rows[1]["mean"] is None
    assert rows[3]["mean"] is not None


def rich() -> ServedModel:
    data = known_set()
    return served(transparent(data.contract, data.ids), known=KnownSet(data))


def test_arrow_lists_with_covariates() -> None:
    columns = lists(
        2,
        event=[[2.0] * (30 + HORIZON)] * 2,
        lagged=[[1.0] * 30] * 2,
        number=[1, 2],
        observed=[[True] * 30] * 2,
    )
    rows = arrow_rows(send(arrow_body(columns), ARROW, rich()))
    assert rows[1]["mean"] == [131.0] * HORIZON
    columns["event"] = [[2.0] * 30] * 2
    rows = arrow_rows(send(arrow_body(columns), ARROW, rich()))
    assert rows[0]["error_field"] == "series[0].known_future.event"


def long(sizes: list[int], **changes: Any) -> dict[str, Any]:
    ids = [f"x{i}" for i, size in enumerate(sizes) for _ in range(size)]
    ds = np.concatenate([START_US + 3_600_000_000 * np.arange(size) for size in sizes])
    y = np.concatenate([np.arange(float(size)) for size in sizes])
    return {"unique_id": ids, "ds": pa.array(ds, pa.timestamp("us", "UTC")), "y": y, **changes}


@pytest.mark.parametrize("sizes", [[30, 30, 30, 30], [30, 28, 40, 5]])
@pytest.mark.parametrize("shuffled", [False, True])
def test_an_arrow_table_of_points(sizes: list[int], shuffled: bool) -> None:
    table = pa.table(long(sizes))
    if shuffled:
        table = table.take(np.random.default_rng(0).permutation(len(table)))
    columns = {name: table[name] for name in table.column_names}
    rows = {row["unique_id"]: row for row in arrow_rows(send(arrow_body(columns), ARROW))}
    for i, size in enumerate(sizes):
        row = rows[f"x{i}"]
        if size < LOOKBACK:
            assert row["error_code"] == "bad_request"
        else:
            assert row["mean"][0] == size - 1
            assert row["ds"][0].isoformat().replace("+00:00", "Z") == stamps(size + 1)[-1]


def test_the_last_points_of_a_long_table_are_the_horizon() -> None:
    size = 30 + HORIZON
    y = [*range(30), *[None] * HORIZON]
    columns = long([size, size], y=[float(v) if v is not None else None for v in y + y])
    columns |= {"event": [3.0] * 2 * size, "lagged": [1.0] * 2 * size, "number": [1] * 2 * size}
    rows = arrow_rows(send(arrow_body(columns), ARROW, rich()))
    assert rows[0]["mean"] == [32.0] * HORIZON


ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Arrow IPC"),
        (b"nothing", "Arrow IPC"),
        (arrow_body(lists())[:-200], "Arrow IPC"),
        (arrow_body(lists(), ZSTD), "uncompressed"),
        (arrow_body(long([30]) | {"unique_id": pa.array(["a"] * 30).dictionary_encode()}, ZSTD),
         "uncompressed"),
        (arrow_body(lists(wind=[1.0] * 4)), "wind: no column"),
        (arrow_body({"y": [[1.0]]}), "unique_id: required"),
        (arrow_body({"unique_id": ["a"]}), "y: required"),
        (arrow_body(lists(y=[["a"]] * 4)), "y: must be numbers"),
        (arrow_body(lists(unique_id=[1] * 4)), "unique_id: must be text"),
        (arrow_body(lists(unique_id=["a", None, "b", "c"])), "null in row 1"),
        (arrow_body(lists(start=[1] * 4)), "start: must be timestamps"),
        (arrow_body(lists(ds=[[START_US]] * 4)), "either `start`"),
        (arrow_body(lists(21)), "send 1 to 20"),
        (arrow_body(lists(0, y=pa.array([], pa.list_(pa.float64())))), "send 1 to 20"),
        (arrow_body(long([200])), "last 100 at most"),
        (arrow_body(long([30], ds=[1] * 30)), "ds: must be timestamps"),
        (arrow_body(lists(unique_id=["a" * 501] * 4)), "500 bytes"),
    ],
)  # fmt: skip
def test_an_arrow_body_that_is_none_is_refused(body: bytes, message: str) -> None:
    answer = send(body, ARROW)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", [b"unique_id", b"Europe/Madrid"])
def test_names_and_zones_that_are_no_text_are_refused(text: bytes) -> None:
    start = pa.array([START_US] * 4).cast(pa.timestamp("us", "Europe/Madrid"))
    body = arrow_body(lists(start=start))
    assert text in body
    answer = send(body.replace(text, b"\x82" + text[1:]), ARROW)
    assert answer.status_code == 422
    assert "can't decode byte 0x82" in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", ["?horizon=x", "?horizon=9", "?quantiles=0.1,x", "?quantiles=2"])
def test_wrong_options_of_an_arrow_body_are_refused(query: str) -> None:
    answer = send(arrow_body(lists()), ARROW, query=query)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"].split("[")[0] in query


@pytest.mark.parametrize("accept", ["application/json", MSGPACK, ARROW])
def test_the_answer_is_of_the_kind_that_is_accepted(accept: str) -> None:
    body = msgspec.json.encode({"series": [history()]})
    answer = send(body, "application/json", accept=f"text/html, {accept};q=0.9")
    assert answer.headers["content-type"] == accept


def test_a_window_that_the_model_refuses_does_not_refuse_the_others() -> None:
    model = served(transparent(plain_contract(), refused=("bad",)))
    many = [history(unique_id=name) for name in ("a", "bad", "b", "c")]
    body = as_json(model, series=many).json()
    assert [one["status"] for one in body["forecasts"]] == ["ok", "error", "ok", "ok"]
    assert [one["unique_id"] for one in body["forecasts"]] == ["a", "bad", "b", "c"]


def test_a_forecast_that_is_not_finite_is_an_error_of_its_own() -> None:
    class Infinite(Transparent):
        def forecast(self, windows: Windows) -> Forecast:
            made = super().forecast(windows)
            made.mean[[name == "bad" for name in windows.ids]] = np.inf
            return made

    fitted = transparent(plain_contract())
    model = served(Infinite(fitted.spec, fitted.stats))
    many = [history(unique_id=name) for name in ("a", "bad", "b")]
    body = as_json(model, series=many).json()
    assert [one["status"] for one in body["forecasts"]] == ["ok", "error", "ok"]
    assert "not finite" in body["forecasts"][1]["error"]["message"]


def test_a_large_bulk_body_is_413() -> None:
    answer = send(b" " * 3000, "application/json", limits=ServeConfig(max_bulk_bytes=2000))
    assert answer.status_code == 413


def test_a_failure_in_the_middle_leaves_no_whole_document() -> None:
    class Breaks(Transparent):
        def forecast(self, windows: Windows) -> Forecast:
            if "x" in windows.ids:
                raise ZeroDivisionError
            return super().forecast(windows)

    fitted = transparent(plain_contract())
    model = served(Breaks(fitted.spec, fitted.stats))
    many = [history(unique_id=name) for name in ("a", "b", "c", "x")]
    with pytest.raises(ZeroDivisionError):
        as_json(model, series=many)


def test_unreadable_bulk_bytes_are_never_a_server_error() -> None:
    good = arrow_body(lists())
    rng = np.random.default_rng(1)

    async def work(http: httpx.AsyncClient) -> set[int]:
        seen = set()
        for _ in range(150):
            raw = bytearray(good)
            for at in rng.integers(0, len(raw), 4):
                raw[at] = rng.integers(0, 256)
            try:
                answer = await http.post(PATH, content=bytes(raw), headers={"content-type": ARROW})
            except DataError:
                raise AssertionError from None
            seen.add(answer.status_code)
        return seen

    assert call(work, plain(), LIMITS) <= {200, 422}


def test_errors_of_a_part_of_many_batches_belong_to_their_series() -> None:
    bad = ("x0", "x4", "x5", "x11", "x19")
    columns = lists(20)
    columns["y"][7] = [1.0]
    rows = arrow_rows(send(arrow_body(columns), ARROW, plain(refused=bad)))
    assert [row["unique_id"] for row in rows] == columns["unique_id"]
    failed = [row["unique_id"] for row in rows if row["status"] == "error"]
    assert sorted(failed) == sorted([*bad, "x7"])
    for i, row in enumerate(rows):
        if row["status"] == "ok":
            assert row["mean"] == [100.0 * i + 29.0] * HORIZON


@pytest.mark.parametrize("count", [1, 20])
def test_long_lists_of_any_column_are_not_read(count: int) -> None:
    huge = pa.array([[True] * 101] * count, pa.list_(pa.bool_()))
    rows = arrow_rows(send(arrow_body(lists(count, observed=huge)), ARROW))
    assert {row["error_field"] for row in rows} >= {"series[0].observed"}
    assert all("100 at most" in row["error_message"] for row in rows)


def test_columns_that_cannot_be_read_are_refused_before_an_answer_begins() -> None:
    start = pa.array([START_US] * 19 + [None], pa.timestamp("us", "UTC"))
    answer = send(arrow_body(lists(20, start=start)), ARROW)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "start"
