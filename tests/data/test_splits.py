"""Splits and fractions: plain properties that hold for any labels, and prevalences near those of the whole."""

from math import ceil
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.data.splits import SPLITS, split_groups, subset_groups, training_subset
from prior_bench.task import NotApplicable


def some_labels(n: int, seed: int, prevalences=(0.5, 0.2, 0.05, 0.01)) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, len(prevalences))) < prevalences).astype(np.float32)


def some_names(n: int) -> list[str]:
    return [f"patient-{i}" for i in range(n)]


@given(st.integers(1, 300), st.integers(0, 5), st.floats(0.001, 1), st.floats(0.001, 1))
def test_subsets_have_exact_size_and_are_nested(n, seed, a, b):
    names, labels = some_names(n), some_labels(n, seed)
    small, large = (subset_groups(names, labels, f, seed) for f in sorted((a, b)))
    assert len(small) == ceil(min(a, b) * n - 1e-9)
    assert len(large) == ceil(max(a, b) * n - 1e-9)
    assert set(small) <= set(large) <= set(names)
    assert len(set(large)) == len(large)


@given(st.integers(1, 300), st.integers(0, 5))
def test_splits_are_a_partition_of_the_right_sizes(n, seed):
    split = split_groups(some_names(n), some_labels(n, seed), seed=seed)
    assert set(split) == set(some_names(n))
    sizes = [sum(v == s for v in split.values()) for s in SPLITS]
    assert np.abs(np.array(sizes) - np.array([0.7, 0.1, 0.2]) * n).max() <= 1


@given(st.integers(2, 100), st.integers(0, 1000))
def test_row_order_does_not_matter(n, seed):
    names, labels = some_names(n), some_labels(n, 0)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = [names[i] for i in order]
    assert split_groups(names, labels) == split_groups(shuffled, labels[order])
    assert subset_groups(names, labels, 0.3, 1) == subset_groups(shuffled, labels[order], 0.3, 1)


@pytest.mark.parametrize("seed", range(5))
def test_prevalences_are_near(seed):
    n = 2000
    names, labels = some_names(n), some_labels(n, seed)
    row = {name: labels[i] for i, name in enumerate(names)}
    split = split_groups(names, labels)
    for part, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        got = np.sum([row[g] for g, s in split.items() if s == part], axis=0)
        assert np.abs(got - share * labels.sum(0)).max() <= 2
    for fraction in (0.1, 0.01):
        got = np.sum([row[g] for g in subset_groups(names, labels, fraction, seed)], axis=0)
        assert np.abs(got - fraction * labels.sum(0)).max() <= 4


def test_stratified_beats_random_draws():
    n, names = 1000, some_names(1000)
    labels = some_labels(n, 0)
    row = {name: labels[i] for i, name in enumerate(names)}

    def error(chosen):
        return np.abs(np.mean([row[g] for g in chosen], axis=0) - labels.mean(0)).mean()

    ours = np.mean([error(subset_groups(names, labels, 0.1, s)) for s in range(5)])
    plain = np.mean([error(np.random.default_rng(s).choice(names, 100, replace=False)) for s in range(5)])
    assert ours < plain / 2


def test_a_lone_positive_is_not_forced_in():
    """A label with one positive lands in one half about every second time, also where halves are unequal."""
    labels = np.zeros((63, 1))
    labels[7] = 1
    inside = [("patient-7" in subset_groups(some_names(63), labels, 32 / 63, seed)) for seed in range(200)]
    assert 0.35 < np.mean(inside) < 0.65


def test_seeds_differ_and_repeat():
    names, labels = some_names(200), some_labels(200, 0)
    assert subset_groups(names, labels, 0.1, 0) == subset_groups(names, labels, 0.1, 0)
    assert subset_groups(names, labels, 0.1, 0) != subset_groups(names, labels, 0.1, 1)


def test_without_labels_and_with_missing_ones():
    names = some_names(50)
    assert len(subset_groups(names, None, 0.1, 0)) == 5
    assert len(subset_groups(names, np.full((50, 2), np.nan), 0.1, 0)) == 5


def test_large_sets_are_quick():
    names, labels = some_names(25_000), some_labels(25_000, 0, prevalences=(0.1,) * 14)
    start = perf_counter()
    split_groups(names, labels)
    subset_groups(names, labels, 0.01, 0)
    assert perf_counter() - start < 20  # about 1 s; the bound catches a quadratic loop only


def test_bad_arguments():
    with pytest.raises(ValueError, match="distinct"):
        split_groups(["a", "a"])
    with pytest.raises(ValueError, match="fraction"):
        subset_groups(["a"], None, 0.0, 0)


@pytest.mark.parametrize("target", ["findings", "place", "disc", "shapes", "reports"])
def test_training_subset(toy, target):
    subsets = [training_subset(toy, target, f, 0) for f in (0.12, 0.5, 1.0)]
    assert subsets[2] == toy.ids(target, "train")
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2])
    inside = {toy.group_of(i) for i in subsets[1]}
    outside = {toy.group_of(i) for i in subsets[2] if i not in subsets[1]}
    assert not inside & outside  # patients are never split
    with pytest.raises(NotApplicable, match="too small"):
        training_subset(toy, target, 0.01, 0)
