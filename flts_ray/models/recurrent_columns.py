"""The scaling of covariate columns that a network was trained with; plain arrays.

Design choices: apart from training, because whoever forecasts with an exported network reads the
same columns in the same way without the library it was trained in; scaled covariates are bounded,
so that a value far outside training bends a forecast instead of breaking it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

COVARIATE_BOUND = 5.0


@dataclass(frozen=True)
class ColumnScaling:
    """Pooled mean and standard deviation of every covariate column, float32 [columns].

    cycles: calendar columns read for the horizon; events: columns of `future` read for both the
    window and the horizon; both as positions in the contract's `future`. categories: for each
    static column how many labels it has, 0 for one of numbers; nothing where all are read as
    numbers. Mean and deviation of a column of labels are not read. with_past: whether columns of
    the past are read at all.
    """

    past_mean: np.ndarray
    past_std: np.ndarray
    future_mean: np.ndarray
    future_std: np.ndarray
    static_mean: np.ndarray
    static_std: np.ndarray
    cycles: tuple[int, ...]
    events: tuple[int, ...]
    categories: tuple[int, ...] = ()
    with_past: bool = True

    def seen(self, past: np.ndarray, future: np.ndarray) -> np.ndarray:
        """What the network reads of past steps beside the target: [..., past and events]."""
        events = self._scaled("future", future, self.events)
        if not self.with_past:
            return events
        return np.concatenate([self._scaled("past", past), events], axis=-1)

    def ahead(self, future: np.ndarray) -> np.ndarray:
        """What the network reads of the steps to forecast: [..., cycles and events]."""
        return self._scaled("future", future, self.cycles + self.events)

    def static(self, values: np.ndarray) -> np.ndarray:
        """Numbers scaled; codes as they are, but the number of labels for an unknown one."""
        scaled = self._scaled("static", values)
        for column, labels in enumerate(self.categories):
            if labels:
                codes = values[..., column]
                scaled[..., column] = np.where((codes >= 0) & (codes < labels), codes, labels)
        return scaled

    def _scaled(
        self, name: str, values: np.ndarray, columns: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Bounded, and the mean in place of what is missing."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        if columns is not None:
            at = list(columns)
            values, mean, std = values[..., at], mean[at], std[at]
        scaled = (values.astype(np.float32) - mean) / std
        return np.nan_to_num(np.clip(scaled, -COVARIATE_BOUND, COVARIATE_BOUND), nan=0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        names = (f.name for f in fields(self) if f.name.endswith(("_mean", "_std")))
        return {name: getattr(self, name) for name in names}
