from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.serve.history import calendar_of, parse_stamps
from flts_ray.serve.stamps import FEW, calendars, read_stamps, step_stamps
from tests.served import plain_contract, stamps
from tests.synthetic import START_US

MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0).isoformat()
)


@given(st.lists(MOMENTS, min_size=1, max_size=5), st.sampled_from(["", "Z"]))
def test_stamps_written_alike_are_read_as_one_by_one(texts: list[str], end: str) -> None:
    written = [text + end for text in texts] * FEW
    found = read_stamps(written, "Europe/Paris", "ds")
    np.testing.assert_array_equal(found, parse_stamps(written, "Europe/Paris", "ds"))


@pytest.mark.parametrize(
    "bad",
    [
        "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z",
        "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-00-01T00:00:00Z",
        "2024-01-00T00:00:00Z", "2024x01-01T00:00:00Z", "2024-01-01T00:00:0\u0663Z",
        "2024-01-01T00:00:00X", "2024-01-01T00:00:0\0Z", "2024-01-01T00:00:0\0",
        "1600-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_a_stamp_that_is_none_is_named(bad: str) -> None:
    with pytest.raises(DataError) as caught:
        read_stamps([*stamps(FEW), bad], "UTC", "ds")
    assert caught.value.field == f"ds[{FEW}]"


def test_calendars_of_many_origins_are_those_of_each() -> None:
    contract = plain_contract()
    origins = START_US + 3_600_000_000 * np.array([5, 1, 5, *range(100)])
    found = calendars(origins, 4, 2, contract)
    for i, origin in enumerate(origins):
        wanted = calendar_of(origin + 3_600_000_000 * np.arange(-4, 2), contract)
        np.testing.assert_array_equal(found[i], wanted)
    assert step_stamps(START_US, 2, contract) == tuple(stamps(2))
