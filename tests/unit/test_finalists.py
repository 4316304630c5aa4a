from __future__ import annotations

from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.config import JudgeConfig
from flts_ray.errors import ConfigError, DataError
from flts_ray.evaluate.finalists import (
    Finalist,
    best_on_validation,
    check_comparable,
    common_origins,
    judge_all,
)
from flts_ray.models import artifact
from flts_ray.models.base import ModelSpec, Task, fit_fully
from flts_ray.prepare.arrays import SeriesArrays
from tests.served import HORIZON, TASK, Transparent, transparent
from tests.synthetic import seasonal_set

NOWHERE = Path("nowhere")
BANDED = Task(HORIZON, (0.025, 0.1, 0.5, 0.9, 0.975))


@pytest.fixture
def data() -> SeriesArrays:
    return seasonal_set(n_series=2, length=600)


def finalist(data: SeriesArrays, name: str = "t-01", **about: Any) -> Finalist:
    return Finalist(name, transparent(data.contract, data.ids, **about), NOWHERE)


def bare(data: SeriesArrays) -> list[bytes]:
    return [array.tobytes() for array in (data.y, data.observed, data.past, data.future)]


def test_the_candidate_has_the_lowest_validation_score(data: SeriesArrays) -> None:
    one, two, three, unscored = (finalist(data, name) for name in ("b", "c", "a", "0"))
    scored = [replace(one, valid_score=0.3), replace(two, valid_score=0.2), unscored]
    assert best_on_validation(scored).name == "c"
    assert best_on_validation([*scored, replace(three, valid_score=0.2)]).name == "a"
    assert best_on_validation([replace(one, valid_score=0.0), *scored]).valid_score == 0.0


def test_origins_leave_the_longest_history_and_visit_every_hour(data: SeriesArrays) -> None:
    few = [finalist(data, lookback=24), finalist(data, lookback=490)]
    origins = common_origins(data, few, JudgeConfig())
    assert origins.positions.min() == 490
    assert common_origins(data, few[:1], JudgeConfig()).positions.min() == 480
    stride = int(np.diff(origins.positions[:2])[0])
    assert stride >= HORIZON
    assert gcd(stride, 24) == 1
    wide = common_origins(data, few, JudgeConfig(stride=12))
    assert set(np.diff(wide.positions[wide.series == 0])) == {12}


def test_windows_that_a_finalist_has_seen_judge_nobody(data: SeriesArrays) -> None:
    later = replace(data, valid_end=np.array([480, 530]))
    trained = Finalist("early", fit_fully("seasonal_naive", later, TASK), NOWHERE)
    both = [trained, finalist(data, lookback=24)]
    origins = common_origins(data, both, JudgeConfig(stride=5))
    assert origins.positions[origins.series == 0].min() == 480
    assert origins.positions[origins.series == 1].min() == 530
    whole = replace(data, valid_end=data.lengths)
    seen = Finalist("all", fit_fully("seasonal_naive", whole, TASK), NOWHERE)
    with pytest.raises(DataError, match="all has seen every window of the test span"):
        common_origins(data, [seen, *both], JudgeConfig())


def test_bands_are_shown_as_fitted_and_kept_up_to_date(data: SeriesArrays) -> None:
    one = Finalist("naive", fit_fully("seasonal_naive", data, BANDED), NOWHERE)
    origins = common_origins(data, [one], JudgeConfig())
    (daily,) = judge_all([one], data, origins, JudgeConfig(), 0)
    (hourly,) = judge_all([one], data, origins, JudgeConfig(update_every=1), 0)
    (never,) = judge_all([one], data, origins, JudgeConfig(update_every=0), 0)
    np.testing.assert_array_equal(daily.scored.values, never.scored.values)
    widths = [one.board.bands["width"].to_pylist() for one in (daily, hourly)]
    assert widths[0][:2] == widths[1][:2]
    assert widths[0][2:] != widths[1][2:]
    assert daily.board.bands["kept"].to_pylist() == [False, False, True, True]
    assert never.board.bands["kept"].to_pylist() == [False, False]


def test_too_long_a_history_says_what_to_shorten(data: SeriesArrays) -> None:
    with pytest.raises(DataError, match=r"shorten task\.horizon or the lookback"):
        common_origins(data, [finalist(data, lookback=599)], JudgeConfig())


def test_everyone_is_judged_on_the_same_windows_and_the_data_stay_as_they_were(
    data: SeriesArrays,
) -> None:
    before, seen = bare(data), list[tuple[int, int]]()
    finalists = [finalist(data, "good"), finalist(data, "bad", shift=50.0)]
    origins = common_origins(data, finalists, JudgeConfig())
    judged = judge_all(
        finalists, data, origins, JudgeConfig(), 0, lambda done, total: seen.append((done, total))
    )
    assert [one.name for one in judged] == ["good", "bad"]
    assert seen == [(1, 2), (2, 2)]
    assert all(one.audit.passed for one in judged)
    good, bad = (one.board.overall for one in judged)
    assert good["windows"] == bad["windows"] == len(origins)
    assert good["mae"] < bad["mae"]
    assert judged[0].scored.value == pytest.approx(good["scaled_pinball"])
    assert bare(data) == before


