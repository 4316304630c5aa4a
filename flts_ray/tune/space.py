"""Which trials a study runs: a fixed list, sampled from the configured spaces before it starts.

Design choices: every draw is a hash of seed, kind, parameter and number, so a sample depends on
nothing else (adding a kind, a parameter or a trial moves no other draw) and is the same on every
machine; the first trial of a kind takes the middle of every space, so that one trial is sane;
random search beyond it, because with few trials it covers the parameters that matter better than
a grid (Bergstra & Bengio 2012).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from flts_ray.config import Choice, IntRange, LogUniform, ModelConfig, Uniform

BASELINES = ("seasonal_naive", "ar")
TRIES_PER_TRIAL = 50
"""Draws spent on finding one more distinct trial before a space counts as exhausted."""


@dataclass(frozen=True)
class TrialPlan:
    """One trial: `params` are plain JSON values, without spaces."""

    trial_id: str
    kind: str
    params: Mapping[str, Any]


def sample_trials(models: Mapping[str, ModelConfig], seed: int) -> list[TrialPlan]:
    """The trials of a study, in the order in which they start.

    Baselines come first, then the first trial of every other kind, then the rest in turns.
    Trials with equal parameters are kept once, so a kind with a small space may have fewer
    trials than `ModelConfig.trials`.
    """
    by_kind = {kind: sample_kind(kind, model, seed) for kind, model in models.items()}
    ordered = [k for k in BASELINES if k in by_kind] + [k for k in by_kind if k not in BASELINES]
    rounds = zip_longest(*(by_kind[kind] for kind in ordered))
    return [plan for turn in rounds for plan in turn if plan is not None]


def sample_kind(kind: str, model: ModelConfig, seed: int) -> list[TrialPlan]:
    """Distinct trials of one kind; the first takes the middle of every space."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(model.trials * TRIES_PER_TRIAL):
        params = {
            name: _value(space, None if number == 0 else _unit(seed, kind, name, number))
            for name, space in model.params.items()
        }
        found.setdefault(json.dumps(params, sort_keys=True, default=str), params)
        if len(found) == model.trials:
            break
    return [
        TrialPlan(f"{kind}-{number:02d}", kind, params)
        for number, params in enumerate(found.values(), start=1)
    ]


def _unit(seed: int, kind: str, name: str, number: int) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    text = json.dumps([seed, kind, name, number])
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11) / 2**53


def _value(space: Any, u: float | None) -> Any:
    """A value of a space at `u`, its middle (a choice: its first) at None; a constant itself."""
    if isinstance(space, Choice):
        return space.choice[0 if u is None else int(u * len(space.choice))]
    middle = 0.5 if u is None else u
    if isinstance(space, Uniform):
        low, high = space.uniform
        return min(max(low + middle * (high - low), low), high)
    if isinstance(space, LogUniform):
        low, high = space.loguniform
        return min(max(low * math.exp(middle * math.log(high / low)), low), high)
    if isinstance(space, IntRange):
        first, last = space.integer
        return first + (int(u * (last - first + 1)) if u is not None else (last - first) // 2)
    return space
