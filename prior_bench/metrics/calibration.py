"""Calibration: does an event that is predicted with probability p happen in a share p of the cases?"""

from __future__ import annotations

import numpy as np

BINS = 15


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass (Nixon et al. 2019).

    Args:
        probabilities: (N,) in 0..1. labels: (N,) 0 or 1. bins: as many, at most N; their sizes differ by one at most.

    Returns:
        the mean over rows of |mean probability - share of positives| of the row's bin; NaN without rows.
    """
    n = len(probabilities)
    if n == 0:
        return float("nan")
    # Rows of one probability may fall into two bins; giving each the mean label makes the order among them irrelevant.
    levels, level, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    mean_label = np.bincount(level, weights=np.asarray(labels, float), minlength=len(levels)) / counts
    order = np.argsort(level, kind="stable")
    gap = (levels - mean_label)[level[order]]
    return float(sum(abs(part.sum()) for part in np.array_split(gap, min(bins, n))) / n)
