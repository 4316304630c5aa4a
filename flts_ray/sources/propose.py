"""A commented configuration for a file nobody has described yet.

Design choices: every guess is written down as one, for the user to correct; the horizon is a
season where the file holds enough of them to judge a model, with a longer test span or less where
it does not; the text is
read back by the configuration's own rules before it is handed out.
"""

from __future__ import annotations

import re
from math import gcd
from pathlib import PurePosixPath
from typing import Any

import yaml

from flts_ray.config import parse_config
from flts_ray.panel import Frequency
from flts_ray.sources.guess import Guess, guess_columns

MOST_STEPS = 48
"""Longest horizon that is proposed; every step costs every model."""
VALIDATION = 0.15
"""Share that is proposed, of what the test span leaves."""
TESTS = (0.15, 0.2, 0.25)
"""Shares of a series that the test span may have; the first that holds enough seasons."""
ORIGINS = 8
"""Forecasts beside each other that the test span should hold; fewer are no evidence."""


def model_name(path: str) -> str:
    """A registry name made of the file's or folder's."""
    parts = [part for part in PurePosixPath(path).parts if not re.search(r"[*?\[]", part)]
    stem = parts[-1].split(".")[0] if parts else ""
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:60].strip("-_") or "loads"


def propose(path: str, name: str) -> str:
    """The YAML text of a configuration for a file, folder or glob.

    Raises DataError for an input without a time or a number column, ConfigError for a name or a
    path that a configuration cannot hold.
    """
    guess = guess_columns(path)
    steps, test = _horizon(guess)
    text = f"""# Forecasts of {" ".join(path.split())}. Every line below `data` is a guess to check.
{_line("name", name)}
{_line("root", f".flts/{name}", "everything is kept here; or s3://bucket/prefix")}

data:
{_data(path, guess)}
prepare:
  max_gap: 6                    # longest run of missing steps that is filled
  # holidays: DE                # country, or country-subdivision such as AU-VIC

split: {{validation: {VALIDATION}, test: {test}}}

task:
{_task(guess, steps)}
models:                         # trials of each kind; params take values or search spaces
  seasonal_naive: {{}}
  ar: {{}}
  gru: {{trials: 2}}
  lstm: {{trials: 2}}
  prophet: {{}}

tune: {{budget_s: 600}}           # seconds for the study
serve: {{min_replicas: 1, max_replicas: 2}}
"""
    parse_config(yaml.safe_load(text), where=f"the configuration of {path}")
    return text


def _data(path: str, guess: Guess) -> str:
    wide = len(guess.targets) > 1
    lines = [
        _line("  path", path, "file, folder or glob; CSV or Parquet; or s3://..."),
        _line("  time", guess.time),
        _line("  id", guess.id, "column that names the series; null: one series a file"),
    ]
    if wide:
        lines += [
            _line("  layout", "wide", "each target is a series; long: one `target` column"),
            _line("  targets", list(guess.targets)),
        ]
    else:
        lines += [_line("  target", guess.targets[0])]
    known = None if guess.frequency is None else guess.frequency.text
    unclear = "not clear, `flts prepare` says why: set it, for example 30min"
    step = "step of the grid" if known else unclear
    lines += [
        _line("  frequency", known, step),
        _line("  time_zone", "UTC", "local zone of the load, such as Europe/Berlin"),
        _line("  # units", "MW", "of the target, for tables and pictures"),
    ]
    if guess.others:
        roles = "past: measured; known_future: known ahead; static: one a series"
        lines += [f"{'  # covariates:':<30}  # {roles}"]
        lines += [f"  #   {_scalar(name)}: {role}" for name, role in guess.others.items()]
    return "\n".join(lines) + "\n"


def _task(guess: Guess, steps: int) -> str:
    comment = "steps ahead"
    if guess.frequency is not None:
        comment += f", {Frequency.of_step(steps * guess.frequency.step_us).text}"
    return _line("  horizon", steps, comment) + "\n"


def _horizon(guess: Guess) -> tuple[int, float]:
    """Steps ahead, and the share of the test span."""
    season = 24 if guess.frequency is None else guess.frequency.default_season
    wanted = min(season, MOST_STEPS)
    if guess.rows is None:
        return wanted, TESTS[0]
    for share in TESTS:
        if _holds(wanted, season, round(guess.rows * share)):
            return wanted, share
    shorter = range(wanted, 0, -1)
    test = round(guess.rows * TESTS[0])
    return next((steps for steps in shorter if _holds(steps, season, test)), 1), TESTS[0]


def _holds(horizon: int, season: int, test: int) -> bool:
    """Whether a test span of `test` steps holds ORIGINS of them.

    They begin a horizon apart, or at the next distance that shares no factor with the season.
    """
    stride = horizon
    while gcd(stride, season) > 1:
        stride += 1
    return horizon + (ORIGINS - 1) * stride <= test


def _line(key: str, value: Any, comment: str = "") -> str:
    text = f"{key}: {_scalar(value)}"
    return f"{text:<30}  # {comment}" if comment else text


def _scalar(value: Any) -> str:
    """One line of YAML that reads back as the value."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