class Peeking(Transparent):
    """Looks up what comes next in the arrays it keeps."""

    data: SeriesArrays

    def forecast(self, windows: Any) -> Any:
        made = super().forecast(windows)
        return replace(made, mean=made.mean + self.data.y.max())


def test_a_model_that_keeps_the_data_is_found_out_and_the_data_stay(data: SeriesArrays) -> None:
    peeking = Peeking(transparent(data.contract, data.ids).spec, data.stats)
    peeking.data = data
    before, liar = bare(data), Finalist("liar", peeking, NOWHERE)
    origins = common_origins(data, [liar], JudgeConfig())
    (judged,) = judge_all([liar], data, origins, JudgeConfig(), 0)
    assert not judged.audit.passed
    assert bare(data) == before


def test_read_only_arrays_can_be_judged(data: SeriesArrays) -> None:
    for array in (data.y, data.observed, data.past, data.future):
        array.flags.writeable = False
    origins = common_origins(data, [finalist(data)], JudgeConfig())
    (judged,) = judge_all([finalist(data)], data, origins, JudgeConfig(), 0)
    assert judged.audit.passed


def test_the_same_model_has_the_same_digest(data: SeriesArrays, tmp_path: Path) -> None:
    for name, season in [("a", 24), ("b", 24), ("c", 12)]:
        artifact.save(fit_fully("seasonal_naive", data, TASK, {"season": season}), tmp_path / name)
    same, too, other = (
        Finalist(name, artifact.load(tmp_path / name), tmp_path / name) for name in "abc"
    )
    assert same.digest == too.digest != other.digest


def registered(data: SeriesArrays, needs_known_series: bool = False, **contract: Any) -> Finalist:
    spec = ModelSpec(
        "prophet",
        TASK,
        24,
        replace(data.contract, **contract),
        needs_known_series=needs_known_series,
    )
    return Finalist("version 3 (prophet)", Transparent(spec, data.stats), NOWHERE, version=3)


def test_the_same_task_on_the_same_columns_is_comparable(data: SeriesArrays) -> None:
    check_comparable(registered(data, season=12, max_gap=9), TASK, data)
    check_comparable(registered(data, units="MW"), TASK, data)


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"freq": "30min"}, "frequency '1h' against '30min'"),
        ({"past": ("temperature",)}, "past .* against"),
        ({"static": ()}, "static"),
        ({"known_future": ()}, "known_future"),
        ({"time_zone": "Europe/Berlin"}, "time_zone 'UTC' against 'Europe/Berlin'"),
        ({"holidays": "DE"}, "holidays None against 'DE'"),
        ({"targets": ("load",)}, "targets"),
    ],
)
def test_another_contract_names_the_difference_and_the_way_out(
    data: SeriesArrays, differs: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        check_comparable(registered(data, **differs), TASK, data)
    assert str(refusal.value).startswith("version 3 (prophet) cannot be judged")
    assert "`name` of its own" in str(refusal.value)


def test_another_unit_or_horizon_cannot_be_compared(data: SeriesArrays) -> None:
    gigawatts = replace(data, contract=replace(data.contract, units="GW"))
    with pytest.raises(ConfigError, match="units 'GW' against 'MW'"):
        check_comparable(registered(data, units="MW"), TASK, gigawatts)
    with pytest.raises(ConfigError, match="horizon 12 against 6"):
        check_comparable(registered(data), replace(TASK, horizon=12), data)


def test_a_model_of_known_series_needs_to_know_every_series(data: SeriesArrays) -> None:
    larger = seasonal_set(n_series=9, length=600)
    check_comparable(registered(data), TASK, larger)
    check_comparable(registered(data, needs_known_series=True), TASK, data)
    with pytest.raises(
        ConfigError, match=r"7 of 9 are new to it: s2, s3, s4, s5, s6, \.\.\."
    ) as no:
        check_comparable(registered(data, needs_known_series=True), TASK, larger)
    for way_out in ("data.path", "flts rollback", "`name` of its own"):
        assert way_out in str(no.value)


def test_a_model_that_has_seen_the_whole_test_span_is_told_beforehand(data: SeriesArrays) -> None:
    whole = replace(data, valid_end=data.lengths - HORIZON)
    early = Finalist(
        "version 2 (seasonal_naive)", fit_fully("seasonal_naive", whole, TASK), NOWHERE
    )
    check_comparable(early, TASK, data)
    seen = replace(data, valid_end=data.lengths - HORIZON + 1)
    late = replace(early, fitted=fit_fully("seasonal_naive", seen, TASK))
    with pytest.raises(ConfigError, match=r"version 2 \(seasonal_naive\) has seen every window"):
        check_comparable(late, TASK, data)
