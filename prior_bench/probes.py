"""Many linear probes at once: L2-regularised logistic regressions for all labels and penalties of one training subset.

Minimised for each label (sigmoid) or once for exclusive classes (softmax), in float64:

    mean over known rows of the log loss  +  penalty / 2 * |weights|^2          (the bias is not penalised)

which is scikit-learn's LogisticRegression with C = 1 / (rows * penalty). Two things make it fast. Features are rotated
to their principal axes: the penalty does not notice, no more axes than rows are left, and there the Hessian is nearly
diagonal, so that L-BFGS preconditioned by that diagonal needs few iterations; a problem that proves hard gets its whole
Hessian. And the model is linear, so that a line search along a direction costs no product with the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the gradient in the preconditioner's norm: the loss is then about 1e-12 above its minimum
DEAD = 1e-6  # features whose deviation is below this share of the median deviation are dropped
_HISTORY = 10  # pairs that L-BFGS remembers
_MIN_PATIENCE = 20  # iterations before a problem is taken for hard


@dataclass(frozen=True, slots=True)
class Standardiser:
    """Mean and deviation (D,) of a training subset, and which features vary (D,) bool."""

    mean: np.ndarray
    deviation: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Standardiser:
        features = np.asarray(features, np.float64)
        deviation = features.std(axis=0)
        return cls(features.mean(axis=0), deviation, (deviation > DEAD * np.median(deviation)) & (deviation > 0))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardised features (N, kept) float64."""
        kept = self.kept
        return (np.asarray(features[:, kept], np.float64) - self.mean[kept]) / self.deviation[kept]


