from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import windows_at
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import windows_of
from flts_ray.serve.predictor import (
    Question,
    answer_of,
    asked_of,
    check_finite,
    describe,
    made_of,
    wanted_horizon,
    wanted_levels,
)
from flts_ray.serve.schemas import ForecastRequest, parse_body
from tests.served import (
    HORIZON,
    LEVELS,
    LOOKBACK,
    KnownSet,
    history,
    known_set,
    plain_contract,
    served,
    stamps,
    transparent,
)

LIMITS = ServeConfig(max_series=5, max_points=200)


def ask(model: ServedModel, **body: Any) -> Question:
    request = parse_body(ForecastRequest, orjson.dumps(body))
    horizon = wanted_horizon(request.horizon, model, "horizon")
    levels = wanted_levels(request.quantiles, model, "quantiles")
    return Question(windows_of(asked_of(request, LIMITS), model), horizon, levels)


def answer(model: ServedModel, **body: Any) -> dict[str, Any]:
    question = ask(model, **body)
    made = answer_of(
        model.fitted.forecast(question.windows), question.horizon, question.levels, model, "id"
    )
    sent: dict[str, Any] = orjson.loads(orjson.dumps(made, option=orjson.OPT_SERIALIZE_NUMPY))
    return sent


@pytest.fixture
def plain() -> ServedModel:
    return served(transparent(plain_contract(units="MW")))


@pytest.fixture
def rich() -> ServedModel:
    data = known_set()
    return served(transparent(data.contract, data.ids), known=KnownSet(data))


def rich_history(count: int = 30, **changes: Any) -> dict[str, Any]:
    made = history(count)
    made["known_future"] = {"event": [1.0] * (count + HORIZON)}
    made["past"] = {"lagged": [2.0] * count}
    made["static"] = {"number": 3}
    return {**made, **changes}


