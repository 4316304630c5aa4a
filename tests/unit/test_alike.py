from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.config_serve import ServeConfig
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract
from flts_ray.serve.alike import block_of_alike
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import lay
from flts_ray.serve.problems import field_of
from flts_ray.serve.regular import Block
from flts_ray.serve.schemas import PackedSeries, SeriesRequest
from flts_ray.serve.wire_bulk import SplitBody, json_bulk, msgpack_bulk
from tests.served import HORIZON, known_set, plain_contract, served, stamps, transparent

POINTS, MOST = 10, 50
LIMITS = ServeConfig(max_points=MOST)
RICH = known_set().contract
START = stamps(1)[0]


def model_of(contract: Contract) -> ServedModel:
    return served(transparent(contract, lookback=8))


def spec_of(contract: Contract) -> ModelSpec:
    return model_of(contract).fitted.spec


def sent(contract: Contract, i: int = 0, points: int = POINTS, **changes: Any) -> dict[str, Any]:
    series = {
        "unique_id": f"s{i}",
        "start": START,
        "y": [float(i + j) for j in range(points)],
        "known_future": {n: [0.5 * i] * (points + HORIZON) for n in contract.known_future},
        "past": {n: [0.25 * i] * points for n in contract.past},
        "static": {n: float(i) for n in contract.static},
    }
    return {**series, **changes}


def packed(series: dict[str, Any]) -> dict[str, Any]:
    """The same with its values as raw bytes, where all are there."""
    y = series.get("y")
    if not isinstance(y, list) or None in y:
        return series
    return {**series, "y": np.array(y, "<f4").tobytes(), "dtype": "float32"}


def json_body(many: list[dict[str, Any]], contract: Contract) -> SplitBody:
    return json_bulk(orjson.dumps({"series": many}), spec_of(contract), LIMITS)


def msgpack_body(many: list[dict[str, Any]], contract: Contract) -> SplitBody:
    body = msgspec.msgpack.encode({"series": [packed(one) for one in many]})
    return msgpack_bulk(body, spec_of(contract), LIMITS)


FLAWS: list[dict[str, Any]] = [
    {}, {}, {}, {},
    {"start": "2024-03-30T23:00:00Z"},
    {"start": "not a stamp"},
    {"start": "1500-01-01T00:00:00Z"},
    {"start": None, "ds": stamps(POINTS)},
    {"start": None},
    {"y": [None, *[1.0] * (POINTS - 1)]},
    {"y": [*[1.0] * (POINTS - 1), None]},
    {"y": [1e31, *[1.0] * (POINTS - 1)]},
    {"y": [1.0] * 3},
    {"y": [1.0] * (MOST + 1)},
    {"y": []},
    {"y": None},
    {"unique_id": None},
    {"observed": [True] * POINTS},
    {"known_future": {"event": [1.0]}},
    {"past": {}},
]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([json_body, msgpack_body]),
    st.sampled_from([plain_contract(), RICH, plain_contract(time_zone="Europe/Paris")]),
    st.lists(st.sampled_from(FLAWS), min_size=1, max_size=5),
)
def test_a_part_is_read_as_its_series_one_by_one(
    body_of: Any, contract: Contract, flaws: list[dict[str, Any]]
) -> None:
    model = model_of(contract)
    many = [sent(contract, i, **flaw) for i, flaw in enumerate(flaws)]
    body = body_of(many, contract)
    part = body.part(0, len(many))
    together = lay(part.asked, model)
    refused = part.refused | {part.at[i]: error for i, error in together.refused.items()}
    row = 0
    for i in range(len(many)):
        one = body.part(i, i + 1)
        assert part.ids[i] == one.ids[0]
        alone = lay(one.asked, model) if len(one.at) else None
        if alone is None or alone.windows is None:
            errors = one.refused if alone is None else alone.refused
            assert str(refused[i]) == str(errors[0])
            continue
        assert i not in refused
        assert together.windows is not None
        got = together.windows.part(slice(row, row + 1))
        row += 1
        assert got.ids == alone.windows.ids
        for name in ("origin_us", "y", "observed", "past", "future", "static", "scale"):
            np.testing.assert_array_equal(getattr(got, name), getattr(alone.windows, name))


@pytest.mark.parametrize("body_of", [json_body, msgpack_body])
def test_series_that_are_alike_are_one_block(body_of: Any) -> None:
    contract = plain_contract()
    part = body_of([sent(contract, i) for i in range(4)], contract).part(1, 9)
    assert isinstance(part.asked, Block)
    assert part.ids == ["s1", "s2", "s3"]
    np.testing.assert_array_equal(part.asked.y[:, 0], [1, 2, 3])
    assert part.asked.series(2).field == "series[3]."


def test_raw_numbers_stay_as_small_as_they_were_sent() -> None:
    contract = plain_contract()
    part = msgpack_body([sent(contract, i) for i in range(2)], contract).part(0, 2)
    assert isinstance(part.asked, Block)
    assert part.asked.y.dtype == np.float32


def test_columns_of_covariates_belong_to_a_block() -> None:
    contract = plain_contract(known_future=("event",), past=("wind",))
    part = json_body([sent(contract, i) for i in range(3)], contract).part(0, 3)
    assert isinstance(part.asked, Block)
    assert part.asked.known_future is not None
    np.testing.assert_array_equal(part.asked.known_future["event"][:, -1], [0, 0.5, 1])


@pytest.mark.parametrize(
    "changes",
    [{"y": [1.0] * 5}, {"start": "x"}, {"unique_id": None}, {"static": {"a": 1.0}}, {"y": []},
     {"known_future": {"event": [1.0]}}, {"past": {"event": [1.0] * POINTS}}],
)  # fmt: skip
def test_one_that_differs_makes_no_block(changes: dict[str, Any]) -> None:
    contract = plain_contract()
    many = [sent(contract, 0), sent(contract, 1, **changes)]
    read = [msgspec.convert(one, SeriesRequest) for one in many]
    assert block_of_alike(read, 0, spec_of(contract), MOST) is None
    assert block_of_alike(read[:1], 0, spec_of(contract), MOST) is not None


def test_bytes_that_are_no_whole_number_make_no_block() -> None:
    one = PackedSeries(unique_id="a", start=START, y=b"12345", dtype="float32")
    assert block_of_alike([one], 0, spec_of(plain_contract()), MOST) is None


@pytest.mark.parametrize("number", ["1e999", "true", '"1"'])
def test_a_number_that_is_none_is_named(number: str) -> None:
    good = orjson.dumps(sent(plain_contract()))
    bad = good.replace(b"[0.0,", b"[0.0," + number.encode() + b",")
    body = b'{"series": [' + good + b"," + bad + b"]}"
    part = json_bulk(body, spec_of(plain_contract()), LIMITS).part(0, 2)
    assert list(part.at) == [0]
    assert field_of(part.refused[1]) == "series[1].y[1]"
