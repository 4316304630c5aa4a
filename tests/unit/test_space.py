from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config import ModelConfig
from flts_ray.tune.space import sample_kind, sample_trials

seeds = st.integers(0, 2**32)
numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-9, 1e9)


def pairs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=2, max_size=2).map(sorted)


def model(trials: int = 4, **params: Any) -> ModelConfig:
    return ModelConfig.model_validate({"trials": trials, "params": params})


GRU = model(
    lr={"loguniform": [1e-4, 1e-2]}, hidden={"integer": [16, 128]}, layers={"choice": [1, 2]}
)


@given(seeds, pairs(numbers), pairs(positive), pairs(st.integers(-50, 50)))
def test_every_sample_lies_in_its_space(
    seed: int, uniform: list[float], log: list[float], whole: list[int]
) -> None:
    spaces = model(
        8,
        u={"uniform": uniform},
        g={"loguniform": log},
        i={"integer": whole},
        c={"choice": ["a", [1, 2], None]},
        fixed=7,
    )
    for plan in sample_kind("gru", spaces, seed):
        assert uniform[0] <= plan.params["u"] <= uniform[1]
        assert log[0] <= plan.params["g"] <= log[1]
        assert whole[0] <= plan.params["i"] <= whole[1]
        assert isinstance(plan.params["i"], int)
        assert plan.params["c"] in ("a", [1, 2], None)
        assert plan.params["fixed"] == 7


@given(seeds)
def test_the_same_seed_gives_the_same_trials(seed: int) -> None:
    assert sample_trials({"gru": GRU}, seed) == sample_trials({"gru": GRU}, seed)


def test_another_seed_moves_all_but_the_first_trial() -> None:
    one, other = sample_kind("gru", GRU, 1), sample_kind("gru", GRU, 2)
    assert one[0] == other[0]
    assert all(a.params != b.params for a, b in zip(one[1:], other[1:], strict=True))


@given(seeds)
def test_another_kind_parameter_or_trial_moves_no_sample(seed: int) -> None:
    alone = sample_kind("gru", GRU, seed)
    beside = sample_trials({"lstm": GRU, "gru": GRU, "ar": model(1)}, seed)
    assert [plan for plan in beside if plan.kind == "gru"] == alone
    more = GRU.model_copy(update={"trials": 6})
    assert sample_kind("gru", more, seed)[:4] == alone
    wider = GRU.model_copy(update={"params": {**GRU.params, "dropout": 0.1}})
    assert [
        {k: v for k, v in plan.params.items() if k != "dropout"}
        for plan in sample_kind("gru", wider, seed)
    ] == [plan.params for plan in alone]


def test_kinds_are_sampled_apart() -> None:
    gru, lstm = sample_kind("gru", GRU, 0), sample_kind("lstm", GRU, 0)
    assert gru[1].params != lstm[1].params


def test_the_first_trial_takes_the_middle_of_every_space() -> None:
    spaces = model(
        u={"uniform": [2.0, 4.0]},
        g={"loguniform": [1e-4, 1e-2]},
        i={"integer": [1, 5]},
        c={"choice": ["first", "second"]},
    )
    params = sample_kind("gru", spaces, 3)[0].params
    assert params["u"] == 3.0
    assert abs(params["g"] - 1e-3) < 1e-12
    assert params["i"] == 3
    assert params["c"] == "first"


def test_baselines_come_first_then_one_of_each_then_turns() -> None:
    models = {"gru": GRU, "ar": model(2, ridge={"loguniform": [1e-6, 1]}), "prophet": model(1)}
    plans = sample_trials({**models, "seasonal_naive": model(1)}, 0)
    assert [plan.trial_id for plan in plans] == [
        "seasonal_naive-01",
        "ar-01",
        "gru-01",
        "prophet-01",
        "ar-02",
        "gru-02",
        "gru-03",
        "gru-04",
    ]


@given(seeds, st.integers(1, 6))
def test_a_small_space_is_used_up_without_repeats(seed: int, trials: int) -> None:
    plans = sample_kind("gru", model(trials, hidden={"choice": [8, 16, 32]}), seed)
    assert len({json.dumps(dict(plan.params)) for plan in plans}) == len(plans)
    assert len(plans) == min(trials, 3)


def test_a_kind_without_trials_has_none() -> None:
    assert sample_trials({"gru": model(0), "ar": model(1)}, 0) == sample_trials({"ar": model(1)}, 0)