@dataclass(frozen=True, slots=True)
class ProbePath:
    """The probes of a subset: P penalties, C labels, D kept features."""

    penalties: tuple[float, ...]
    standardiser: Standardiser
    weights: np.ndarray  # (P, D, C) float64, for standardised features
    bias: np.ndarray  # (P, C)
    converged: np.ndarray  # (P, C) bool
    iterations: np.ndarray  # (P, C) int

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(P, N, C) float64 of raw features (N, all)."""
        return self.standardiser(features) @ self.weights + self.bias[:, None]


def fit_path(features: np.ndarray, labels: np.ndarray, exclusive: bool, penalties: Sequence[float],
             max_iterations: int = 1000) -> ProbePath:
    """Solve all penalties, from the largest to the smallest, each from the solution before it.

    Args:
        features: (N, D), standardised here with their own mean and deviation.
        labels: (N, C) in {0, 1, NaN = missing}, each with both classes; exclusive classes one-hot or all NaN.
        exclusive: one softmax over the C classes instead of C sigmoids.
        max_iterations: of each penalty; what has not converged by then is recorded in `converged`.

    Raises: ValueError for features that are not finite or a label without both classes.
    """
    labels = np.asarray(labels, np.float64)
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    if not ((labels == 0).any(axis=0) & (labels == 1).any(axis=0)).all():
        raise ValueError("a label lacks a class")
    standardiser = Standardiser.of(features)
    x = torch.from_numpy(standardiser(features))
    axes = _principal_axes(x)
    problems = _Problems(x @ axes, torch.from_numpy(labels), exclusive)
    v = problems.start()
    solved = {}
    for penalty in sorted(penalties, reverse=True):
        v, converged, iterations = _minimise(problems, v, penalty, max_iterations)
        flat = v.reshape(len(v), -1)
        every = labels.shape[1] // len(converged)  # the softmax is one problem with C columns
        solved[penalty] = (axes @ flat[:-1], flat[-1], converged.repeat_interleave(every),
                           iterations.repeat_interleave(every))
    parts = zip(*(solved[penalty] for penalty in penalties), strict=True)
    weights, bias, done, steps = (torch.stack(part).numpy() for part in parts)
    return ProbePath(tuple(penalties), standardiser, weights, bias, done, steps)


def _principal_axes(x: Tensor) -> Tensor:
    """Orthonormal columns (D, min(N, D)) that span the rows of x (N, D) and make x @ axes have orthogonal columns."""
    basis = torch.linalg.qr(x.T)[0] if x.shape[0] < x.shape[1] else torch.eye(x.shape[1], dtype=x.dtype)
    z = x @ basis
    return basis @ torch.linalg.eigh(z.T @ z)[1]


class _Problems:
    """B problems with K columns each: C sigmoids (B = C, K = 1) or one softmax (B = 1, K = C).

    Unknowns v are (D + 1, B, K), the bias last; margins are (N, B, K).
    """

    def __init__(self, x: Tensor, labels: Tensor, exclusive: bool):
        self.x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        self.squared = self.x**2
        self.exclusive = exclusive
        y = labels[:, None] if exclusive else labels[:, :, None]
        known = ~y.isnan().any(dim=2, keepdim=True)
        self.y = y.nan_to_num()
        self.weight = known / known.sum(dim=0)  # (N, B, 1): the mean over the known rows
        self.penalised = torch.ones(self.x.shape[1], 1, 1, dtype=x.dtype)
        self.penalised[-1] = 0

    def start(self) -> Tensor:
        """Zero weights; the bias that predicts the share of positives."""
        v = torch.zeros(self.x.shape[1], *self.y.shape[1:], dtype=self.x.dtype)
        share = (self.y * self.weight).sum(dim=0)
        v[-1] = share.log() if self.exclusive else share.logit()
        return v

    def margins(self, v: Tensor) -> Tensor:
        return (self.x @ v.reshape(len(v), -1)).reshape(self.y.shape)

    def probabilities(self, margins: Tensor) -> Tensor:
        return margins.softmax(dim=2) if self.exclusive else margins.sigmoid()

    def gradient(self, probabilities: Tensor, v: Tensor, penalty: float) -> Tensor:
        residual = (probabilities - self.y) * self.weight
        return (self.x.T @ residual.reshape(len(residual), -1)).reshape(v.shape) + penalty * self.penalised * v

    def diagonal(self, probabilities: Tensor, penalty: float) -> Tensor:
        """Diagonal of the Hessian, (D + 1, B, K); never 0."""
        variance = (probabilities * (1 - probabilities) * self.weight).reshape(len(probabilities), -1)
        data = (self.squared.T @ variance).reshape(-1, *self.y.shape[1:])
        return data + penalty * self.penalised + 1e-12

    def hessian(self, probabilities: Tensor, penalty: float, problem: int, column: int) -> Tensor:
        """Hessian of one column's unknowns, (D + 1, D + 1)."""
        p = probabilities[:, problem, column]
        weighted = self.x * (p * (1 - p) * self.weight[:, problem, 0])[:, None]
        return weighted.T @ self.x + torch.diag(penalty * self.penalised[:, 0, 0] + 1e-12)

    def slope_and_curvature(self, probabilities: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative of the mean loss (B,) where margins move with `along` (N, B, K)."""
        slope = ((probabilities - self.y) * along * self.weight).sum(dim=(0, 2))
        spread = (probabilities * along**2).sum(dim=2, keepdim=True)
        centre = (probabilities * along).sum(dim=2, keepdim=True)
        return slope, ((spread - centre**2) * self.weight).sum(dim=(0, 2))


class _Preconditioner:
    """An approximate inverse of the Hessian: by its diagonal, and for columns of hard problems by their own blocks."""

    def __init__(self, diagonal: Tensor):
        self.inverse = 1 / diagonal
        self.factors: dict[tuple[int, int], Tensor] = {}

    def factorise(self, problems: _Problems, probabilities: Tensor, penalty: float, hard: Tensor) -> None:
        for problem in hard.nonzero()[:, 0].tolist():
            for column in range(probabilities.shape[2]):
                block = problems.hessian(probabilities, penalty, problem, column)
                self.factors[problem, column] = torch.linalg.cholesky(block)

    def __call__(self, gradient: Tensor) -> Tensor:
        result = self.inverse * gradient
        for (problem, column), factor in self.factors.items():
            result[:, problem, column] = torch.cholesky_solve(gradient[:, problem, column, None], factor)[:, 0]
        return result


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each problem, (B,)."""
    return (a * b).sum(dim=(0, 2))


def _safe_inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x.clamp_min(1e-300), 0.0)


