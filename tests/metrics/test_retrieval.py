"""Retrieval ranks against a plain loop over all pairs, with ties, several positives and relabelled galleries."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.metrics import retrieval


def vectors(rng, n, d=3):
    """Few distinct float16 vectors, so that many similarities are tied."""
    return rng.integers(-1, 2, (n, d)).astype(np.float16)


def rank_by_loop(similarity, positive):
    if not any(positive):
        return np.nan
    best = max(s for s, p in zip(similarity, positive, strict=True) if p)
    negatives = [s for s, p in zip(similarity, positive, strict=True) if not p]
    return 1 + sum(s > best for s in negatives) + sum(s == best for s in negatives) / 2


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000), st.integers(1, 7))
def test_ranks_as_a_loop(q, g, seed, chunk):
    rng = np.random.default_rng(seed)
    queries, gallery = vectors(rng, q), vectors(rng, g)
    query_labels, gallery_labels = rng.integers(0, 5, q), rng.integers(0, 5, g)
    found = retrieval.ranks(queries, gallery, [(query_labels, gallery_labels)], chunk=chunk)[0]
    similarity = (queries.astype(float) @ gallery.T.astype(float)).tolist()
    expected = [rank_by_loop(similarity[i], gallery_labels == query_labels[i]) for i in range(q)]
    np.testing.assert_array_equal(found, expected)
    labellings = [(query_labels, gallery_labels[::-1]), (query_labels, gallery_labels)]
    two = retrieval.ranks(queries, gallery, labellings, chunk=chunk)
    np.testing.assert_array_equal(two[1], found)


@given(st.integers(1, 12), st.integers(2, 15), st.integers(1, 6), st.integers(0, 1000))
def test_reranked_items_come_first_in_the_order_of_their_scores(q, g, k, seed):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(q, 4)), rng.normal(size=(g, 4))
    items = retrieval.nearest(queries, gallery, k, chunk=3)
    scores = rng.normal(size=items.shape)
    labels = rng.integers(0, 4, q), rng.integers(0, 4, g)
    found = retrieval.ranks(queries, gallery, [labels], retrieval.Reranked(items, scores), chunk=5)[0]
    for i in range(q):
        similarity = gallery @ queries[i]
        top = sorted(range(g), key=lambda j, s=similarity: -s[j])[:k]
        assert items[i].tolist() == top
        order = sorted(top, key=lambda j, i=i, top=top: -scores[i, top.index(j)])
        order += sorted(set(range(g)) - set(top), key=lambda j, s=similarity: -s[j])
        places = [place for place, j in enumerate(order, start=1) if labels[1][j] == labels[0][i]]
        np.testing.assert_equal(found[i], places[0] if places else np.nan)


@given(st.integers(1, 12), st.integers(2, 8), st.integers(0, 1000))
def test_precision_is_the_expectation_over_the_orders_of_ties(q, g, seed):
    rng = np.random.default_rng(seed)
    queries, gallery = vectors(rng, q, 2), vectors(rng, g, 2)
    query_classes, gallery_classes = np.eye(3, dtype=bool)[rng.integers(0, 3, q)], rng.random((g, 3)) < 0.4
    found = retrieval.precision_at(queries, gallery, [(query_classes, gallery_classes)], (1, 2), chunk=5)[0]
    i = int(rng.integers(q))
    similarity = gallery.astype(float) @ queries[i].astype(float)
    shares = []
    for order in itertools.islice(itertools.permutations(range(g)), 5040):
        top = sorted(order, key=lambda j: -similarity[j])  # stable: the permutation orders the ties
        shares.append([np.mean([(gallery_classes[j] & query_classes[i]).any() for j in top[:k]]) for k in (1, 2)])
    if g <= 7:  # all orders were seen
        np.testing.assert_allclose(found[i], np.mean(shares, axis=0))


def test_ranks_are_exact_whatever_the_chunk():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 256))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    gallery = np.concatenate([x, x[:100]])  # exact duplicates: ties
    labels = np.r_[np.arange(300), 300 + np.arange(100)]
    found = [retrieval.ranks(x, gallery, [(np.arange(300), labels)], chunk=chunk)[0] for chunk in (1, 7, 64, 1000)]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    np.testing.assert_array_equal(found[0], np.r_[np.full(100, 1.5), np.ones(200)])


def test_constant_vectors_rank_in_the_middle():
    ones = np.ones((9, 4), np.float16)
    assert retrieval.ranks(ones, ones, [(np.arange(9), np.arange(9))]).tolist() == [[5.0] * 9]


def test_recall_and_small_galleries():
    assert retrieval.recall_at(np.array([1, 1.5, 10, np.nan]), 1).tolist()[:3] == [1, 0, 0]
    assert np.isnan(retrieval.recall_at(np.array([np.nan]), 1)).all()
    one = np.ones((1, 2))
    found = retrieval.precision_at(one, one, [(np.ones((1, 1), bool), np.ones((1, 1), bool))], (1, 5))
    assert found[0, 0, 0] == 1
    assert np.isnan(found[0, 0, 1])


def test_chance_of_random_vectors_is_what_permuting_gives():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    ranks = retrieval.ranks(x, x, [(np.arange(200), rng.permutation(200)) for _ in range(20)])
    assert ranks.shape == (20, 200)
    assert retrieval.recall_at(ranks, 10).mean() == pytest.approx(10 / 200, abs=0.02)
