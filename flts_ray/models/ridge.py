"""Ridge regressions of many targets that share most of their features.

Design choices: only sums of products are kept, so memory does not grow with the windows; the
block of features that all targets share is diagonalised once and every penalty then costs a small
solve per target (the partitioned regression of Frisch & Waugh 1933 and Lovell 1963 with the
penalty of Hoerl & Kennard 1970); columns are centred and scaled to unit variance inside, so one
penalty means the same to all of them and the intercept is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    target_target: np.ndarray

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
            shared_step=(shared.T @ step.reshape(n, steps * width)).reshape(
                shared.shape[1], steps, width
            ),
            step_step=by_step.transpose(0, 2, 1) @ by_step,
            shared_target=shared.T @ target,
            step_target=(by_step.transpose(0, 2, 1) @ target.T[..., None])[..., 0],
            target_target=(target**2).sum(axis=0),
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


class Ridge:
    """Fits of any penalty and prior on the same windows.

    `by_shared`: float64 [d], by what each shared feature is multiplied before the penalty, which
    so weighs on it with one over its square; zero drops the feature. `intercept`: whether there
    is one; it is never penalised.
    """

    def __init__(self, moments: Moments, by_shared: np.ndarray, intercept: bool = True) -> None:
        if not intercept:
            none = {name: 0.0 * getattr(moments, name) for name in ("shared", "step", "target")}
            moments = replace(moments, **none)
        m = self._m = moments
        self._by_shared = by_shared
        shared, step = m.shared / m.n, m.step / m.n
        step_step = m.step_step / m.n - step[:, :, None] * step[:, None, :]
        self._by_step = reciprocal(np.diagonal(step_step, axis1=1, axis2=2), step)
        self._step_step = step_step * self._by_step[:, :, None] * self._by_step[:, None, :]
        shared_shared = m.shared_shared / m.n - np.outer(shared, shared)
        values, vectors = np.linalg.eigh(shared_shared * np.outer(by_shared, by_shared))
        self._values, self._vectors = np.maximum(values, 0.0), vectors
        shared_step = m.shared_step / m.n - shared[:, None, None] * step
        shared_step = shared_step * by_shared[:, None, None] * self._by_step
        cross = np.tensordot(vectors.T, shared_step, 1).transpose(1, 0, 2)
        self._cross = np.ascontiguousarray(cross)

    @property
    def variance(self) -> float:
        """Mean variance of the shared features after `by_shared`."""
        return float(self._values.mean())

    def fits(
        self, penalties: Sequence[float], kept: np.ndarray, prior: np.ndarray | None = None
    ) -> list[Coefficients]:
        """One fit a penalty, with the step features where `kept` (bool [p]) is True.

        prior: float64 [d, H], what the shared coefficients are shrunk to; None: to zero.
        """
        m, by_step = self._m, self._by_step[:, kept]
        shared, target = m.shared / m.n, m.target / m.n
        shared_target, step_target = m.shared_target / m.n, m.step_target / m.n
        if prior is not None:
            target = target - shared @ prior
            shared_target = shared_target - m.shared_shared @ prior / m.n
            step_target = step_target - np.einsum("dhp,dh->hp", m.shared_step, prior) / m.n
        shared_target = (shared_target - np.outer(shared, target)) * self._by_shared[:, None]
        step_target = (step_target - m.step / m.n * target[:, None])[:, kept] * by_step
        rotated, cross = self._vectors.T @ shared_target, self._cross[..., kept]
        step_step = self._step_step[:, kept][:, :, kept]
        found = []
        for penalty in penalties:
            inverse = 1.0 / (self._values + penalty)
            weighted = cross.transpose(0, 2, 1) * inverse
            schur = step_step - weighted @ cross + penalty * np.eye(cross.shape[2])
            right = step_target - (weighted @ rotated.T[..., None])[..., 0]
            step = np.linalg.solve(schur, right[..., None])[..., 0]
            left = rotated - (cross @ step[..., None])[..., 0].T
            told = self._by_shared[:, None] * (self._vectors @ (inverse[:, None] * left))
            whole = np.zeros(m.step.shape)
            whole[:, kept] = step * by_step
            found.append(_with_bias(m, told if prior is None else told + prior, whole))
        return found


def solve(
    m: Moments, penalties: Sequence[float], kept: np.ndarray, near: np.ndarray | None = None
) -> list[Coefficients]:
    """One fit a penalty, with the step features where `kept` (bool [p]) is True and the shared
    ones where `near` (bool [d], all by default) is.

    A penalty is a positive number in units of the windows' correlation matrix.
    """
    mean = m.shared / m.n
    by_shared = reciprocal(np.diagonal(m.shared_shared) / m.n - mean**2, mean)
    return Ridge(m, by_shared if near is None else by_shared * near).fits(penalties, kept)


def squared_errors(m: Moments, fit: Coefficients) -> np.ndarray:
    """Mean squared error of a fit at each step over the windows of `m`: float64 [H]."""
    w, v, bias = fit.shared, fit.step, fit.bias
    told = (w * m.shared_target).sum(axis=0) + (v * m.step_target).sum(axis=1)
    level = (w * m.shared[:, None]).sum(axis=0) + (v * m.step).sum(axis=1)
    square = (w * (m.shared_shared @ w)).sum(axis=0)
    square += 2 * np.einsum("dh,dhp,hp->h", w, m.shared_step, v, optimize=True)
    square += np.einsum("hp,hpq,hq->h", v, m.step_step, v, optimize=True)
    total = m.target_target - 2 * (told + bias * m.target) + square
    return np.asarray((total + 2 * bias * level) / m.n + bias**2)


def reciprocal(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """One over the deviation; zero for a column that does not vary, which drops it."""
    alive = variance > 1e-12 * np.maximum(mean**2, 1e-12)
    return np.where(alive, 1.0 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)


def _with_bias(m: Moments, shared: np.ndarray, step: np.ndarray) -> Coefficients:
    bias = (m.target - m.shared @ shared - (m.step * step).sum(axis=1)) / m.n
    return Coefficients(shared, step, bias)
