"""Retrieval metrics over a whole gallery: ranks with ties, recall@k, precision@k.

Memory is O(chunk x gallery), never gallery squared. Similarities are float64 dot products: of float16 vectors of unit
length they are exact (the products' bits span 2^-48 to 1, which 53 bits hold), so ranks and ties depend neither on the
chunk nor on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 256


Labelling = tuple[np.ndarray, np.ndarray]  # of the queries, of the gallery


@dataclass(frozen=True, slots=True)
class Reranked:
    """Gallery items (Q, k) that come before all others of a query, ordered among themselves by `scores` (Q, k)."""

    items: np.ndarray
    scores: np.ndarray


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, chunk: int = CHUNK) -> np.ndarray:
    """(Q, k) the k most similar gallery items of each query, best first; of equal ones the first in the gallery."""
    chunks = _chunks(queries, gallery, chunk)
    return np.concatenate([np.argsort(-similarity, axis=1, kind="stable")[:, :k] for _, similarity in chunks])


def ranks(queries: np.ndarray, gallery: np.ndarray, labellings: Sequence[Labelling], reranked: Reranked | None = None,
          chunk: int = CHUNK) -> np.ndarray:
    """Rank of each query's best positive: 1 + negatives above it + half of the negatives tied with it.

    Args:
        queries: (Q, D). gallery: (G, D).
        labellings: P times labels (Q,) and (G,) int of the same vectors: a gallery item is a positive of the queries
            with its label. The true one and permuted ones are worked on together.

    Returns:
        (P, Q) float64; NaN for a query without a positive.
    """
    result = np.empty((len(labellings), len(queries)))
    for rows, similarity in _chunks(queries, gallery, chunk, reranked):
        for p, (of_query, of_gallery) in enumerate(labellings):
            positive = of_query[rows, None] == of_gallery
            best = np.where(positive, similarity, -np.inf).max(axis=1, keepdims=True)
            above = ((similarity > best) & ~positive).sum(axis=1)
            tied = ((similarity == best) & ~positive).sum(axis=1)
            result[p, rows] = np.where(positive.any(axis=1), 1 + above + tied / 2, np.nan)
    return result


def precision_at(queries: np.ndarray, gallery: np.ndarray, labellings: Sequence[Labelling], ks: Sequence[int],
                 reranked: Reranked | None = None, chunk: int = CHUNK) -> np.ndarray:
    """Share of the k nearest gallery items that have a class of the query; ties at the k-th place count in expectation.

    Args:
        labellings: P times classes (Q, C) and (G, C) bool of the same vectors.

    Returns:
        (P, Q, len(ks)) float64; NaN where the gallery holds fewer than k items.
    """
    result = np.full((len(labellings), len(queries), len(ks)), np.nan)
    for rows, similarity in _chunks(queries, gallery, chunk, reranked):
        relevant = np.stack([(of_query[rows, None] & of_gallery).any(axis=2) for of_query, of_gallery in labellings])
        for j, k in enumerate(ks):
            if k > len(gallery):
                continue
            kth = -np.partition(-similarity, k - 1, axis=1)[:, k - 1 : k]
            above, tied = similarity > kth, similarity == kth
            share_of_tied = (k - above.sum(axis=1)) / tied.sum(axis=1)
            found = (relevant & above).sum(axis=2) + share_of_tied * (relevant & tied).sum(axis=2)
            result[:, rows, j] = found / k
    return result


def recall_at(rank: np.ndarray, k: int) -> np.ndarray:
    """(Q,) 1 where the rank is at most k, else 0; NaN stays NaN. Its mean is recall@k."""
    return np.where(np.isnan(rank), np.nan, rank <= k)


def _chunks(queries: np.ndarray, gallery: np.ndarray, chunk: int,
            reranked: Reranked | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    gallery = np.asarray(gallery, np.float64).T
    for start in range(0, len(queries), chunk):
        rows = slice(start, min(start + chunk, len(queries)))
        similarity = np.asarray(queries[rows], np.float64) @ gallery
        if reranked is not None:
            first = np.asarray(reranked.scores[rows], np.float64)
            above = similarity.max() - first.min() + 1  # lifts every one of them above all others
            np.put_along_axis(similarity, reranked.items[rows], first + above, axis=1)
        yield rows, similarity
