"""Retrieval metrics over a whole gallery: ranks with ties, recall@k, precision@k, and permutations for chance.

Memory is O(chunk x gallery), never gallery squared. Similarities are float64 dot products: of float16 vectors of unit
length they are exact (the products' bits span 2^-48 to 1, which 53 bits hold), so ranks and ties depend neither on the
chunk nor on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

CHUNK = 256
PERMUTATIONS = 20


def ranks(queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray,
          chunk: int = CHUNK) -> np.ndarray:
    """Rank of each query's best positive: 1 + negatives above it + half of the negatives tied with it.

    Args:
        queries: (Q, D). gallery: (G, D).
        query_labels: (Q,) int. gallery_labels: (G,) int, or (P, G) for P labellings of the same gallery at once.
            A gallery item is a positive of the queries with its label.

    Returns:
        (Q,) float64, or (P, Q); NaN for a query without a positive.
    """
    labellings = np.atleast_2d(gallery_labels)
    result = np.empty((len(labellings), len(queries)))
    for rows, similarity in _chunks(queries, gallery, chunk):
        for p, labels in enumerate(labellings):
            positive = query_labels[rows, None] == labels
            best = np.where(positive, similarity, -np.inf).max(axis=1, keepdims=True)
            above = ((similarity > best) & ~positive).sum(axis=1)
            tied = ((similarity == best) & ~positive).sum(axis=1)
            result[p, rows] = np.where(positive.any(axis=1), 1 + above + tied / 2, np.nan)
    return result if np.ndim(gallery_labels) == 2 else result[0]


def precision_at(queries: np.ndarray, gallery: np.ndarray, query_classes: np.ndarray, gallery_classes: np.ndarray,
                 ks: Sequence[int], chunk: int = CHUNK) -> np.ndarray:
    """Share of the k nearest gallery items that have the query's class; ties at the k-th place count in expectation.

    Args:
        query_classes: (Q,) int class indices.
        gallery_classes: (G, C) bool, the classes of each item; or (P, G, C) for P labellings of the same gallery.

    Returns:
        (Q, len(ks)) float64, or (P, Q, len(ks)); NaN where the gallery holds fewer than k items.
    """
    labellings = gallery_classes if gallery_classes.ndim == 3 else gallery_classes[None]
    result = np.full((len(labellings), len(queries), len(ks)), np.nan)
    for rows, similarity in _chunks(queries, gallery, chunk):
        relevant = labellings[:, :, query_classes[rows]].transpose(0, 2, 1)
        for j, k in enumerate(ks):
            if k > len(gallery):
                continue
            kth = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
            above, tied = similarity > kth, similarity == kth
            share_of_tied = (k - above.sum(axis=1)) / tied.sum(axis=1)
            found = (relevant & above).sum(axis=2) + share_of_tied * (relevant & tied).sum(axis=2)
            result[:, rows, j] = found / k
    return result if gallery_classes.ndim == 3 else result[0]


def recall_at(rank: np.ndarray, k: int) -> np.ndarray:
    """(Q,) 1 where the rank is at most k, else 0; NaN stays NaN. Its mean is recall@k."""
    return np.where(np.isnan(rank), np.nan, rank <= k)


def permutations(n: int, rng: np.random.Generator, count: int = PERMUTATIONS) -> np.ndarray:
    """(count, n) permutations: item i takes the label of item p[i], which breaks the pairs and keeps all else."""
    return np.stack([rng.permutation(n) for _ in range(count)])


def _chunks(queries: np.ndarray, gallery: np.ndarray, chunk: int) -> Iterator[tuple[slice, np.ndarray]]:
    gallery = np.asarray(gallery, np.float64).T
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        yield rows, np.asarray(queries[rows], np.float64) @ gallery
