"""Curves against scikit-learn's areas and plain loops, and how far thinning moves them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from prior_bench.leaderboard import curves
from prior_bench.metrics.ranking import auroc, average_precision

scored = st.tuples(st.integers(2, 300), st.integers(0, 10_000), st.sampled_from([0, 1, 3]))  # rows, seed, decimals


def drawn(case):
    n, seed, decimals = case
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < rng.uniform(0.05, 0.6)).astype(float)
    assume(0 < labels.sum() < n)
    return (rng.normal(size=n) + labels).round(decimals), labels


def distances(points, curve):
    """Of each point to the nearest piece of the curve, by a loop over the pieces."""
    ends = np.stack(curve, axis=1)
    best = np.full(len(points), np.inf)
    for a, b in pairwise(ends):
        along = b - a
        share = np.clip((points - a) @ along / max(along @ along, 1e-300), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - share[:, None] * along, axis=1))
    return best


@given(scored)
def test_areas_are_auroc_and_average_precision(case):
    scores, labels = drawn(case)
    assert auc(*curves.roc(scores, labels)) == pytest.approx(roc_auc_score(labels, scores))
    assert auc(*curves.precision_recall(scores, labels)) == pytest.approx(average_precision_score(labels, scores))


@given(st.lists(scored, min_size=1, max_size=4), st.integers(0, 100))
def test_the_mean_curve_is_the_mean_at_every_x(cases, seed):
    pairs = [drawn(case) for case in cases]
    weights = np.random.default_rng(seed).uniform(0.2, 1, len(pairs))
    for curve, metric in ((curves.roc, auroc), (curves.precision_recall, average_precision)):
        single = [curve(*pair) for pair in pairs]
        mean = curves.mean_curve(single, weights)
        assert auc(*mean) == pytest.approx(np.average([metric(*pair) for pair in pairs], weights=weights))
        inside = np.random.default_rng(seed).random(20)  # no jump lies there
        expected = np.average([np.interp(inside, *one) for one in single], axis=0, weights=weights)
        np.testing.assert_allclose(np.interp(inside, *mean), expected)


@given(scored)
def test_thinning_stays_near(case):
    for curve in (curves.roc(*drawn(case)), curves.precision_recall(*drawn(case))):
        thin = curves.thinned(curve)
        assert len(thin[0]) <= curves.POINTS
        assert (thin[0][0], thin[0][-1]) == (0, 1)
        assert distances(np.stack(curve, axis=1), thin).max() <= (curves.TOLERANCE if len(thin[0]) < curves.POINTS
                                                                  else 0.02)
        whole = curves.thinned(curve, 0.0, 10_000)
        assert distances(np.stack(curve, axis=1), whole).max() < 1e-12


def test_a_curve_of_many_images_is_short_and_true():
    rng = np.random.default_rng(0)
    labels = (rng.random(30_000) < 0.1).astype(float)
    scores = rng.normal(size=len(labels)) + labels
    for curve, metric in ((curves.roc, auroc), (curves.precision_recall, average_precision)):
        found = curve(scores, labels)
        assert len(found[0]) < 3000
        assert auc(*found) == pytest.approx(metric(scores, labels), abs=2e-4)
        thin = curves.thinned(found)
        assert len(thin[0]) <= curves.POINTS
        assert auc(*thin) == pytest.approx(metric(scores, labels), abs=2e-3)


def test_a_known_curve():
    x, y = curves.roc(np.array([3.0, 2, 1, 0]), np.array([1.0, 0, 1, 0]))
    np.testing.assert_array_equal(np.stack([x, y]), [[0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1]])
    x, y = curves.precision_recall(np.array([3.0, 2, 1, 0]), np.array([1.0, 0, 1, 0]))
    np.testing.assert_allclose(np.stack([x, y]), [[0, 0.5, 0.5, 1], [1, 1, 2 / 3, 2 / 3]])
    np.testing.assert_array_equal(curves.thinned((np.array([0, 0.3, 0.7, 1]), np.array([0, 0.3, 0.7, 1])))[0], [0, 1])
