from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb

from flts_ray.picture import BAND_80, BAND_95, BLUE, Picture, draw

HOUR_US = 3_600_000_000
START_US = 1_419_600_000_000_000


def picture(history: int = 96, horizon: int = 24) -> Picture:
    t = np.arange(history + horizon)
    y = 4 + np.sin(2 * np.pi * t / 24)
    us, ahead = START_US + HOUR_US * t, y[history:] + 0.2
    return Picture(
        title="victoria $5 to $6",
        units="GW",
        time_zone="Australia/Melbourne",
        history_us=us[:history],
        history=y[:history],
        ds_us=us[history:],
        median=ahead,
        lower_80=ahead - 0.5,
        upper_80=ahead + 0.5,
        lower_95=ahead - 1.0,
        upper_95=ahead + 1.0,
        actual=y[history:],
    )


def pixels(path: Path) -> np.ndarray:
    """Colours of a picture, float [height, width, 3]."""
    return np.asarray(image.imread(path))[..., :3]


def places(shown: np.ndarray, colour: str) -> np.ndarray:
    """Columns that hold the colour, in pixels from the left."""
    near = np.abs(shown - np.array(to_rgb(colour))).max(axis=2) < 0.02
    return np.flatnonzero(near.any(axis=0))


def darkness(colour: str) -> float:
    return float(1 - np.array(to_rgb(colour)) @ [0.299, 0.587, 0.114])


def test_bands_and_median_lie_right_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "forecast.png"
    draw(picture(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    shown = pixels(path)
    assert shown.shape[:2] == (690, 1650)
    plot = shown[: int(0.85 * len(shown))]
    for colour in (BAND_80, BAND_95, BLUE):
        columns = places(plot, colour)
        assert columns.min() > 0.7 * shown.shape[1]


def test_bands_can_be_told_apart_without_colour() -> None:
    shades = [darkness(colour) for colour in ("#ffffff", BAND_95, BAND_80, BLUE)]
    assert np.all(np.diff(shades) > 0.1)


def test_what_happened_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    known = picture()
    assert known.actual is not None
    unknown = replace(known, actual=None)
    partly = replace(known, actual=np.where(np.arange(24) < 12, known.actual, np.nan))
    shown = []
    for name, one in [("known", known), ("unknown", unknown), ("partly", partly)]:
        draw(one, tmp_path / f"{name}.png")
        shown.append(pixels(tmp_path / f"{name}.png"))
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


@pytest.mark.parametrize(("history", "horizon"), [(1, 1), (30, 1), (2000, 300)])
def test_any_length_can_be_drawn(tmp_path: Path, history: int, horizon: int) -> None:
    draw(picture(history, horizon), tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").shape[1] == 1650


def test_times_are_local(tmp_path: Path) -> None:
    for zone in ("Australia/Melbourne", "UTC"):
        draw(replace(picture(), time_zone=zone), tmp_path / f"{zone[:3]}.png")
    assert not np.array_equal(pixels(tmp_path / "Aus.png"), pixels(tmp_path / "UTC.png"))
