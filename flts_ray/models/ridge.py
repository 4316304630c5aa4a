"""Ridge regressions of many targets that share most of their features.

Design choices: only sums of products are kept, so memory does not grow with the windows; the
block of features that all targets share is diagonalised once and every penalty then costs a small
solve per target (the partitioned regression of Frisch & Waugh 1933 and Lovell 1963 with the
penalty of Hoerl & Kennard 1970); columns are centred and scaled to unit variance inside, so one
penalty means the same to all of them and the intercept is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Sums over n windows of d shared features, p features of each of H steps, and H targets.

    shared: [d]; step: [H, p]; target: [H]; the others are sums of products: shared_shared
    [d, d], shared_step [d, H, p], step_step [H, p, p], shared_target [d, H], step_target [H, p].
    """

    n: float
    shared: np.ndarray
    step: np.ndarray
    target: np.ndarray
    shared_shared: np.ndarray
    shared_step: np.ndarray
    step_step: np.ndarray
    shared_target: np.ndarray
    step_target: np.ndarray

    @classmethod
    def of(cls, shared: np.ndarray, step: np.ndarray, target: np.ndarray) -> Moments:
        """Moments of windows: shared [n, d], step [n, H, p], target [n, H]."""
        n, steps, width = step.shape
        by_step = np.ascontiguousarray(step.transpose(1, 0, 2))
        return cls(
            n=float(n),
            shared=shared.sum(axis=0),
            step=step.sum(axis=0),
            target=target.sum(axis=0),
            shared_shared=shared.T @ shared,
            shared_step=(shared.T @ step.reshape(n, -1)).reshape(-1, steps, width),
            step_step=by_step.transpose(0, 2, 1) @ by_step,
            shared_target=shared.T @ target,
            step_target=(by_step.transpose(0, 2, 1) @ target.T[..., None])[..., 0],
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(**{k: v + getattr(other, k) for k, v in vars(self).items()})

    def __sub__(self, other: Moments) -> Moments:
        return Moments(**{k: v - getattr(other, k) for k, v in vars(self).items()})

    def __mul__(self, weight: float) -> Moments:
        return Moments(**{k: v * weight for k, v in vars(self).items()})


@dataclass(frozen=True)
class Coefficients:
    """One fit: target h is `bias[h] + features @ shared[:, h] + step_features[h] @ step[h]`.

    shared: float64 [d, H]; step: float64 [H, p]; bias: float64 [H].
    """

    shared: np.ndarray
    step: np.ndarray
    bias: np.ndarray


def solve(
    m: Moments, penalties: Sequence[float], kept: np.ndarray, near: np.ndarray | None = None
) -> list[Coefficients]:
    """One fit a penalty, with the step features where `kept` (bool [p]) is True and the shared
    ones where `near` (bool [d], all by default) is.

    A penalty is a positive number in units of the windows' correlation matrix.
    """
    z = _standardised(m, kept, np.ones(len(m.shared), bool) if near is None else near)
    values, vectors = np.linalg.eigh(z.shared_shared)
    values = np.maximum(values, 0.0)
    cross = np.ascontiguousarray(np.tensordot(vectors.T, z.shared_step, 1).transpose(1, 0, 2))
    target = vectors.T @ z.shared_target
    found = []
    for penalty in penalties:
        inverse = 1.0 / (values + penalty)
        weighted = cross.transpose(0, 2, 1) * inverse
        schur = z.step_step - weighted @ cross + penalty * np.eye(z.step.shape[1])
        right = z.step_target - (weighted @ target.T[..., None])[..., 0]
        step = np.linalg.solve(schur, right[..., None])[..., 0]
        left = target - (cross @ step[..., None])[..., 0].T
        found.append(_in_units(m, z, vectors @ (inverse[:, None] * left), step, kept))
    return found


def _standardised(m: Moments, kept: np.ndarray, near: np.ndarray) -> Moments:
    """Correlations instead of sums; `shared` and `step` become the reciprocal deviations."""
    shared, target = m.shared / m.n, m.target / m.n
    step = m.step[:, kept] / m.n
    shared_shared = m.shared_shared / m.n - np.outer(shared, shared)
    step_step = m.step_step[:, kept][:, :, kept] / m.n - step[:, :, None] * step[:, None, :]
    by_shared = _reciprocal(np.diagonal(shared_shared), shared) * near
    by_step = _reciprocal(np.diagonal(step_step, axis1=1, axis2=2), step)
    shared_step = m.shared_step[..., kept] / m.n - shared[:, None, None] * step
    return Moments(
        n=m.n,
        shared=by_shared,
        step=by_step,
        target=target,
        shared_shared=shared_shared * np.outer(by_shared, by_shared),
        shared_step=shared_step * by_shared[:, None, None] * by_step,
        step_step=step_step * by_step[:, :, None] * by_step[:, None, :],
        shared_target=(m.shared_target / m.n - np.outer(shared, target)) * by_shared[:, None],
        step_target=(m.step_target[:, kept] / m.n - step * target[:, None]) * by_step,
    )


def _reciprocal(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """One over the deviation; zero for a column that does not vary, which drops it."""
    alive = variance > 1e-12 * np.maximum(mean**2, 1e-12)
    return np.where(alive, 1.0 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)


def _in_units(
    m: Moments, z: Moments, shared: np.ndarray, step: np.ndarray, kept: np.ndarray
) -> Coefficients:
    shared = shared * z.shared[:, None]
    whole = np.zeros(m.step.shape)
    whole[:, kept] = step * z.step
    bias = (m.target - m.shared @ shared - (m.step * whole).sum(axis=1)) / m.n
    return Coefficients(shared, whole, bias)
