"""DeLong's clustered test against its definition over all pairs of images, sign flips against all flips."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from scipy.stats import t as student

from prior_bench.paired_tests import delong, sign_flip


def by_definition(scores_a, scores_b, labels, groups):
    """Difference of AUROCs and its variance, Obuchowski 1997, equations 3 to 5, in loops over pairs and groups."""
    known = ~np.isnan(labels)
    pairs = [(i, j) for i in np.flatnonzero(labels == 1) for j in np.flatnonzero(labels == 0)]
    aurocs, variances = [], {}
    components = []
    for scores in (scores_a, scores_b):
        psi = {(i, j): float(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in pairs}
        positives, negatives = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
        v10 = {i: np.mean([psi[i, j] for j in negatives]) for i in positives}
        v01 = {j: np.mean([psi[i, j] for i in positives]) for j in negatives}
        aurocs.append(np.mean(list(psi.values())))
        components.append((v10, v01))
    m, n = len(positives), len(negatives)
    names = sorted(set(groups[known]))
    with_positive, with_negative = {groups[i] for i in positives}, {groups[j] for j in negatives}
    for r, s in product(range(2), repeat=2):
        s10 = s01 = s11 = 0.0
        for name in names:
            x = [sum(components[k][0][i] - aurocs[k] for i in positives if groups[i] == name) for k in (r, s)]
            y = [sum(components[k][1][j] - aurocs[k] for j in negatives if groups[j] == name) for k in (r, s)]
            s10 += x[0] * x[1]
            s01 += y[0] * y[1]
            s11 += (x[0] * y[1] + x[1] * y[0]) / 2
        s10 *= len(with_positive) / (len(with_positive) - 1) / m
        s01 *= len(with_negative) / (len(with_negative) - 1) / n
        s11 *= len(names) / (len(names) - 1)
        variances[r, s] = s10 / m + s01 / n + 2 * s11 / (m * n)
    return aurocs[0] - aurocs[1], variances[0, 0] + variances[1, 1] - 2 * variances[0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_delong_as_defined(seed):
    rng = np.random.default_rng(seed)
    n = 40
    groups = np.array([f"p{g}" for g in rng.integers(15, size=n)])
    labels = rng.integers(0, 2, n).astype(float)
    scores = np.round(rng.normal(size=(2, n)) + labels * [[1], [0.5]], 1)  # rounded: ties
    labels[rng.random(n) < 0.1] = np.nan
    found = delong(*scores, labels, groups)
    difference, variance = by_definition(*scores, labels, groups)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.error == pytest.approx(np.sqrt(variance), rel=1e-9)
    freedom = len(set(groups[~np.isnan(labels)])) - 1
    assert np.subtract(*found.interval[::-1]) == pytest.approx(2 * student.ppf(0.975, freedom) * found.error)
    assert found.p == pytest.approx(2 * student.sf(abs(difference) / np.sqrt(variance), freedom))


def test_delong_of_independent_images_is_the_ordinary_one():
    """One image a group: the covariances of DeLong et al. 1988, by numpy.cov of the components."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1.0, 0.0], [30, 50])
    scores = rng.normal(size=(2, 80)) + labels
    above = [(s[:30, None] > s[None, 30:]).astype(float) for s in scores]
    variance = sum(np.array([1, -1]) @ np.cov([one.mean(axis) for one in above]) @ [1, -1] / count
                   for axis, count in ((1, 30), (0, 50)))
    found = delong(*scores, labels, np.arange(80))
    assert found.error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_delong_is_undefined_without_two_groups_of_a_class():
    labels, groups = np.array([1.0, 1, 0, 0]), np.array(["a", "a", "b", "c"])
    assert delong(np.arange(4.0), np.arange(4.0), labels, groups) is None
    assert delong(np.arange(4.0), np.arange(4.0), np.zeros(4), groups) is None
    assert delong(np.arange(4.0), np.arange(4.0), np.array([1.0, 0, 1, 0]), groups).p == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), min_size=1, max_size=20))
def test_sign_flip_counts_all_flips(rows):
    a, b, groups = np.array(rows).T
    sums = [int((a[groups == g] - b[groups == g]).sum()) for g in np.unique(groups)]
    flipped = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=len(sums))]
    above, equal = np.mean([f > abs(sum(sums)) for f in flipped]), np.mean([f == abs(sum(sums)) for f in flipped])
    assert sign_flip(a, b, groups) == pytest.approx(above + equal / 2)
    assert sign_flip(b, a, groups) == pytest.approx(sign_flip(a, b, groups))


def test_sign_flip_of_single_images_is_mcnemar_mid_p():
    a, b = np.repeat([True, False, True], [12, 5, 40]), np.repeat([False, True, True], [12, 5, 40])
    expected = 2 * binom.cdf(5, 17, 0.5) - binom.pmf(5, 17, 0.5)
    assert sign_flip(a, b, np.arange(57)) == pytest.approx(expected)
