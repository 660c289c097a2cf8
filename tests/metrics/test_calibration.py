"""Reliability and expected calibration error against a plain loop and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from prior_bench.metrics.calibration import expected_calibration_error, reliability


def by_loop(p, y, bins):
    order = np.argsort(p)
    total = 0.0
    for rows in np.array_split(order, min(bins, len(p))):
        total += len(rows) * abs(np.mean([p[i] for i in rows]) - np.mean([y[i] for i in rows]))
    return total / len(p)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000))
def test_as_a_loop_without_ties(n, bins, seed):
    rng = np.random.default_rng(seed)
    p, y = rng.random(n), rng.integers(0, 2, n).astype(float)
    assert expected_calibration_error(p, y, bins) == pytest.approx(by_loop(p, y, bins))


@given(st.integers(2, 60), st.integers(0, 1000))
def test_order_does_not_matter_with_ties(n, seed):
    rng = np.random.default_rng(seed)
    p, y = rng.integers(0, 4, n) / 4, rng.integers(0, 2, n).astype(float)
    order = rng.permutation(n)
    assert expected_calibration_error(p, y) == pytest.approx(expected_calibration_error(p[order], y[order]))


def test_known_values():
    assert expected_calibration_error(np.array([0.0, 1, 1, 0]), np.array([0.0, 1, 1, 0])) == 0
    assert expected_calibration_error(np.full(10, 0.9), np.zeros(10)) == pytest.approx(0.9)
    assert expected_calibration_error(np.full(30, 0.3), np.r_[np.ones(9), np.zeros(21)]) == pytest.approx(0)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))


def test_reliability_has_bins_of_equal_mass():
    rng = np.random.default_rng(0)
    p = rng.random(150)
    y = (rng.random(150) < p).astype(float)
    mean, share, counts = reliability(p, y)
    expected = calibration_curve(y, p, n_bins=15, strategy="quantile")
    np.testing.assert_allclose(share, expected[0])
    np.testing.assert_allclose(mean, expected[1])
    assert counts.tolist() == [10] * 15
    assert [len(part) for part in reliability(np.zeros(0), np.zeros(0))] == [0, 0, 0]
    assert reliability(p[:4], y[:4])[2].tolist() == [1] * 4


@given(st.integers(1, 60), st.integers(0, 1000))
def test_bins_hold_every_row_once(n, seed):
    rng = np.random.default_rng(seed)
    p, y = rng.integers(0, 4, n) / 4, rng.integers(0, 2, n).astype(float)
    mean, share, counts = reliability(p, y)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert abs(counts @ mean - p.sum()) < 1e-9
    assert abs(counts @ share - y.sum()) < 1e-9
