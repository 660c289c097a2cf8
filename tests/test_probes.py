"""The batched probes against scikit-learn's LogisticRegression, one fit at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from prior_bench.probes import Standardiser, fit_path

PENALTIES = tuple(10.0**k for k in range(-6, 3))


def problem(rows, columns, labels, seed=0):
    """Correlated features of very different scales, and labels that depend on them with noise."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) / np.arange(1, columns + 1)
    x = (rng.normal(size=(rows, columns)) @ mix.T + 3).astype(np.float32)
    y = (x - x.mean(0)) @ rng.normal(size=(columns, labels)) + 2 * rng.normal(size=(rows, labels)) > 0
    y[:2] = [[False], [True]]
    return x, y.astype(float)


def oracle(x, y, penalty):
    model = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-9, max_iter=10_000)
    return model.fit(x, y)


@pytest.mark.parametrize(("rows", "columns"), [(25, 40), (120, 12)])
def test_sigmoids_as_scikit_learn(rows, columns):
    x, y = problem(rows, columns, 3)
    y[4:9, 1] = np.nan
    path = fit_path(x, y, False, PENALTIES)
    assert path.penalties == PENALTIES
    assert path.converged.all()
    z, logits = path.standardiser(x), path.logits(x)
    for p, penalty in enumerate(PENALTIES):
        if penalty < 1e-4:  # there scikit-learn's own tolerance is the difference
            continue
        for label in range(3):
            known = ~np.isnan(y[:, label])
            model = oracle(z[known], y[known, label], penalty)
            np.testing.assert_allclose(path.weights[p, :, label], model.coef_[0], atol=2e-4)
            np.testing.assert_allclose(logits[p, :, label], model.decision_function(z), atol=2e-3)


def test_softmax_as_scikit_learn():
    x, _ = problem(90, 10, 1)
    classes = (x[:, 0] + np.random.default_rng(0).normal(size=90)).argsort().argsort() // 30
    path = fit_path(x, np.eye(3)[classes], exclusive=True, penalties=(1e-3, 1e-1, 10))
    assert path.converged.all()
    assert path.converged.shape == path.iterations.shape == (3, 3)
    z = path.standardiser(x)
    for p, penalty in enumerate(path.penalties):
        model = oracle(z, classes, penalty)
        np.testing.assert_allclose(path.weights[p].T, model.coef_, atol=2e-4)
        logits = path.logits(x)[p]
        expected = model.decision_function(z)
        np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True),
                                   atol=2e-3)


@given(st.integers(4, 60), st.integers(1, 30), st.integers(0, 10_000), st.sampled_from(PENALTIES))
def test_the_gradient_vanishes_at_the_solution(rows, columns, seed, penalty):
    x, y = problem(rows, columns, 2, seed)
    path = fit_path(x, y, exclusive=False, penalties=(penalty,))
    assert path.converged.all()
    z = path.standardiser(x)
    residual = 1 / (1 + np.exp(-path.logits(x)[0])) - y
    np.testing.assert_allclose(z.T @ residual / rows + penalty * path.weights[0], 0, atol=1e-5)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=1e-5)


def test_dead_features_are_dropped_and_scales_do_not_matter():
    x, y = problem(50, 6, 1)
    dirty = np.concatenate([x * [1, 10, 0.1, 1, 1, 1] + 5, np.full((50, 1), 7.0)], axis=1)
    assert Standardiser.of(dirty).kept.tolist() == [True] * 6 + [False]
    found, expected = (fit_path(z, y, False, (1e-3, 1.0)).logits(z) for z in (dirty, x))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    nearly = np.concatenate([x, 1e-9 * np.arange(50)[:, None]], axis=1)
    assert not Standardiser.of(nearly).kept[-1]


def test_a_dead_encoder_predicts_the_share_of_positives():
    y = np.array([0, 1, 0, 0, 1.0])[:, None]
    path = fit_path(np.ones((5, 4)), y, False, PENALTIES)
    np.testing.assert_allclose(1 / (1 + np.exp(-path.logits(np.zeros((2, 4))))), 0.4, atol=1e-6)


def test_few_iterations_are_recorded_as_not_converged():
    x, y = problem(60, 8, 2)
    path = fit_path(x, y, exclusive=False, penalties=(1e-6,), max_iterations=2)
    assert not path.converged.any()
    assert (path.iterations == 2).all()


def test_bad_input_is_refused():
    x, y = problem(20, 3, 2)
    with pytest.raises(ValueError, match="lacks a class"):
        fit_path(x, np.zeros((20, 1)), False, PENALTIES)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_path(x, y, False, PENALTIES)
