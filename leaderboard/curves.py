"""Curves of one label as arrays: ROC, precision-recall, their means over labels and runs, and fewer points of them.

A curve is x (N,) not falling over 0..1 and y (N,), joined by straight lines; equal neighbours in x are a jump.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]

TOLERANCE, POINTS = 0.003, 100  # half a pixel of a plot of 170 px; and no more points than this
_LONG = 1000  # points; a longer curve is thinned, far below what anybody sees, before it meets others
_FINE = 2e-4


def roc(scores: np.ndarray, labels: np.ndarray) -> Curve:
    """False and true positive rate, of labels with both classes. The area below it is the AUROC."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(labels, scores)
    return _bounded((false, true))


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> Curve:
    """Recall and precision as steps, of labels with positives. The area below it is the average precision."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(labels, scores)
    levels, first = np.unique(recall[::-1], return_index=True)  # of one recall its highest precision
    height = precision[::-1][first]
    return _bounded((np.repeat(levels, 2)[1:-1], np.repeat(height[1:], 2)))


def mean_curve(curves: Sequence[Curve], weights: Sequence[float] | None = None) -> Curve:
    """The weighted mean of y at each x (vertical averaging, Fawcett 2006), so its area is the mean of the areas."""
    share = np.ones(len(curves)) if weights is None else np.asarray(weights, float)
    share = share / share.sum()
    x = np.unique(np.concatenate([curve[0] for curve in curves]))
    y = sum(w * _both_sides(curve, x) for w, curve in zip(share, curves, strict=True))
    return np.repeat(x, 2), np.asarray(y).reshape(-1)


def thinned(curve: Curve, tolerance: float = TOLERANCE, most: int = POINTS) -> Curve:
    """The curve through some of its points, from which none of the others is farther than the tolerance (Douglas and
    Peucker 1973, the farthest first), or through as many as are allowed."""
    points = np.stack(curve, axis=1)
    kept, farthest = [0, len(points) - 1], [_farthest(points, 0, len(points) - 1)]
    while len(kept) < most and -farthest[0][0] > tolerance:
        _, point, start, stop = heapq.heappop(farthest)
        kept.append(point)
        heapq.heappush(farthest, _farthest(points, start, point))
        heapq.heappush(farthest, _farthest(points, point, stop))
    chosen = points[sorted(set(kept))]
    return chosen[:, 0], chosen[:, 1]


def _farthest(points: np.ndarray, start: int, stop: int) -> tuple[float, int, int, int]:
    """Minus the largest distance to the line from start to stop of the points between them, and which one has it."""
    if stop - start < 2:
        return 0.0, start, start, stop
    between, chord = points[start + 1 : stop] - points[start], points[stop] - points[start]
    along = np.minimum(np.maximum(between @ chord / max(float(chord @ chord), 1e-300), 0), 1)
    away = between - along[:, None] * chord
    distance = np.hypot(away[:, 0], away[:, 1])
    found = int(distance.argmax())
    return -float(distance[found]), start + 1 + found, start, stop


def _both_sides(curve: Curve, x: np.ndarray) -> np.ndarray:
    """(len(x), 2): the curve just before and just after each x."""
    levels, first = np.unique(curve[0], return_index=True)
    last = np.append(first[1:], len(curve[0])) - 1
    before, after = curve[1][first], curve[1][last]
    left = np.searchsorted(levels, x, "right") - 1
    right = np.minimum(left + 1, len(levels) - 1)
    share = (x - levels[left]) / np.where(right > left, levels[right] - levels[left], 1)
    between = after[left] + (before[right] - after[left]) * share
    on = levels[left] == x
    return np.stack([np.where(on, before[left], between), np.where(on, after[left], between)], axis=1)


def _bounded(curve: Curve) -> Curve:
    return thinned(curve, _FINE, len(curve[0])) if len(curve[0]) > _LONG else curve
