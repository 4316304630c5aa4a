"""Where training ends and validation ends in each series."""

from __future__ import annotations

from flts_ray.config import SplitConfig
from flts_ray.prepare.clean import Rejected


def split_ends(
    length: int, test_start: int | None, has_test_files: bool, split: SplitConfig
) -> tuple[int, int]:
    """Positions (train_end, valid_end) of a series of `length` steps.

    The test span starts at `test_start` where test files are given, else it is the last
    `split.test` share; validation is the last `split.validation` share of what is left.
    """
    if has_test_files:
        valid_end = length if test_start is None else min(test_start, length)
    else:
        valid_end = length - round(length * split.test)
    return valid_end - round(valid_end * split.validation), valid_end


def check_spans(
    length: int,
    ends: tuple[int, int],
    season: int,
    horizon: int,
    wanted: tuple[bool, bool] = (True, True),
) -> None:
    """Raise Rejected (too_short) unless every span can be used.

    Training needs a season and a horizon; validation and test need a horizon each, unless
    `wanted` says that the split leaves them out.
    """
    train_end, valid_end = ends
    spans = (
        ("training", train_end, season + horizon),
        ("validation", valid_end - train_end, horizon * wanted[0]),
        ("test", length - valid_end, horizon * wanted[1]),
    )
    short = [f"{name} {has} of {needs}" for name, has, needs in spans if has < needs]
    if short:
        raise Rejected(
            "too_short",
            f"its {length} steps leave {', '.join(short)} needed steps; give more rows, or lower "
            "task.horizon or task.season",
        )
