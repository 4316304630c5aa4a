"""Calendar columns follow the local clock."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import ConfigError
from flts_ray.prepare.calendar import calendar_columns, calendar_features, check_holidays


def us(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000


def column(
    moments: list[datetime], name: str, zone: str, holidays: str | None = None
) -> list[float]:
    made = calendar_features(np.array([us(m) for m in moments]), zone, "30min", holidays)
    return made[:, calendar_columns("30min", holidays).index(name)].tolist()


def test_columns_match_features_for_every_kind_of_step() -> None:
    for freq, minute in (("30min", True), ("1D", False), ("1W", False)):
        for holidays in (None, "DE"):
            names = calendar_columns(freq, holidays)
            assert ("minute_sin" in names) == minute
            assert ("holiday" in names) == (holidays is not None)
            ds = np.zeros((2, 3), dtype=np.int64)
            made = calendar_features(ds, "UTC", freq, holidays)
            assert made.shape == (2, 3, len(names))
            assert made.dtype == np.float32


def test_no_instants_give_no_rows() -> None:
    assert calendar_features(np.zeros(0, np.int64), "Europe/Berlin", "1h", "DE").shape == (0, 7)


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", date(2024, 3, 31)),
        ("Europe/Berlin", date(2024, 10, 27)),
        ("Australia/Melbourne", date(2024, 10, 6)),
        ("Australia/Melbourne", date(2024, 4, 7)),
    ],
)
def test_daylight_saving_days_follow_the_wall_clock(zone: str, day: date) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    moments = [start + timedelta(minutes=30 * i) for i in range(60)]
    local = [m.astimezone(ZoneInfo(zone)) for m in moments]
    angle = [2 * np.pi * (m.hour * 60 + m.minute) / 1440 for m in local]
    assert column(moments, "minute_sin", zone) == pytest.approx(np.sin(angle), abs=1e-6)
    assert column(moments, "minute_cos", zone) == pytest.approx(np.cos(angle), abs=1e-6)
    week = [2 * np.pi * m.weekday() / 7 for m in local]
    assert column(moments, "weekday_sin", zone) == pytest.approx(np.sin(week), abs=1e-6)


@given(st.datetimes(datetime(1980, 1, 1), datetime(2060, 1, 1)))
def test_day_of_year_is_the_local_one(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    local = moment.astimezone(ZoneInfo("Australia/Melbourne"))
    length = date(local.year, 12, 31).timetuple().tm_yday
    angle = 2 * np.pi * (local.timetuple().tm_yday - 1) / length
    made = column([moment], "yearday_cos", "Australia/Melbourne")
    assert made == pytest.approx([np.cos(angle)], abs=1e-6)


def test_holidays_are_local_days() -> None:
    christmas = datetime(2023, 12, 25, tzinfo=ZoneInfo("Australia/Melbourne"))
    moments = [christmas - timedelta(minutes=30), christmas, christmas + timedelta(days=3)]
    assert column(moments, "holiday", "Australia/Melbourne", "AU") == [0.0, 1.0, 0.0]


def test_subdivision_has_its_own_holidays() -> None:
    cup_day = [datetime(2023, 11, 7, 3, tzinfo=UTC)]
    assert column(cup_day, "holiday", "Australia/Melbourne", "AU-VIC") == [1.0]
    assert column(cup_day, "holiday", "Australia/Melbourne", "AU-NSW") == [0.0]


def test_one_instant_gives_the_same_bits_as_many() -> None:
    ds = np.arange(0, 400) * 7_000_000_000 * 13
    many = calendar_features(ds, "Europe/Berlin", "1h", "DE")
    one = calendar_features(ds[317:318], "Europe/Berlin", "1h", "DE")
    assert many[317:318].tobytes() == one.tobytes()


@pytest.mark.parametrize(
    ("code", "hint"), [("AU-VCI", "AU-VIC"), ("de", "DE"), ("DEE-BY", "did you mean")]
)
def test_unknown_code_is_refused_with_a_suggestion(code: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        check_holidays(code)
    with pytest.raises(ConfigError, match=hint):
        calendar_features(np.zeros(1, np.int64), "UTC", "1h", code)


def test_known_codes_pass() -> None:
    for code in ("AU-VIC", "AUS", "DE"):
        check_holidays(code)
