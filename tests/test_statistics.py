"""The vectorised bootstrap against re-sampling rows in a plain loop with scikit-learn; intervals, pairs and Holm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student
from sklearn import metrics as sk

from prior_bench import statistics
from prior_bench.statistics import Bootstrap, group_draws, holm, interval, over_seeds, paired


def data(seed, n=40, groups=12):
    rng = np.random.default_rng(seed)
    names = np.array([f"p{i}" for i in rng.integers(0, groups, n)])
    labels = rng.integers(0, 2, n).astype(float)
    scores = np.round(rng.normal(size=n) + labels, 1)  # rounded: ties
    labels[rng.random(n) < 0.1] = np.nan
    return names, scores, labels


def resampled(names, draws, draw):
    """Row numbers of one draw, each repeated as often as its group was drawn."""
    return np.repeat(np.arange(len(names)), [draws[g][draw] for g in names])


@pytest.mark.parametrize("seed", range(4))
def test_replicates_as_a_loop(seed):
    names, scores, labels = data(seed)
    draws = group_draws(names, n=60, seed=seed)
    bootstrap = Bootstrap(names, draws)
    found = {"auroc": bootstrap.auroc(scores, labels), "ap": bootstrap.average_precision(scores, labels),
             "mean": bootstrap.mean(np.where(np.isnan(labels), np.nan, scores)), "median": bootstrap.median(scores)}
    for draw in range(60):
        rows = resampled(names, draws, draw)
        known = rows[~np.isnan(labels[rows])]
        y, s = labels[known], scores[known]
        expected = {"auroc": sk.roc_auc_score(y, s) if 0 < y.sum() < len(y) else np.nan,
                    "ap": sk.average_precision_score(y, s) if y.any() else np.nan,
                    "mean": s.mean() if len(s) else np.nan, "median": np.median(scores[rows]) if len(rows) else np.nan}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][draw], value, atol=1e-12, err_msg=name)


def test_sums_as_a_loop():
    names, scores, _ = data(0)
    draws = group_draws(names, n=30)
    found = Bootstrap(names, draws).sums(np.stack([scores, scores**2], axis=1))
    for draw in range(30):
        rows = resampled(names, draws, draw)
        np.testing.assert_allclose(found[draw], [scores[rows].sum(), (scores[rows] ** 2).sum()])


def test_a_lost_class_is_nan_not_zero():
    names, scores, labels = np.array(["a", "b", "c"]), np.array([0.1, 0.9, 0.5]), np.array([0, 1.0, 0])
    draws = {"a": np.array([1, 3, 0]), "b": np.array([1, 0, 0]), "c": np.array([1, 0, 0])}
    bootstrap = Bootstrap(names, draws)
    np.testing.assert_array_equal(bootstrap.auroc(scores, labels), [1, np.nan, np.nan])
    np.testing.assert_array_equal(bootstrap.average_precision(scores, labels), [1, np.nan, np.nan])
    np.testing.assert_array_equal(np.isnan(bootstrap.median(scores)), [False, False, True])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.integers(0, 5))
def test_draws_depend_on_the_set_of_groups_alone(groups, seed):
    draws = group_draws(groups, n=20, seed=seed)
    again = group_draws(sorted(groups, reverse=True) * 2, n=20, seed=seed)
    assert list(draws) == sorted(set(groups))
    for name, counts in draws.items():
        assert counts.dtype == np.int16
        np.testing.assert_array_equal(counts, again[name])
    assert (sum(draws.values()) == max(1, len(draws) - 4)).all()


def test_undefined_draws_are_replaced_up_to_five_percent():
    rng = np.random.default_rng(0)
    replicates = rng.normal(size=statistics.DRAWS + statistics.SPARE)
    replicates[:50] = np.nan
    values, undefined = statistics.defined(replicates)
    assert len(values) == statistics.DRAWS
    assert undefined == 50
    np.testing.assert_array_equal(values, replicates[50:1050])
    assert interval(replicates) == pytest.approx(tuple(np.quantile(replicates[50:1050], [0.025, 0.975])))
    replicates[50:60] = np.nan
    assert statistics.defined(replicates) == (None, 60)
    assert interval(replicates) is None
    assert interval(np.full(100, np.nan)) is None
    assert interval(np.zeros(0)) is None


def test_interval_covers_the_auroc():
    names, scores, labels = data(1, n=400, groups=200)
    low, high = interval(Bootstrap(names, group_draws(names)).auroc(scores, labels))
    known = ~np.isnan(labels)
    assert low < sk.roc_auc_score(labels[known], scores[known]) < high
    assert high - low < 0.15


@pytest.mark.parametrize("groups", [10, 20, 50])
def test_intervals_of_a_mean_are_as_wide_as_students(groups):
    """At least, and by no more than 7 % (10 groups) wider."""
    values = np.random.default_rng(groups).normal(size=groups)
    names = [str(i) for i in range(groups)]
    error = Bootstrap(names, group_draws(names, n=40_000)).mean(values).std()
    wanted = student.ppf(0.975, groups - 1) * values.std(ddof=1) / np.sqrt(groups)
    assert 0.99 * wanted < norm.ppf(0.975) * error < 1.07 * wanted


def test_paired_difference():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=1000)
    found = paired(0.5 + shared + 0.1 * rng.normal(size=1000), shared)
    assert found.difference == pytest.approx(0.5, abs=0.02)
    assert found.interval[0] < 0.35 < 0.65 < found.interval[1]
    assert found.p < 1e-5
    assert found.error == pytest.approx(0.1, rel=0.1)
    assert found.detectable == pytest.approx(2.8 * found.error)
    same = paired(shared, shared)
    assert (same.difference, same.p) == (0, 1)
    assert paired(shared, np.full(1000, np.nan)) is None


def test_seeds_are_drawn_with_the_groups():
    """Against a loop, and in variance: that of the mean of K seeds, with the unbiased deviation between them."""
    rng = np.random.default_rng(0)
    replicates = {seed: rng.normal(mean, 0.1, 200) for seed, mean in ((0, 1.0), (1, 2.0), (7, 4.0))}
    counts = np.random.default_rng(1)
    drawn = [np.bincount(counts.integers(3, size=2), minlength=3) for _ in range(200)]
    expected = [sum(c * replicates[s][d] for c, s in zip(count, (0, 1, 7), strict=True)) / 2
                for d, count in enumerate(drawn)]
    np.testing.assert_allclose(over_seeds(replicates), expected)
    np.testing.assert_array_equal(over_seeds(dict(reversed(replicates.items()))), over_seeds(replicates))
    np.testing.assert_array_equal(over_seeds({3: replicates[0]}), replicates[0])
    constant = over_seeds({seed: np.full(20_000, mean) for seed, mean in enumerate((1.0, 2.0, 4.0))})
    assert constant.std() == pytest.approx(np.std([1, 2, 4], ddof=1) / np.sqrt(3), rel=0.02)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