def _minimise(problems: _Problems, v: Tensor, penalty: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """L-BFGS on all problems at once (Nocedal and Wright, algorithm 7.5), each with its own step and its own end.

    Returns: unknowns (D + 1, B, K), converged (B,) bool, iterations (B,).
    """
    margins = problems.margins(v)
    probabilities = problems.probabilities(margins)
    gradient = problems.gradient(probabilities, v, penalty)
    precondition = _Preconditioner(problems.diagonal(probabilities, penalty))
    patience = max(_MIN_PATIENCE, len(v) // 4)  # a Hessian costs about as much as that many iterations
    history: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of gradient, 1 / their product
    iterations = torch.zeros(v.shape[1], dtype=torch.int64)
    for count in range(max_iterations):
        active = _dot(gradient, precondition(gradient)).sqrt() > TOLERANCE
        if not active.any():
            break
        if count and count % patience == 0:
            precondition.factorise(problems, probabilities, penalty, active)
            history = []
        direction = -_two_loops(gradient, precondition, history)
        uphill = _dot(direction, gradient) >= 0  # rounding, near the minimum
        direction = torch.where(uphill[:, None], -precondition(gradient), direction) * active[:, None]
        along = problems.margins(direction)
        length = _line_search(problems, margins, along, penalty * _dot(problems.penalised * v, direction),
                              penalty * _dot(problems.penalised * direction, direction)) * active
        step = direction * length[:, None]
        v, margins = v + step, margins + along * length[:, None]
        probabilities = problems.probabilities(margins)
        before, gradient = gradient, problems.gradient(probabilities, v, penalty)
        change = gradient - before
        history = [*history, (step, change, _safe_inverse(_dot(step, change)))][-_HISTORY:]
        iterations += active
    return v, _dot(gradient, precondition(gradient)).sqrt() <= TOLERANCE, iterations


def _two_loops(gradient: Tensor, precondition: _Preconditioner,
               history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The approximate inverse Hessian times the gradient; pairs of problems that made no step count nothing."""
    q, shares = gradient, []
    for step, change, scale in reversed(history):
        shares.append(scale * _dot(step, q))
        q = q - shares[-1][:, None] * change
    q = precondition(q)
    for (step, change, scale), share in zip(history, reversed(shares), strict=True):
        q = q + (share - scale * _dot(change, q))[:, None] * step
    return q


def _line_search(problems: _Problems, margins: Tensor, along: Tensor, pull: Tensor, stretch: Tensor) -> Tensor:
    """Step lengths (B,) at which the slope along the direction is a tenth of its start (convex: it exists).

    Newton's method on the slope between the highest point known to go down and the lowest known to go up. The penalty's
    slope at length t is pull + stretch * t.
    """
    length = torch.ones_like(pull)
    low, high = torch.zeros_like(pull), torch.full_like(pull, torch.inf)
    first = (problems.slope_and_curvature(problems.probabilities(margins), along)[0] + pull).abs()
    for _ in range(30):
        moved = problems.probabilities(margins + along * length[:, None])
        slope, curvature = problems.slope_and_curvature(moved, along)
        slope, curvature = slope + pull + stretch * length, curvature + stretch
        if (slope.abs() <= 0.1 * first).all():
            break
        low, high = torch.where(slope < 0, length, low), torch.where(slope > 0, length, high)
        newton = length - slope * _safe_inverse(curvature)
        fallback = torch.where(high.isinf(), 2 * low + 1, (low + high) / 2)
        better = torch.where((newton > low) & (newton < high), newton, fallback)
        length = torch.where(slope.abs() <= 0.1 * first, length, better)
    return length
