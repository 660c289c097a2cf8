"""Ranking metrics against scikit-learn, with ties, constants and permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from prior_bench.metrics import ranking


@st.composite
def labelled(draw):
    """Scores with many ties, and labels of both classes."""
    n = draw(st.integers(2, 40))
    scores = np.array(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), float) / 4
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), float)
    labels[:2] = 0, 1
    return scores, labels


@given(labelled())
def test_as_scikit_learn(data):
    scores, labels = data
    assert ranking.auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores))
    assert ranking.average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores))
    predicted = scores >= 0.25
    assert ranking.f1(predicted, labels) == pytest.approx(sk.f1_score(labels, predicted, zero_division=0))
    assert ranking.accuracy(predicted, labels) == pytest.approx(sk.accuracy_score(labels, predicted))
    assert ranking.balanced_accuracy(predicted, labels) == pytest.approx(sk.balanced_accuracy_score(labels, predicted))


@given(labelled(), st.randoms(use_true_random=False))
def test_order_and_monotone_maps_do_not_matter(data, random):
    scores, labels = data
    order = np.array(random.sample(range(len(scores)), len(scores)))
    for metric in (ranking.auroc, ranking.average_precision):
        assert metric(scores[order], labels[order]) == pytest.approx(metric(scores, labels))
        assert metric(np.exp(3 * scores) - 7, labels) == pytest.approx(metric(scores, labels))
    assert ranking.auroc(-scores, labels) == pytest.approx(1 - ranking.auroc(scores, labels))


@given(labelled())
def test_no_threshold_has_a_higher_f1(data):
    scores, labels = data
    threshold = ranking.best_f1_threshold(scores, labels)
    best = ranking.f1(scores >= threshold, labels)
    at = {t: ranking.f1(scores >= t, labels) for t in scores}
    assert best == pytest.approx(max(at.values()))
    assert threshold == max(t for t, value in at.items() if value == pytest.approx(best))


def test_constant_scores_are_chance():
    labels = np.array([0, 1, 1, 0, 0.0])
    assert ranking.auroc(np.ones(5), labels) == 0.5
    assert ranking.average_precision(np.ones(5), labels) == pytest.approx(0.4)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
def test_undefined_is_nan(labels):
    labels = np.array(labels, float)
    assert np.isnan(ranking.auroc(np.arange(len(labels)), labels))
    if not labels.any():
        assert np.isnan(ranking.average_precision(np.arange(len(labels)), labels))
        assert np.isnan(ranking.f1(np.ones(len(labels), bool), labels))
        assert np.isnan(ranking.best_f1_threshold(np.arange(len(labels)), labels))
    if not len(labels):
        assert np.isnan(ranking.accuracy(labels, labels))
        assert np.isnan(ranking.balanced_accuracy(labels, labels))
