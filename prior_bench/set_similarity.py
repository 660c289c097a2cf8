"""Similarity of sets of vectors, for all pairs of sets at once and without building what one side sees of the other.

A query w_k attends to keys V_r with weights a_kr: its context is c_k = sum_r a_kr V_r. Their cosine needs no c_k:
w_k . c_k = sum_r a_kr (V_r . w_k) and |c_k|^2 = a_k (V V^T) a_k. So memory holds one number for each (set of keys, set
of queries, query, key), not one vector for each (set of keys, set of queries, query). `attention_map` shows what was
attended to on the image.
"""

from __future__ import annotations

import math

from torch import Tensor


def context_cosines(attention: Tensor, scores: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Cosine of each query with its context.

    Args: attention (I, T, L, R) of each query over the keys; scores (I, T, L, R) their dot products; keys (I, R, D);
    queries (T, L, D). Returns: (I, T, L).
    """
    gram = keys @ keys.mT
    norm = ((attention.flatten(1, 2) @ gram).view_as(attention) * attention).sum(dim=3).clamp_min(1e-12).sqrt()
    return (attention * scores).sum(dim=3) / (norm * queries.norm(dim=-1).clamp_min(1e-6))


def attention_map(attention: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of what a text's words or sentences attend to, on the positions of a square map.

    Args: attention (B, K, h h) of K queries over positions, row by row; weights (B, K), 0 at padding.
    Returns: (B, h, h) float32.
    """
    shares = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    mean = (shares.float().unsqueeze(1) @ attention.float()).squeeze(1)
    side = math.isqrt(mean.shape[1])
    return mean.unflatten(1, (side, side))
