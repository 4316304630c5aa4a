"""Configuration of the blend: whether, and of how many members, one is made."""

from __future__ import annotations

from pydantic import Field

from flts_ray.schema import Section


class BlendConfig(Section):
    """The best trials of a study combined with weights from their validation forecasts."""

    enabled: bool = True
    """Off: the candidate is always a single model."""
    max_members: int = Field(4, ge=2)
    """Most models in a blend; each adds its own time to every forecast."""
    per_series: bool = True
    """Whether series may have weights of their own where blocks of validation agree on it."""
