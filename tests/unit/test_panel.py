"""Frequencies, wall clocks and daylight-saving days."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import ConfigError
from flts_ray.panel import (
    US_PER_DAY,
    Contract,
    Frequency,
    from_local_us,
    steps_after,
    to_local_us,
)

HOUR = 3_600_000_000
ZONES = ["UTC", "Europe/Berlin", "Australia/Melbourne", "Australia/Lord_Howe", "Asia/Kathmandu"]
INSTANTS = st.integers(0, 4_000_000_000).map(lambda s: s * 1_000_000)


def instant(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("text", "seconds", "season"),
    [
        ("2min", 120, 720),
        ("30min", 1800, 48),
        ("h", 3600, 24),
        ("1D", 86400, 7),
        ("W", 604800, 52),
        ("2W", 1209600, 26),
        ("30D", 2592000, 12),
    ],
)
def test_a_frequency_knows_its_step_and_season(text: str, seconds: int, season: int) -> None:
    assert Frequency(text).step_us == seconds * 1_000_000
    assert Frequency(text).default_season == season


@pytest.mark.parametrize("text", ["", "0h", "1x", "-1h", "1.5h", "1M"])
def test_other_frequencies_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="30min"):
        Frequency(text)


@given(st.integers(1, 100_000))
def test_a_step_and_its_frequency_are_inverse(seconds: int) -> None:
    assert Frequency.of_step(seconds * 1_000_000).step_us == seconds * 1_000_000


@pytest.mark.parametrize("zone", ZONES)
@given(instants=st.lists(INSTANTS, max_size=20))
def test_wall_clocks_agree_with_the_standard_library(zone: str, instants: list[int]) -> None:
    ds = np.asarray(instants, dtype=np.int64)
    wall = to_local_us(ds, zone)
    for us, shown in zip(instants, wall.tolist(), strict=True):
        local = datetime.fromtimestamp(us // 1_000_000, tz=ZoneInfo(zone)).replace(tzinfo=None)
        assert shown // 1_000_000 == int((local - datetime(1970, 1, 1)).total_seconds())


@pytest.mark.parametrize("zone", ZONES)
@given(us=INSTANTS)
def test_going_to_the_wall_clock_and_back_is_exact_outside_the_repeated_hour(
    zone: str, us: int
) -> None:
    ds = np.asarray([us])
    back = from_local_us(to_local_us(ds, zone), zone)
    assert back[0] == us or (
        back[0] < us and to_local_us(back, zone)[0] == to_local_us(ds, zone)[0]
    )


def test_daily_steps_stay_at_local_midnight_when_the_clock_changes() -> None:
    contract = Contract(freq="1D", season=7, time_zone="Europe/Berlin")
    start = instant("2024-03-30 00:00", "Europe/Berlin")
    days = steps_after(np.asarray(start), np.arange(4), contract)
    assert np.diff(days).tolist() == [24 * HOUR, 23 * HOUR, 24 * HOUR]
    assert (to_local_us(days, "Europe/Berlin") % US_PER_DAY == 0).all()


def test_hourly_steps_are_instants_and_ignore_the_clock_change() -> None:
    contract = Contract(freq="1h", season=24, time_zone="Europe/Berlin")
    start = instant("2024-10-27 00:00", "Europe/Berlin")
    hours = steps_after(np.asarray(start), np.arange(6), contract)
    assert set(np.diff(hours).tolist()) == {HOUR}


def test_a_contract_survives_json() -> None:
    contract = Contract("1h", 24, targets=("down", "up"), calendar=("a",), known_future=("b",))
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.future == ("a", "b")
