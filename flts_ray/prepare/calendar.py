"""Calendar columns: what the local clock and calendar say about an instant.

Design choices: a function of the instant alone, so that serving builds the same bits from a
stamp that preparation built from a table; each cycle is a sine and a cosine, so that its end
meets its beginning; days are local days, looked up once each, because a panel of millions of
rows holds only thousands of them.
"""

from __future__ import annotations

import difflib
from functools import lru_cache

import numpy as np

from flts_ray.errors import ConfigError
from flts_ray.panel import US_PER_DAY, US_PER_SECOND, Frequency, to_local_us

MINUTE_COLUMNS = ("minute_sin", "minute_cos")
DAY_COLUMNS = ("weekday_sin", "weekday_cos", "yearday_sin", "yearday_cos")
HOLIDAY_COLUMN = "holiday"
_MINUTES_PER_DAY = 1440
_EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday, three days after Monday


def calendar_columns(freq: Frequency | str, holidays: str | None = None) -> tuple[str, ...]:
    """Names of the columns of `calendar_features`, in its order.

    Minute of day only where a step is shorter than a day; `holiday` only with a country.
    """
    minute = MINUTE_COLUMNS if _step_us(freq) < US_PER_DAY else ()
    return minute + DAY_COLUMNS + ((HOLIDAY_COLUMN,) if holidays else ())


def calendar_features(
    ds_us: np.ndarray, time_zone: str, freq: Frequency | str, holidays: str | None = None
) -> np.ndarray:
    """Calendar columns of instants.

    ds_us: int64 UTC microseconds, any shape. Returns float32 of that shape plus one axis, in
    the order of `calendar_columns`: cycles as sine and cosine within [-1, 1], holiday as 0 or 1,
    all of the local day and minute in `time_zone`. Raises ConfigError for an unknown country.
    """
    wall = to_local_us(np.asarray(ds_us, dtype=np.int64), time_zone)
    days, inverse = np.unique(wall // US_PER_DAY, return_inverse=True)
    columns = [_day_table(days, holidays)[inverse.reshape(wall.shape)]]
    if _step_us(freq) < US_PER_DAY:
        minute = wall % US_PER_DAY // (60 * US_PER_SECOND)
        columns.insert(0, _circle(np.arange(_MINUTES_PER_DAY), _MINUTES_PER_DAY)[minute])
    return np.concatenate(columns, axis=-1)


def shown_columns(
    columns: tuple[str, ...], freq: Frequency | str, training_steps: int
) -> tuple[str, ...]:
    """The columns whose cycle a training span of this length shows at least twice.

    A shorter span cannot tell a cycle from a trend: the sine of the day of the year, fitted on
    three weeks, is a slope that the forecast would follow into the next season.
    """
    days = training_steps * _step_us(freq) / US_PER_DAY
    needed = {"minute": 2, "weekday": 14, "yearday": 730}
    return tuple(name for name in columns if days >= needed.get(name.split("_")[0], 0))


def check_holidays(code: str) -> None:
    """Raise ConfigError with a suggestion unless `code` names a holiday calendar.

    code: a country (`AU`) or a country and its subdivision (`AU-VIC`) of the `holidays` library.
    """
    _holidays_of(code, 2000)


def _unknown(code: str) -> str:
    from holidays import list_supported_countries

    known = list_supported_countries(include_aliases=False)
    country, _, part = code.partition("-")
    names = [f"{country}-{name}" for name in known.get(country, ())] if part else []
    near = difflib.get_close_matches(code if names else code.upper(), names or [*known], 1, 0.3)
    hint = f"did you mean {near[0]}?" if near else "write a country code such as AU or AU-VIC"
    return f"prepare.holidays: {code!r} is no country or subdivision code; {hint}"


def _step_us(freq: Frequency | str) -> int:
    return (Frequency(freq) if isinstance(freq, str) else freq).step_us


def _circle(phase: np.ndarray, period: int | np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * phase / period
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def _day_table(days: np.ndarray, holidays: str | None) -> np.ndarray:
    """Day columns of local days, int64 [n] days since the epoch. Returns float32 [n, C]."""
    dates = days.astype("datetime64[D]")
    years = dates.astype("datetime64[Y]")
    first = years.astype("datetime64[D]")
    length = ((years + 1).astype("datetime64[D]") - first).astype(np.int64)
    columns = [
        _circle((days + _EPOCH_WEEKDAY) % 7, 7),
        _circle((dates - first).astype(np.int64), length),
    ]
    if holidays:
        off = [
            day in _holidays_of(holidays, int(year))
            for day, year in zip(days.tolist(), years.astype(np.int64) + 1970, strict=True)
        ]
        columns.append(np.asarray(off, dtype=np.float32)[:, None])
    return np.concatenate(columns, axis=-1)


@lru_cache(maxsize=1024)
def _holidays_of(code: str, year: int) -> frozenset[int]:
    """Holidays of one year as days since the epoch. Raises ConfigError for an unknown code."""
    from holidays import country_holidays

    country, _, part = code.partition("-")
    try:
        dates = country_holidays(country, subdiv=part or None, years=year, expand=False)
    except NotImplementedError:
        raise ConfigError(_unknown(code)) from None
    return frozenset(int(np.datetime64(date, "D").astype(np.int64)) for date in dates)
