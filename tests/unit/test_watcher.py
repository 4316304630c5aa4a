"""A replica judges the models it holds, and a shadow never shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from flts_ray.config_serve import CanaryConfig
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.observe import Made
from flts_ray.serve.watcher import QUEUE, Watcher
from tests.served import HORIZON, Transparent, plain_contract, served, transparent
from tests.unit.test_live_error import windows

RULES = CanaryConfig(shadow=True, min_windows=10)
CHAMPION = served(transparent(plain_contract(), lookback=10), "1")


class Recorder:
    def __init__(self) -> None:
        self.made: list[Made] = []

    def request(self, route: str, status: int, seconds: float) -> None:
        raise AssertionError("a shadow answers nobody")

    def forecast(self, made: Made) -> None:
        self.made.append(made)


class Watch:
    def __init__(self, rules: CanaryConfig, challenger: ServedModel | None) -> None:
        self.record = Recorder()
        self.dropped: list[tuple[str, str]] = []
        self.now = 0.0
        self.watcher = Watcher(rules, self.record, self._drop, lambda: self.now)
        self.watcher.models(CHAMPION, challenger)

    def _drop(self, model: ServedModel, reason: str) -> None:
        self.dropped.append((model.version, reason))

    def answer(self, at: Windows, by: ServedModel = CHAMPION, seconds: float = 0.01) -> None:
        forecast = by.fitted.forecast(at)
        made = Made("f", "demo", by.version, by.digest, at, forecast, HORIZON, seconds)
        self.watcher.forecast(made)

    def hour_after_hour(self, n: int) -> None:
        for origin in range(100, 100 + n):
            self.answer(windows(origin, ("a", "b")))
        self.watcher.drain()


@pytest.fixture
def made_watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    monkeypatch.setattr("flts_ray.serve.watcher.PER_SECOND", 10**9)
    made: list[Watch] = []
    yield made
    for one in made:
        one.watcher.close()


def challenger(shift: float = 0.0, refused: tuple[str, ...] = ()) -> ServedModel:
    made = transparent(plain_contract(), lookback=10, shift=shift, refused=refused)
    return served(made, "2")


def test_a_shadow_forecasts_what_the_champion_did_and_is_recorded(
    made_watches: list[Watch],
) -> None:
    watch = Watch(RULES, challenger(0.5))
    made_watches.append(watch)
    watch.hour_after_hour(30)
    assert [one.role for one in watch.record.made] == ["shadow"] * 30
    assert {one.version for one in watch.record.made} == {"2"}
    error = {one.labels["role"]: one.value for one in watch.watcher.readings()}
    # The truth rises by 2 a step and both say the last value: errors 2 and 1.5 over a scale of 4.
    assert error == {"champion": 0.5, "challenger": 0.375}
    assert watch.dropped == []


def test_a_shadow_that_looks_further_back_is_told_of_once(made_watches: list[Watch]) -> None:
    longer = served(transparent(plain_contract(), lookback=11), "2")
    watch = Watch(RULES, longer)
    made_watches.append(watch)
    with capture_logs() as logs:
        watch.hour_after_hour(3)
    assert [one["event"] for one in logs] == ["shadow_cannot_run"]
    assert "looks back 11 steps and the champion 10" in logs[0]["problem"]
    assert watch.record.made == [] and watch.dropped == []


def test_a_worse_shadow_is_dropped_once(made_watches: list[Watch]) -> None:
    watch = Watch(RULES, challenger(-3.0))
    made_watches.append(watch)
    watch.hour_after_hour(40)
    ((version, reason),) = watch.dropped
    assert version == "2" and "scaled error" in reason
    assert len(watch.record.made) < 40


def test_a_shadow_that_fails_is_dropped(made_watches: list[Watch]) -> None:
    watch = Watch(RULES, challenger(refused=("b",)))
    made_watches.append(watch)
    watch.hour_after_hour(3)
    ((_, reason),) = watch.dropped
    assert "cannot forecast 'a'" in reason


def test_a_slow_shadow_is_dropped(made_watches: list[Watch]) -> None:
    watch = Watch(RULES, None)
    made_watches.append(watch)

    class Slow(Transparent):
        def forecast(self, at: Windows) -> object:  # type: ignore[override]
            watch.now += 1.0
            return super().forecast(at)

    plain = transparent(plain_contract(), lookback=10)
    slow = served(Slow(plain.spec, plain.stats, 0.5), "2")
    watch.watcher.models(CHAMPION, slow)
    watch.hour_after_hour(8 * RULES.min_windows + 1)
    ((_, reason),) = watch.dropped
    assert "1000.0 ms" in reason


def test_a_canary_is_judged_on_its_own_series(made_watches: list[Watch]) -> None:
    second = challenger(-6.0)
    watch = Watch(CanaryConfig(share=0.5, min_windows=10), second)
    made_watches.append(watch)
    for origin in range(100, 130):
        watch.answer(windows(origin, ("a",)))
        watch.answer(windows(origin, ("b",)), second)
    watch.watcher.drain()
    assert [version for version, _ in watch.dropped] == ["2"]
    assert watch.record.made == []


def test_without_a_challenger_the_champion_is_still_judged(made_watches: list[Watch]) -> None:
    watch = Watch(CanaryConfig(), None)
    made_watches.append(watch)
    watch.hour_after_hour(5)
    assert [one.value for one in watch.watcher.readings()] == [0.5]
    watch.watcher.models(challenger(), None)  # promoted: what the old one did does not count
    assert watch.watcher.readings() == []


def test_only_so_many_are_judged_a_second(
    made_watches: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(CanaryConfig(), None)
    made_watches.append(watch)
    monkeypatch.setattr("flts_ray.serve.watcher.PER_SECOND", 3)
    for _ in range(5):
        watch.answer(windows(100))
    assert watch.watcher.skipped == 2
    watch.now = 1.0
    watch.answer(windows(100))
    assert watch.watcher.skipped == 2
    watch.watcher.drain()


def test_a_busy_watcher_skips_and_counts(
    made_watches: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(CanaryConfig(), None)
    made_watches.append(watch)
    with watch.watcher._some:  # its thread cannot take any
        for _ in range(QUEUE + 5):
            watch.answer(windows(100))
        assert watch.watcher.skipped == 5
    watch.watcher.drain()
