"""Paired tests of two methods on the same images that need no draws: DeLong's for AUROC, sign flips for accuracy.

Both take the leak group as the unit, so images of one patient may depend on each other in any way.
"""

from __future__ import annotations

import math

import numpy as np

from prior_bench.statistics import Paired


def delong(scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Paired | None:
    """The difference of two AUROCs (DeLong et al. 1988) with the variance of clustered data (Obuchowski 1997).

    Args:
        scores_a, scores_b, labels: (N,); rows with a NaN label are left out. groups: (N,) the leak group of each row.

    Returns:
        Difference, interval and p by Student's t, whose degrees of freedom are the number of groups less one; None
        where a class has fewer than two groups.
    """
    from scipy.stats import t

    positive, negative = labels == 1, labels == 0
    _, group = np.unique(groups, return_inverse=True)
    placed = [_placements(scores[positive], scores[negative]) for scores in (scores_a, scores_b)]
    difference = float(placed[0][0].mean() - placed[1][0].mean()) if positive.any() and negative.any() else math.nan
    deviations, counts = [], []
    for rows, one, other in zip((positive, negative), *placed, strict=True):
        sums = np.bincount(group[rows], one - other - difference, minlength=len(group))
        deviations.append(sums / max(rows.sum(), 1))
        counts.append(len(np.unique(group[rows])))
    if min(counts) < 2:
        return None
    both = np.unique(group[positive | negative]).size
    (of_positives, of_negatives), (n_positive, n_negative) = deviations, counts
    variance = (n_positive / (n_positive - 1) * (of_positives @ of_positives)
                + n_negative / (n_negative - 1) * (of_negatives @ of_negatives)
                + 2 * both / (both - 1) * (of_positives @ of_negatives))
    error = math.sqrt(max(variance, 0.0))
    margin = float(t.ppf(0.975, both - 1)) * error
    p = 2 * float(t.sf(abs(difference) / error, both - 1)) if error > 0 else float(difference == 0)
    return Paired(difference, error, (difference - margin, difference + margin), p)


def _placements(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of negatives below each positive, and of positives above each negative; ties count half."""
    below, above = np.sort(negative), np.sort(positive)
    of_positives = (np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")) / 2
    of_negatives = (np.searchsorted(above, negative, "left") + np.searchsorted(above, negative, "right")) / 2
    return of_positives / max(len(below), 1), 1 - of_negatives / max(len(above), 1)


def sign_flip(correct_a: np.ndarray, correct_b: np.ndarray, groups: np.ndarray) -> float:
    """Two-sided p that two accuracies are equal, by flipping the sign of each group's difference in correct answers.

    All 2^groups flips are counted, by convolution, and the observed sum itself by half (mid-p; the exact test is
    conservative). With one image a group this is McNemar's mid-p test (Fagerland, Lydersen and Laake 2013).

    Args:
        correct_a, correct_b: (N,) bool. groups: (N,) the leak group of each row.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, np.asarray(correct_a, int) - np.asarray(correct_b, int)).round().astype(int)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    null = np.ones(1)  # probability of each sum, from the lowest to the highest
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = _binomial(count)
        null = np.convolve(null, flips)
    distance = np.abs(np.arange(len(null)) - len(null) // 2)
    observed = abs(int(sums.sum()))
    return float(min(1.0, null[distance > observed].sum() + null[distance == observed].sum() / 2))


def _binomial(n: int) -> np.ndarray:
    """(n + 1,) probabilities of 0 ... n heads of a fair coin."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(np.arange(n + 1), n, 0.5))