def refusal(model: ServedModel, **body: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        ask(model, **body)
    return caught.value


def test_an_answer_holds_stamps_mean_median_and_quantiles(plain: ServedModel) -> None:
    got = answer(plain, **history(30), horizon=2, quantiles=[0.1, 0.9, 0.3])
    assert got["forecast_id"] == "id"
    assert got["units"] == "MW"
    assert got["model"] == {"name": "demo", "version": "1", "kind": "transparent"}
    (one,) = got["forecasts"]
    assert one["unique_id"] == "0"
    assert one["ds"] == stamps(32)[30:]
    assert one["mean"] == [29.0, 29.0]
    assert one["median"] == [29.5, 29.5]
    assert one["quantiles"]["0.1"] == [29.1, 29.1]
    assert one["quantiles"]["0.9"] == [29.9, 29.9]
    assert one["quantiles"]["0.3"] == pytest.approx([29.3, 29.3])


def test_defaults_are_the_whole_horizon_and_both_bands(plain: ServedModel) -> None:
    (one,) = answer(plain, **history(30))["forecasts"]
    assert len(one["mean"]) == HORIZON
    assert list(one["quantiles"]) == ["0.025", "0.1", "0.5", "0.9", "0.975"]


def test_a_shorter_horizon_is_the_beginning_of_the_whole_one(rich: ServedModel) -> None:
    whole = answer(rich, **rich_history())["forecasts"][0]
    short = answer(rich, **rich_history(), horizon=2)["forecasts"][0]
    assert whole["mean"][:2] == short["mean"]


def test_start_stands_for_regular_stamps(plain: ServedModel) -> None:
    y = [1.0] * 30
    by_start = ask(plain, start=stamps(1)[0], y=y)
    by_stamps = ask(plain, ds=stamps(30), y=y)
    np.testing.assert_array_equal(by_start.windows.origin_us, by_stamps.windows.origin_us)


def test_many_series_keep_their_order_and_names(plain: ServedModel) -> None:
    got = answer(plain, series=[history(30, unique_id="b"), history(25), history(30)])
    assert [one["unique_id"] for one in got["forecasts"]] == ["b", "1", "2"]
    assert got["forecasts"][1]["mean"][0] == 24.0


def test_a_known_name_brings_scale_and_clipping(plain: ServedModel) -> None:
    body = history(30)
    body["y"][-1] = 1e6
    windows = ask(plain, series=[{**body, "unique_id": "s1"}, body]).windows
    np.testing.assert_array_equal(windows.scale, [2.0, np.nan])
    np.testing.assert_array_equal(windows.y[:, -1], [100.0, 1e6])


def test_history_with_covariates_fills_the_window(rich: ServedModel) -> None:
    body = rich_history(30)
    body["known_future"]["event"] = [float(i) for i in range(30 + HORIZON)]
    windows = ask(rich, **body).windows
    assert windows.lookback == LOOKBACK
    assert windows.horizon == HORIZON
    np.testing.assert_array_equal(windows.future[0, :, -1], np.arange(6.0, 36.0))
    np.testing.assert_array_equal(windows.past[0, :, 0], np.full(LOOKBACK, 2.0))
    np.testing.assert_array_equal(windows.static, [[3.0]])


@pytest.mark.parametrize("origin", [60, 100, 200 - HORIZON])
def test_a_prepared_series_gives_the_windows_of_training(rich: ServedModel, origin: int) -> None:
    data = known_set()
    wanted = windows_at(data, np.array([1]), np.array([origin]), LOOKBACK, HORIZON)
    got = ask(rich, unique_id="s1", origin=stamps(origin + 1)[origin]).windows
    for name in ("origin_us", "y", "observed", "past", "future", "static", "scale"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


def test_without_an_origin_the_forecast_follows_the_prepared_data(rich: ServedModel) -> None:
    future = [float(i) for i in range(HORIZON)]
    got = ask(rich, unique_id="s2", known_future={"event": future}).windows
    np.testing.assert_array_equal(got.future[0, -HORIZON:, -1], future)
    np.testing.assert_array_equal(got.y[0], known_set().take([2]).y[-LOOKBACK:])
    assert (
        answer(rich, unique_id="s2", known_future={"event": future})["forecasts"][0]["ds"]
        == (stamps(206)[200:])
    )


def test_values_that_the_prepared_data_lack_must_be_sent(rich: ServedModel) -> None:
    error = refusal(rich, unique_id="s1", origin=stamps(198)[197])
    assert error.field == "known_future.event"
    assert "before step 4 of the horizon; send 6 values" in str(error)


def test_static_values_of_a_known_series_need_not_be_sent(rich: ServedModel) -> None:
    body = rich_history(30, unique_id="s2")
    del body["static"]
    np.testing.assert_array_equal(ask(rich, **body).windows.static, [[2.0]])


def test_prepared_data_out_of_reach_is_unavailable(rich: ServedModel) -> None:
    alone = served(rich.fitted)
    with pytest.raises(Unavailable, match="send the history"):
        ask(alone, unique_id="s1")


BAD: Sequence[tuple[dict[str, Any], str, str]] = [
    ({}, "y", "give a history"),
    ({"unique_id": "x"}, "unique_id", "'x' is none"),
    ({"series": []}, "series", "send 1 to 5"),
    ({"series": [history()] * 6}, "series", "send 1 to 5"),
    ({"series": [history()], "y": [1]}, "y", "move it into `series`"),
    ({"series": [history()] * 3 + [history(y=["a"])]}, "series[3].y[0]", "Expected `float | null`"),
    ({"series": [history(), history(10)]}, "series[1].y", "got 10: 14 are missing"),
    (history(210), "y", "last 200 at most"),
    (history(y=[]), "y", "got 0: all are missing"),
    (history(y=[1.0] * 29), "ds", "needs 29 values"),
    (history(ds=None), "ds", "either the stamps"),
    (history(start="2024-01-01"), "ds", "either the stamps"),
    ({"start": "now", "y": [1.0] * 30}, "start", "'now' is no ISO 8601 stamp"),
    (history(origin="2024-01-01"), "origin", "without a history"),
    (history(observed=[True]), "observed", "needs 30 values"),
    (history(horizon=HORIZON + 1), "horizon", "more than the model's 6"),
    (history(horizon=0), "horizon", "Expected `int` >= 1"),
    (history(horizon=True), "horizon", "Expected `int | null`"),
    (history(quantiles=[0.5, 0.99]), "quantiles[1]", "0.025 to 0.975"),
    (history(known_future={"wind": [1.0]}), "known_future.wind", "no column of this role"),
    (history(past={"wind": [1.0]}), "past.wind", "no column of this role"),
    (history(static={"wind": 1.0}), "static.wind", "no column of this role"),
    (history(extra=1), "extra", "not permitted"),
    (history(ds=[1] * 30), "ds[0]", "Expected `str`"),
    (history(unique_id=""), "unique_id", "of length >= 1"),
]


@pytest.mark.parametrize(("body", "field", "message"), BAD)
def test_a_bad_request_names_the_field(
    plain: ServedModel, body: dict[str, Any], field: str, message: str
) -> None:
    error = refusal(plain, **body)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert message in str(error)


RICH_BAD: Sequence[tuple[dict[str, Any], str, str]] = [
    (history(), "known_future.event", "required by the model"),
    (rich_history(past={}), "past.lagged", "required by the model"),
    (rich_history(static={}), "static.number", "required by the model"),
    (rich_history(past={"lagged": [1.0]}), "past.lagged", "needs 30 values"),
    (
        rich_history(known_future={"event": [1.0] * 6}),
        "known_future.event",
        "needs 36 values (one for each of the history, then 6 of the horizon), got 6",
    ),
    (
        rich_history(known_future={"event": [1.0] * 32 + [None] + [1.0] * 3}),
        "known_future.event[32]",
        "no value for step 3 of the horizon",
    ),
    ({"unique_id": "s1", "origin": stamps(20)[-1]}, "origin", "must lie from"),
    ({"unique_id": "s1", "past": {"lagged": [1.0]}}, "past", "belongs to a history"),
    (
        {"unique_id": "s1", "known_future": {"event": [1.0]}},
        "known_future.event",
        "needs 6 values (one for each of the model's horizon), got 1",
    ),
]


@pytest.mark.parametrize(("body", "field", "message"), RICH_BAD)
def test_a_bad_covariate_names_the_field(
    rich: ServedModel, body: dict[str, Any], field: str, message: str
) -> None:
    error = refusal(rich, **body)
    assert error.field == field
    assert message in str(error)


def test_a_model_of_known_series_refuses_others(plain: ServedModel) -> None:
    from dataclasses import replace

    fitted = transparent(plain_contract())
    fitted.spec = replace(fitted.spec, needs_known_series=True)
    error = refusal(served(fitted), **history(unique_id="x"))
    assert error.field == "unique_id"
    assert "only the 2 series" in str(error)
    assert ask(served(fitted), **history(unique_id="s0")).windows.ids == ("s0",)


@pytest.mark.parametrize("levels", [LEVELS, (0.975, 0.1), (), (0.1, 0.2)])
def test_levels_of_the_model_are_read_as_they_are(
    plain: ServedModel, levels: tuple[float, ...]
) -> None:
    forecast = plain.fitted.forecast(ask(plain, **history()).windows)
    made = made_of(forecast, 3, levels, plain)
    np.testing.assert_array_equal(made.quantiles, forecast.at(levels)[:, :3].transpose(0, 2, 1))
    np.testing.assert_array_equal(made.median, forecast.median[:, :3])
    assert made.quantiles.flags.c_contiguous


def test_a_forecast_that_is_not_finite_is_refused(plain: ServedModel) -> None:
    question = ask(plain, **history())
    forecast = plain.fitted.forecast(question.windows)
    forecast.mean[0, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        answer_of(forecast, question.horizon, question.levels, plain, "id")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_among_large_ones(bad: float) -> None:
    mean, quantiles = np.full((3, 4), 1e300), np.full((3, 2, 4), -1e300)
    check_finite(mean, quantiles, ("a", "b", "c"))
    quantiles[1, 1, 3] = bad
    with pytest.raises(DataError, match="series 'b' is not finite"):
        check_finite(mean, quantiles, ("a", "b", "c"))


def test_daily_forecasts_stay_at_local_midnight() -> None:
    contract = Contract(freq="1D", season=7, time_zone="Europe/Paris", max_gap=0)
    model = served(transparent(contract))
    days = [f"2024-03-{d:02d}" for d in range(6, 30)]
    (one,) = answer(model, ds=days, y=[1.0] * 24, horizon=4)["forecasts"]
    assert one["ds"] == [
        "2024-03-29T23:00:00Z",
        "2024-03-30T23:00:00Z",
        "2024-03-31T22:00:00Z",
        "2024-04-01T22:00:00Z",
    ]


def test_describe_tells_the_contract(rich: ServedModel) -> None:
    told = describe(rich)
    assert told["lookback"] == LOOKBACK
    assert told["horizon"] == HORIZON
    assert told["quantiles"] == list(LEVELS)
    assert Contract.from_json(told["contract"]) == rich.fitted.spec.contract
