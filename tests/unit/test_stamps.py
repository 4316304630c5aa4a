from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.sources.stamps import parse_stamps, repeated_hours, resolve_ambiguous

ZONES = ["UTC", "Europe/Berlin", "Australia/Melbourne", "America/New_York", "Australia/Lord_Howe"]
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2150, 1, 1))
OFFSETS = st.integers(-14 * 4, 14 * 4).map(lambda q: timezone(timedelta(minutes=15 * q)))


def us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def utc(text: str, zone: str = "UTC") -> str | None:
    found, bad = parse_stamps(pa.array([text]), zone)
    return None if bad[0] else moment(found[0])


def moment(value: int) -> str:
    return str(np.datetime64(int(value), "us").astype("datetime64[s]"))


def walls(*texts: str) -> np.ndarray:
    return np.array(texts, dtype="datetime64[us]").astype(np.int64)


@settings(deadline=None)
@given(st.lists(st.tuples(MOMENTS, OFFSETS), min_size=1, max_size=20))
def test_text_with_offsets_comes_back_to_the_microsecond(
    pairs: list[tuple[datetime, timezone]],
) -> None:
    moments = [naive.replace(tzinfo=offset) for naive, offset in pairs]
    found, bad = parse_stamps(pa.array([m.isoformat() for m in moments]), "Europe/Berlin")
    assert not bad.any()
    assert found.tolist() == [us(m) for m in moments]


@settings(deadline=None)
@given(st.lists(MOMENTS, min_size=1, max_size=20), st.sampled_from(ZONES))
def test_wall_clock_text_is_read_as_the_standard_library_does(
    moments: list[datetime], zone: str
) -> None:
    found, bad = parse_stamps(pa.array([str(m) for m in moments]), zone)
    assert not bad.any()
    assert found.tolist() == [us(m.replace(tzinfo=ZoneInfo(zone))) for m in moments]


@settings(deadline=None)
@given(
    st.lists(st.datetimes(datetime(1981, 1, 1), datetime(2150, 1, 1)), min_size=1, max_size=20),
    st.sampled_from([(1, 10**6), (10**3, 10**3), (10**6, 1)]),
    st.booleans(),
)
def test_epoch_numbers_by_magnitude(
    moments: list[datetime], unit: tuple[int, int], as_text: bool
) -> None:
    per_second, in_us = unit
    exact = [us(m.replace(tzinfo=UTC)) // in_us * in_us for m in moments]
    column = pa.array([value // in_us for value in exact])
    found, bad = parse_stamps(column.cast(pa.string()) if as_text else column, "Europe/Berlin")
    assert not bad.any() and per_second * in_us == 10**6
    assert found.tolist() == exact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-01-05", "2020-01-05T00:00:00"),
        ("2020-01-05 07", "2020-01-05T07:00:00"),
        ("2020-01-05 07:30", "2020-01-05T07:30:00"),
        ("2020/1/5 7:30", "2020-01-05T07:30:00"),
        (" 2020-01-05T07:30:59Z ", "2020-01-05T07:30:59"),
        ("2020-01-05T07:30:59.123456789+0100", "2020-01-05T06:30:59"),
        ("2020-01-05 07:30 -05", "2020-01-05T12:30:00"),
        ("2020-12-31 24:00", "2021-01-01T00:00:00"),
        ("2020-02-29", "2020-02-29T00:00:00"),
        ("1388534400", "2014-01-01T00:00:00"),
        ("1388534400000000000", "2014-01-01T00:00:00"),
    ],
)
def test_usual_forms(text: str, expected: str) -> None:
    assert utc(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "2021-02-29", "2020-13-01", "2020-00-10", "2020-01-05 24:01", "2020-01-05 25:00",
        "2020-01-05 07:60", "05.01.2020", "05/01/2020", "20200105", "2020010507", "202001050730",
        "9999-12-31", "1066-10-14", "12", "1e9", "2020-01-05T07:30+99:00", "99999999999999999999",
    ],
)  # fmt: skip
def test_what_is_no_stamp_or_no_certain_one(text: str) -> None:
    assert utc(text) is None


def test_one_bad_value_spoils_no_other() -> None:
    texts = ["2020-01-05 07:30", None, "oops", "2020-01-05T07:30:00+01:00", "2020-02-30"]
    found, bad = parse_stamps(pa.chunked_array([texts[:2], texts[2:]]), "Europe/Berlin")
    assert bad.tolist() == [False, True, True, False, True]
    assert [moment(v) for v in found[[0, 3]]] == ["2020-01-05T06:30:00"] * 2


