"""Ranking metrics of one label: AUROC, average precision, F1 at a threshold, accuracies. Pure functions of arrays.

Scores (N,) are finite and larger where the label is likelier; labels (N,) are 0 or 1, without missing values. A metric
that is undefined (no positives, no negatives) is NaN, never zero.
"""

from __future__ import annotations

import numpy as np


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    From the positives' mid-ranks (Mann and Whitney 1947). NaN without both classes.
    """
    positive = np.asarray(labels) > 0.5
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    above = mid_rank[level][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall steps, tied scores entering together. NaN without positives."""
    true_positive, predicted = _counts_from_the_top(scores, labels)[:2]
    if len(true_positive) == 0 or true_positive[-1] == 0:
        return float("nan")
    recall_steps = np.diff(true_positive, prepend=0) / true_positive[-1]
    return float((recall_steps * true_positive / predicted).sum())


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of boolean predictions. NaN without positives among the labels."""
    predicted, positive = np.asarray(predicted, bool), np.asarray(labels) > 0.5
    if not positive.any():
        return float("nan")
    return float(2 * (predicted & positive).sum() / (predicted.sum() + positive.sum()))


def best_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The score at and above which predicting positive maximises F1; the highest of equals. NaN without positives."""
    true_positive, predicted, levels = _counts_from_the_top(scores, labels)
    if len(true_positive) == 0 or true_positive[-1] == 0:
        return float("nan")
    return float(levels[np.argmax(2 * true_positive / (predicted + true_positive[-1]))])


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of equal class indices (N,). NaN without rows."""
    return float(np.mean(np.asarray(predicted) == truth)) if len(truth) else float("nan")


def balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the classes found in `truth` of the share of their rows that is predicted right. NaN without rows."""
    correct = np.asarray(predicted) == truth
    return float(np.mean([correct[truth == c].mean() for c in np.unique(truth)])) if len(truth) else float("nan")


def _counts_from_the_top(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each distinct score, descending: positives and rows with at least that score, and the score."""
    levels, level, counts = np.unique(scores, return_inverse=True, return_counts=True)
    positives = np.bincount(level, weights=np.asarray(labels) > 0.5, minlength=len(levels))
    return np.cumsum(positives[::-1]), np.cumsum(counts[::-1]), levels[::-1]
