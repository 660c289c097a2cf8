"""Calibration: does an event that is predicted with probability p happen in a share p of the cases?"""

from __future__ import annotations

import numpy as np

BINS = 15


def reliability(probabilities: np.ndarray, labels: np.ndarray,
                bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reliability diagram over bins of equal mass (Nixon et al. 2019).

    Args:
        probabilities: (N,) in 0..1. labels: (N,) 0 or 1. bins: as many, at most N; their sizes differ by one at most.

    Returns:
        of each bin (B,) the mean probability, the share of positives, and the number of rows.
    """
    n = len(probabilities)
    # Rows of one probability may fall into two bins; giving each the mean label makes the order among them irrelevant.
    levels, level, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    mean_label = np.bincount(level, weights=np.asarray(labels, float), minlength=len(levels)) / np.maximum(counts, 1)
    parts = np.array_split(np.sort(level), min(bins, n)) if n else []
    means = np.array([[levels[part].mean(), mean_label[part].mean()] for part in parts]).reshape(-1, 2)
    return means[:, 0], means[:, 1], np.array([len(part) for part in parts], int)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean over rows of |mean probability - share of positives| of the row's bin in the
    reliability diagram; NaN without rows."""
    mean, share, counts = reliability(probabilities, labels, bins)
    return float(counts @ np.abs(mean - share) / counts.sum()) if len(counts) else float("nan")