def test_typed_columns() -> None:
    wall = datetime(2020, 7, 1, 12)
    for unit in ("s", "ms", "us", "ns"):
        naive, _ = parse_stamps(pa.array([wall], pa.timestamp(unit)), "Europe/Berlin")
        aware, _ = parse_stamps(pa.array([wall], pa.timestamp(unit, "UTC")), "Europe/Berlin")
        assert (moment(naive[0]), moment(aware[0])) == (
            "2020-07-01T10:00:00",
            "2020-07-01T12:00:00",
        )
    for kind in (pa.date32(), pa.date64()):
        day, bad = parse_stamps(pa.array([date(2020, 7, 1), None], kind), "Australia/Melbourne")
        assert (moment(day[0]), bad.tolist()) == ("2020-06-30T14:00:00", [False, True])
    text = pa.array(["2020-07-01", "2020-07-01"]).dictionary_encode()
    assert not parse_stamps(text, "UTC")[1].any()
    for wrong in (pa.array([1.5]), pa.array([True]), pa.nulls(1), pa.array([0]), pa.array([[1]])):
        assert parse_stamps(wrong, "UTC")[1].tolist() == [True]
    assert parse_stamps(pa.array([10**15], pa.timestamp("s")), "UTC")[1].tolist() == [True]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2020-10-25", 25),
        ("Europe/Berlin", "2020-03-29", 23),
        ("Australia/Melbourne", "2014-04-06", 25),
        ("Australia/Melbourne", "2014-10-05", 23),
    ],
)
def test_a_day_of_wall_clock_rows_becomes_a_regular_grid(zone: str, day: str, hours: int) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    grid = us(start) + np.arange(2 * hours) * 1_800_000_000
    local = [datetime.fromtimestamp(v / 1e6, ZoneInfo(zone)).replace(tzinfo=None) for v in grid]
    wall = walls(*(m.isoformat() for m in local))
    assert resolve_ambiguous(wall, np.zeros(wall.size, np.int64), zone).tolist() == grid.tolist()
    newest_first = resolve_ambiguous(wall[::-1], np.zeros(wall.size, np.int64), zone)
    assert newest_first[::-1].tolist() == grid.tolist()


def second_pass(*clock: str, series: list[int] | None = None) -> list[bool]:
    """Which rows of the repeated hour of 25 October 2020 in Berlin are its second pass."""
    wall = walls(*(f"2020-10-25T{time}" for time in clock))
    codes = np.array(series or [0] * wall.size)
    first = resolve_ambiguous(wall, np.arange(wall.size), "Europe/Berlin")
    return (resolve_ambiguous(wall, codes, "Europe/Berlin") > first).tolist()


def test_repeated_hour_in_file_order() -> None:
    assert second_pass("01:30", "02:00", "02:30", "02:00", "02:30", "03:00") == [
        False, False, False, True, True, False,
    ]  # fmt: skip
    assert second_pass("02:00", "02:00") == [False, True]
    assert second_pass("02:00", "02:00", "02:30") == [False] * 3
    assert second_pass("02:00", "02:00", "02:30", "02:00") == [False, False, False, True]
    assert second_pass("02:05", "02:50", "02:10", "02:55") == [False, False, True, True]
    assert second_pass("02:30", "02:00") == [False, False]
    assert second_pass("02:30") == [False]


def test_repeated_hour_of_interleaved_series() -> None:
    clock = ("02:00", "02:00", "02:30", "02:30", "02:00", "02:30")
    assert second_pass(*clock, series=[0, 1, 0, 1, 0, 0]) == [False] * 4 + [True] * 2


def test_repeated_hours_of_a_half_hour_change() -> None:
    wall = walls("2020-04-05T01:15", "2020-04-05T01:30", "2020-04-05T01:59", "2020-04-05T02:00")
    mask, later = repeated_hours(wall, "Australia/Lord_Howe")
    assert mask.tolist() == [False, True, True, False]
    assert later.tolist() == [0, 1_800_000_000, 1_800_000_000, 0]
    assert not repeated_hours(wall, "UTC")[0].any()


@pytest.mark.parametrize("zone", ["+18:00", "+19:00", "-23:59", "+23:00", "+24:00", "+23:60"])
def test_an_offset_is_good_or_bad_in_any_company(zone: str) -> None:
    text = f"2020-01-05T07:30:00{zone}"
    alone, alone_bad = parse_stamps(pa.array([text]), "UTC")
    mixed, mixed_bad = parse_stamps(pa.array([text, "2020/1/5"]), "UTC")
    assert (alone[0], alone_bad[0]) == (mixed[0], mixed_bad[0])
    assert alone_bad[0] == (zone in ("+24:00", "+23:60"))
