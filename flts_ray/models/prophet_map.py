"""Prophet's parameters without Stan: the same maximum a posteriori, found in closed steps.

Design choices: given the noise, what Stan maximises is a penalised least-squares problem, whose
normal, Laplace and half-normal priors are a ridge, a lasso and a closed form; so normal equations
of some fifty columns replace a process and thousands of gradients; coefficients under a ridge are
eliminated first (Frisch & Waugh 1933), the rate changes under the lasso are found by feature-sign
search, which is exact; a multiplicative season is linearised anew in each step (Gauss-Newton).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

TREND_SD = 5.0
NOISE_SD = 0.5
"""Prior deviations of slope, level and noise in Prophet's model, in units of its scaled series."""
MAX_STEPS = 200
MAX_SIGNS = 1000
TOLERANCE = 1e-10
"""Change of the objective, for each observation, that ends the search."""
MIN_VARIANCE = 1e-14
"""A series without noise would have an unbounded likelihood."""


@dataclass(frozen=True)
class Problem:
    """One scaled series. y, t: float64 [n]; changepoints: [C]; x: [n, K], features of season and
    regressors with the prior deviations `sds` [K]; tau: scale of the prior of rate changes;
    flat: whether the trend is a level only."""

    y: np.ndarray
    t: np.ndarray
    changepoints: np.ndarray
    x: np.ndarray
    sds: np.ndarray
    tau: float
    multiplicative: bool = False
    flat: bool = False

    @property
    def trend_columns(self) -> np.ndarray:
        """Level, slope, rate changes: [n, 2 + C]; what a flat trend has not is zero."""
        if self.flat:
            rest = np.zeros((len(self.t), 1 + len(self.changepoints)))
            return np.column_stack([np.ones(len(self.t)), rest])
        hinges = np.maximum(self.t[:, None] - self.changepoints, 0.0)
        return np.column_stack([np.ones(len(self.t)), self.t, hinges])


@dataclass(frozen=True)
class Estimate:
    """trend: [2 + C], level, slope, rate changes; beta: [K]; variance: of the noise."""

    trend: np.ndarray
    beta: np.ndarray
    variance: float


def objective(problem: Problem, found: Estimate) -> float:
    """Minus the log posterior that Stan maximises, up to a constant."""
    missed = _residual(problem, problem.trend_columns, found)
    return _objective(problem, found, float(missed @ missed))


def map_estimate(problem: Problem) -> Estimate:
    """The parameters with the highest posterior density near Prophet's starting point.

    Taylor & Letham 2018; feature-sign search: Lee, Battle, Raina & Ng, "Efficient sparse coding
    algorithms", NIPS 2006. Raises ValueError for a value that is not finite.
    """
    if not all(np.isfinite(a).all() for a in (problem.y, problem.t, problem.x)):
        raise ValueError("a value or a regressor is not finite")
    columns = problem.trend_columns
    found = _start(problem, columns)
    fixed = None if problem.multiplicative else _Normal.of(columns, problem.x, problem.y)
    best = objective(problem, found)
    for _ in range(MAX_STEPS):
        normal = fixed or _linearised(problem, columns, found)
        found = _shorter(problem, columns, found, _solved(problem, normal, found))
        missed = _residual(problem, columns, found)
        rss = float(missed @ missed)
        found = replace(found, variance=_variance(rss, len(problem.y)))
        now = _objective(problem, found, rss)
        if best - now <= TOLERANCE * len(problem.y):
            break
        best = now
    return found


@dataclass(frozen=True)
class _Normal:
    """Sums of products of all columns, [p, p], and with the target, [p].

    Columns under a ridge come first (level, slope, features), then the rate changes.
    """

    gram: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, trend: np.ndarray, x: np.ndarray, y: np.ndarray) -> _Normal:
        design = np.concatenate([trend[:, :2], x, trend[:, 2:]], axis=1)
        return cls(design.T @ design, design.T @ y)


def _linearised(problem: Problem, columns: np.ndarray, at: Estimate) -> _Normal:
    """Normal equations of the product of trend and season near an estimate."""
    trend, season = columns @ at.trend, problem.x @ at.beta
    # The model's first-order expansion: its constant part is minus trend times season.
    target = problem.y + trend * season
    return _Normal.of(columns * (1.0 + season)[:, None], problem.x * trend[:, None], target)


def _start(problem: Problem, columns: np.ndarray) -> Estimate:
    """A line through the first and the last value, as Prophet starts; the level if flat."""
    trend = np.zeros(columns.shape[1])
    if problem.flat:
        trend[0] = problem.y.mean()
    else:
        trend[1] = (problem.y[-1] - problem.y[0]) / (problem.t[-1] - problem.t[0])
        trend[0] = problem.y[0] - trend[1] * problem.t[0]
    found = Estimate(trend, np.zeros(problem.x.shape[1]), 1.0)
    missed = _residual(problem, columns, found)
    return replace(found, variance=_variance(float(missed @ missed), len(problem.y)))


