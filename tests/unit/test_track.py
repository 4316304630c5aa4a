"""Bands that follow what they missed, whatever the data do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.track import EXPERTS, Served, Track, follow

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
NORMAL = np.array([-1.96, -1.2816, 0.0, 1.2816, 1.96])
H = 4


def served(errors: np.ndarray, shift: np.ndarray, louder: np.ndarray | None = None) -> Served:
    """Windows [n, H] of one slot against normal bands that were moved by `shift`."""
    n = len(errors)
    series = np.zeros(n, np.int64) if louder is None else np.arange(n) % len(louder)
    wide = np.ones(n) if louder is None else np.exp(louder[series])
    scores = errors[..., None] / wide[:, None, None] - NORMAL - shift
    return Served(scores, np.zeros(n, np.int64), series, 1.0)


def days(
    size: np.ndarray, seed: int, lean: float = 0.0, windows: int = 2
) -> tuple[np.ndarray, Track]:
    """Whether values lay in the 80 % and the 95 % band on each day, [days, 2]; day by day errors
    of this size, whose steps go together."""
    rng, track = np.random.default_rng(seed), Track.none(H, 5)
    inside = np.empty((len(size), 2))
    for day, spread in enumerate(size):
        common = np.sqrt(0.5) * rng.standard_normal((windows, 1))
        error = lean + spread * (common + np.sqrt(0.5) * rng.standard_normal((windows, H)))
        found = served(error, track.shift)
        beyond = found.scores
        inside[day] = [
            ((beyond[..., low] >= 0) & (beyond[..., -1 - low] <= 0)).mean() for low in (1, 0)
        ]
        track = follow(track, found, LEVELS, 1, own=False).track
    return inside, track


def test_without_a_score_nothing_moves() -> None:
    track, none = Track.none(H, 5), np.zeros((0, H))
    found = follow(track, served(none, track.shift), LEVELS, 3, own=True)
    assert found.track is track and not found.by.any() and not found.louder.any()
    unseen = follow(track, served(np.full((3, H), np.nan), track.shift), LEVELS, 3, own=True)
    assert unseen.track is track and not unseen.by.any()


@pytest.mark.parametrize(
    ("name", "size", "lean"),
    [
        ("still", np.ones(400), 0.0),
        ("three times as wide", np.where(np.arange(400) < 100, 1.0, 3.0), 0.0),
        ("a third as wide", np.where(np.arange(400) < 100, 1.0, 1 / 3), 0.0),
        ("growing", np.geomspace(1, 8, 400), 0.0),
        ("in waves", np.exp(np.sin(np.arange(400) / 20)), 0.0),
        ("leaning", np.ones(400), 1.5),
    ],
)
def test_in_the_long_run_a_band_holds_what_it_promises(
    name: str, size: np.ndarray, lean: float
) -> None:
    found = np.mean([days(size, seed, lean)[0].mean(axis=0) for seed in range(3)], axis=0)
    assert abs(found[0] - 0.8) < 0.035, name
    assert abs(found[1] - 0.95) < 0.02, name


def test_where_nothing_drifts_little_is_lost() -> None:
    _, track = days(np.ones(400), 0)
    assert np.abs(track.shift).max() < 1.0
    assert np.abs(track.shift[:, 2]).max() < 0.2


def test_a_lean_is_followed_only_where_it_pays() -> None:
    by_lean = np.array([lean > 0 for _, lean in EXPERTS])
    assert days(np.ones(300), 1, lean=1.5)[1].weights[by_lean].sum() > 0.9
    assert days(np.ones(300), 1, lean=1.5)[1].shift[:, 2].mean() > 0.8


def test_one_wild_day_moves_a_band_by_a_bounded_step() -> None:
    track = Track.none(H, 5)
    for day in range(20):
        calm = np.random.default_rng(day).standard_normal((4, H))
        track = follow(track, served(calm, track.shift), LEVELS, 1, own=False).track
    mild, wild = (
        follow(track, served(np.full((2, H), size), track.shift), LEVELS, 1, own=False).by
        for size in (20.0, 1e9)
    )
    np.testing.assert_allclose(wild, mild, rtol=0.2)
    assert 0.1 < wild[:, -1].max() < 4.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-6, 1e6),
    levels=st.sampled_from([(0.5,), (0.1, 0.9), (0.05, 0.5, 0.6), LEVELS]),
    n=st.integers(1, 7),
)
def test_whatever_comes_bands_stay_finite(
    seed: int, size: float, levels: tuple[float, ...], n: int
) -> None:
    rng, q = np.random.default_rng(seed), len(levels)
    track, louder = Track.none(3, q), np.zeros(2)
    for _ in range(6):
        error = size * rng.standard_cauchy((n, 3))
        error[rng.random((n, 3)) < 0.3] = np.nan
        scores = error[..., None] - np.linspace(-1, 1, q)
        given = Served(scores, rng.integers(0, 3, n), rng.integers(0, 2, n), 0.5)
        step = follow(track, given, levels, 2, own=True)
        np.testing.assert_allclose(step.by, step.track.shift - track.shift, atol=1e-9 * size)
        track, louder = step.track, louder + step.louder
    assert np.isfinite(track.shift).all() and np.isfinite(louder).all()
    assert track.weights.sum() == pytest.approx(1.0)


def test_steps_borrow_from_their_neighbours_more_than_from_afar() -> None:
    track = Track.none(24, 5)
    error = np.zeros((40, 24))
    error[:, :6] = np.random.default_rng(0).standard_normal((40, 6)) * 9
    error[:, 6:] = np.random.default_rng(1).standard_normal((40, 18))
    rows = np.zeros(40, np.int64)
    by = follow(track, Served(error[..., None] - NORMAL, rows, rows, 1.0), LEVELS, 1, own=False).by
    assert by[0, 3] > 2 * by[12, 3]
    # The far ones widen too, because all steps have a say.
    far = Served(error[:, 6:, None] - NORMAL, rows, rows, 1.0)
    alone = follow(Track.none(18, 5), far, LEVELS, 1, own=False).by
    assert by[12:, 3].mean() > alone[6:, 3].mean() + 0.02


def test_a_series_with_larger_errors_gets_wider_bands_of_its_own() -> None:
    rng, track, louder = np.random.default_rng(0), Track.none(H, 5), np.zeros(2)
    held = []
    for _ in range(200):
        error = rng.standard_normal((8, H)) * np.where(np.arange(8) % 2, 2.0, 0.5)[:, None]
        found = served(error, track.shift, louder)
        held.append(
            [(found.scores[i::2, :, 1] >= 0) & (found.scores[i::2, :, 3] <= 0) for i in (0, 1)]
        )
        step = follow(track, found, LEVELS, 2, own=True)
        track, louder = step.track, louder + step.louder
    assert louder[1] - louder[0] == pytest.approx(np.log(4), abs=0.5)
    late = np.array(held[100:]).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(late, 0.8, atol=0.05)


def test_one_series_alone_has_no_width_of_its_own() -> None:
    track = Track.none(H, 5)
    error = 5 * np.random.default_rng(0).standard_normal((20, H))
    assert not follow(track, served(error, track.shift), LEVELS, 1, own=True).louder.any()


def test_what_few_series_say_is_put_down_to_them() -> None:
    track, error = Track.none(H, 5), 5 * np.random.default_rng(0).standard_normal((20, H))
    all_of_them = served(error, track.shift)
    few = replace(all_of_them, share=0.25)
    told, whole = (follow(track, one, LEVELS, 4, own=True) for one in (few, all_of_them))
    assert told.louder[0] > 0 and not told.louder[1:].any() and not whole.louder.any()
    np.testing.assert_allclose(told.by, whole.by / 4, rtol=1e-6)
    # Without widths of their own, they speak for all.
    np.testing.assert_array_equal(follow(track, few, LEVELS, 4, own=False).by, whole.by)


def test_stored_tracks_come_back() -> None:
    _, track = days(np.full(20, 2.0), 0)
    found = Track.from_arrays(track.arrays())
    np.testing.assert_array_equal(found.theta, track.theta)
    np.testing.assert_array_equal(found.shift, track.shift)
    assert found.gap == track.gap


def test_an_artifact_that_kept_scores_begins_anew() -> None:
    old: dict[str, np.ndarray] = {"scores": np.zeros((5, H, 5)), "shift": np.ones((H, 5))}
    assert not Track.from_arrays(old).theta.any()


@pytest.mark.parametrize(
    "change",
    [
        {"theta": np.zeros((1, H, 5))},
        {"loss": np.zeros(1)},
        {"sizes": np.array([-1.0, 0.0])},
        {"theta": np.full((len(EXPERTS), H, 5), np.nan)},
    ],
)
def test_damaged_tracks_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="tracks"):
        Track.from_arrays({**Track.none(H, 5).arrays(), **change})
