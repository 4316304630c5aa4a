from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError, Expired, Overloaded, Unavailable
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows, windows_at
from flts_ray.serve.engine import ModelSlot, forecast_each, join_windows, warm
from tests.served import HORIZON, LOOKBACK, known_set, served, transparent


def windows(series: list[int], origin: int = 100) -> Windows:
    at = np.full(len(series), origin)
    return windows_at(known_set(), np.array(series), at, LOOKBACK, HORIZON)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6))
def test_each_item_gets_the_forecast_it_would_get_alone(items: list[list[int]]) -> None:
    data = known_set()
    model = transparent(data.contract, data.ids)
    asked = [windows(series) for series in items]
    for one, got in zip(asked, forecast_each(model, asked, max_batch=3), strict=True):
        alone = model.forecast(one)
        assert isinstance(got, Forecast)
        assert got.ids == alone.ids
        np.testing.assert_array_equal(got.origin_us, alone.origin_us)
        np.testing.assert_array_equal(got.mean, alone.mean)
        np.testing.assert_array_equal(got.quantiles, alone.quantiles)


def test_a_model_sees_at_most_max_batch_windows() -> None:
    data = known_set()
    model = transparent(data.contract, data.ids, seen=[])
    forecast_each(model, [windows([0, 1, 2, 0]), windows([1])], max_batch=2)
    assert model.seen is not None
    assert [len(part) for part in model.seen] == [2, 2, 1]


def test_only_the_item_that_fails_gets_the_error() -> None:
    data = known_set()
    model = transparent(data.contract, data.ids, refused=("s1",))
    first, second, third = forecast_each(model, [windows([0]), windows([1]), windows([2])], 10)
    assert isinstance(second, DataError)
    assert isinstance(first, Forecast)
    assert isinstance(third, Forecast)


def test_joined_windows_hold_all_rows_in_order() -> None:
    joined = join_windows([windows([0, 1]), windows([2], 50)])
    assert joined.ids == ("s0", "s1", "s2")
    np.testing.assert_array_equal(joined.y[2], windows([2], 50).y[0])
    assert joined.scale.shape == (3,)


def test_warming_makes_one_forecast_of_the_right_shape() -> None:
    data = known_set()
    model = transparent(data.contract, data.ids, seen=[])
    warm(served(model))
    assert model.seen is not None
    (seen,) = model.seen
    assert (seen.lookback, seen.horizon, len(seen)) == (LOOKBACK, HORIZON, 1)
    wanted = windows([0])
    for name in ("past", "future", "static", "scale", "observed"):
        made, real = getattr(seen, name), getattr(wanted, name)
        assert (made.shape, made.dtype) == (real.shape, real.dtype)


def test_an_empty_slot_tells_the_command_that_makes_a_champion() -> None:
    with pytest.raises(Unavailable, match="flts train --config"):
        ModelSlot("demo", ServeConfig()).require()


def test_a_request_keeps_the_engine_it_started_with() -> None:
    data = known_set()
    old, new = transparent(data.contract, data.ids), transparent(data.contract, data.ids, shift=1e3)

    async def work() -> tuple[Forecast, Forecast]:
        slot = ModelSlot("demo", ServeConfig())
        slot.install(served(old, "1"))
        first = slot.require()
        slot.install(served(new, "2"))
        second = slot.require()
        assert (first.model.version, second.model.version) == ("1", "2")
        made = await asyncio.gather(first.forecast(windows([0])), second.forecast(windows([0])))
        slot.close()
        return made[0], made[1]

    before, after = asyncio.run(work())
    np.testing.assert_allclose(after.mean - before.mean, 1e3)


def test_an_engine_counts_its_work_and_drops_what_is_late() -> None:
    data = known_set()

    async def work() -> None:
        slot = ModelSlot("demo", ServeConfig())
        slot.install(served(transparent(data.contract, data.ids)))
        engine = slot.engine_for("s0")
        await engine.forecast(windows([0, 1]), time.monotonic() + 60)
        with pytest.raises(Expired):
            await engine.forecast(windows([0]), time.monotonic() - 1)
        assert (engine.queued, engine.batches, engine.batch_series) == (0, 1, 2)
        slot.close()

    asyncio.run(work())


def test_a_full_engine_refuses_with_a_time_to_wait() -> None:
    data = known_set()

    async def work() -> list[object]:
        slot = ModelSlot("demo", ServeConfig(max_queued_requests=1))
        slot.install(served(transparent(data.contract, data.ids)))
        engine = slot.require()
        asked = [engine.forecast(windows([0])) for _ in range(4)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        slot.close()
        return list(found)

    found = asyncio.run(work())
    refused = [one for one in found if isinstance(one, Overloaded)]
    assert len(refused) == 3
    assert all(one.retry_after_s >= 0 for one in refused)
