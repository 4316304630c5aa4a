from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.serve.schemas import ForecastRequest, PredictRequest, parse_body


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"y": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
        (b'{"y": [' + b"9" * 10_000 + b"]}", "y[0]"),
        (b'{"unique_id": "\\ud800"}', "body"),
        (b'{"unique_id": "\xff"}', "body"),
        (b'{"y": ["1"]}', "y[0]"),
        (b'{"y": [true]}', "y[0]"),
        (b'{"y": [[1]]}', "y[0]"),
        (b'{"y": 1}', "y"),
        (b'{"series": {}}', "series"),
        (b'{"series": [{"y": [1, {}]}]}', "series[0].y[1]"),
        (b'{"series": [' + b"{}," * 20_000 + b"{}]}", "series"),
        (b'{"past": {"a": [1, "x"]}}', "past.a[1]"),
        (b'{"horizon": 1.5}', "horizon"),
        (b'{"horizon": 1e400}', "horizon"),
        (b'{"quantiles": [' + b"0.5," * 300 + b"0.5]}", "quantiles"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(20_000)) + b"}", "0"),
    ],
)
def test_a_bad_body_names_its_first_bad_field(body: bytes, field: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_body(ForecastRequest, body)
    assert caught.value.field == field
    assert len(str(caught.value)) < 400


def test_missing_values_may_be_written_in_many_ways() -> None:
    parsed = parse_body(ForecastRequest, b'{"y": [1, null, NaN, Infinity, 2.5]}')
    assert parsed.y is not None
    assert parsed.y[0] == 1.0
    assert parsed.y[1] is None
    assert len(parsed.y) == 5


def test_the_older_body_names_a_bad_cell() -> None:
    with pytest.raises(DataError) as caught:
        parse_body(PredictRequest, b'{"index_col": "t", "data": {"str": [1, {}]}}')
    assert caught.value.field == "data.str[1]"


def test_a_column_may_have_any_name() -> None:
    with pytest.raises(DataError) as caught:
        parse_body(PredictRequest, b'{"index_col": "t", "data": {"a b[0].c": [1, 2, {}]}}')
    assert caught.value.field == "data.a b[0].c[2]"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*ForecastRequest.__struct_fields__, "x"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    import json

    body = json.dumps(value).encode()
    for model in (ForecastRequest, PredictRequest):
        try:
            parsed = parse_body(model, body)
        except DataError as error:
            assert error.field
        else:
            assert isinstance(parsed, model)