def _residual(problem: Problem, columns: np.ndarray, at: Estimate) -> np.ndarray:
    trend, season = columns @ at.trend, problem.x @ at.beta
    told = trend * (1.0 + season) if problem.multiplicative else trend + season
    return np.asarray(problem.y - told)


def _objective(problem: Problem, at: Estimate, rss: float) -> float:
    prior = (at.trend[:2] @ at.trend[:2]) / (2 * TREND_SD**2)
    prior += np.abs(at.trend[2:]).sum() / problem.tau + 0.5 * ((at.beta / problem.sds) ** 2).sum()
    prior += at.variance / (2 * NOISE_SD**2)
    n = len(problem.y)
    return float(0.5 * n * np.log(at.variance) + rss / (2 * at.variance) + prior)


def _variance(rss: float, n: int) -> float:
    """The noise variance with the highest density: the root of its quadratic score."""
    return max(MIN_VARIANCE, 2.0 * rss / (n + float(np.sqrt(n * n + 4.0 * rss / NOISE_SD**2))))


def _solved(problem: Problem, normal: _Normal, at: Estimate) -> Estimate:
    """The minimum of the penalised least squares at the noise of an estimate."""
    ridge = 2 + len(at.beta)
    gram, target = normal.gram, normal.target
    precision = np.concatenate([[TREND_SD**-2, TREND_SD**-2], problem.sds**-2.0])
    inner = np.linalg.solve(
        gram[:ridge, :ridge] + np.diag(at.variance * precision),
        np.concatenate([gram[:ridge, ridge:], target[:ridge, None]], axis=1),
    )
    inside = gram[ridge:, :ridge] @ inner
    delta = sparse_minimum(
        gram[ridge:, ridge:] - inside[:, :-1],
        target[ridge:] - inside[:, -1],
        at.variance / problem.tau,
        at.trend[2:],
    )
    rest = inner[:, -1] - inner[:, :-1] @ delta
    return replace(at, trend=np.concatenate([rest[:2], delta]), beta=rest[2:])


def _shorter(problem: Problem, columns: np.ndarray, old: Estimate, new: Estimate) -> Estimate:
    """The new estimate, or one nearer to the old if the linearised step went too far."""
    if not problem.multiplicative:
        return new
    missed = _residual(problem, columns, old)
    limit = _objective(problem, old, float(missed @ missed))
    for share in 0.5 ** np.arange(30):
        tried = replace(
            old,
            trend=old.trend + share * (new.trend - old.trend),
            beta=old.beta + share * (new.beta - old.beta),
        )
        missed = _residual(problem, columns, tried)
        if _objective(problem, tried, float(missed @ missed)) <= limit:
            return tried
    return old


def sparse_minimum(
    hessian: np.ndarray, linear: np.ndarray, penalty: float, start: np.ndarray
) -> np.ndarray:
    """The x with the smallest `x @ hessian @ x / 2 - linear @ x + penalty * abs(x).sum()`.

    hessian: positive semidefinite float64 [C, C]; linear, start: [C].
    """
    x, sign = start.astype(np.float64), np.sign(start)
    close = 1e-9 * max(penalty, float(np.abs(linear).max(initial=0.0)) * 1e-6)
    settled = False
    for _ in range(MAX_SIGNS):
        slope = hessian @ x - linear
        active = sign != 0.0
        # Rounding may keep the slopes of a reached minimum from being as small as that.
        if settled or (np.abs(slope + penalty * sign)[active] <= close).all():
            excess = np.where(active, -np.inf, np.abs(slope) - penalty)
            if len(x) == 0 or excess.max() <= close:
                break
            first = int(excess.argmax())
            sign[first] = -np.sign(slope[first])
            active[first] = True
        x, settled = _towards(hessian, linear, penalty, x, sign, np.flatnonzero(active))
        sign = np.sign(x)
    return x


def _towards(
    hessian: np.ndarray,
    linear: np.ndarray,
    penalty: float,
    x: np.ndarray,
    sign: np.ndarray,
    active: np.ndarray,
) -> tuple[np.ndarray, bool]:
    """The best point on the way to the minimum for these signs, at its end or at a zero.

    Also whether nothing changed its sign on the way, so that the end is that minimum.
    """
    inner = hessian[active][:, active]
    # Changes a few steps apart are nearly the same column.
    inner.flat[:: len(active) + 1] *= 1.0 + 1e-12
    goal = np.linalg.solve(inner, linear[active] - penalty * sign[active])
    old = x[active]
    crossed = np.flatnonzero((old != 0.0) & (np.sign(goal) != np.sign(old)))
    points = [goal]
    for one in crossed:
        point = old + old[one] / (old[one] - goal[one]) * (goal - old)
        point[one] = 0.0
        points.append(point)
    if len(points) == 1:
        return _placed(goal, active, len(x)), True
    tried = np.stack(points)
    values = 0.5 * ((tried @ inner) * tried).sum(axis=1) - tried @ linear[active]
    values += penalty * np.abs(tried).sum(axis=1)
    return _placed(tried[values.argmin()], active, len(x)), False


def _placed(values: np.ndarray, active: np.ndarray, size: int) -> np.ndarray:
    whole = np.zeros(size)
    whole[active] = values
    return whole
