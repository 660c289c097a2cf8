"""MGCA's token-wise alignment (CTA) and prototype alignment (CPA) as functions of unit-length vectors.

All of it is batched over samples, padding under masks. Equations in README.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prior_bench.losses import mean_over_pairs, sinkhorn

_NEVER = -1e9  # a logit without weight; finite, or a report without words would have NaN gradients


def token_alignment(words: Tensor, mask: Tensor, word_weights: Tensor, patches: Tensor, patch_weights: Tensor,
                    tau: float) -> Tensor:
    """L_CTA, words to patches plus patches to words.

    Args: words (B, L, D) with mask (B, L); patches (B, R, D); weights (B, L) and (B, R), each sums to 1 over a sample,
    0 at padding.
    """
    everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    return (_one_way(words, mask, word_weights, patches, everywhere, tau)
            + _one_way(patches, everywhere, patch_weights, words, mask, tau))


def _one_way(queries: Tensor, query_mask: Tensor, weights: Tensor, keys: Tensor, key_mask: Tensor,
             tau: float) -> Tensor:
    """Each token against what it attends to on the other side, the sample's other tokens being the negatives."""
    attention = (queries @ keys.mT / tau).masked_fill(~key_mask.unsqueeze(1), _NEVER).softmax(dim=2)
    seen = F.normalize(attention @ keys, dim=-1)
    scores = queries @ seen.mT / tau  # (B, N, N)
    loss = sum(_weighted_cross_entropy(s, query_mask, weights) for s in (scores, scores.mT)) / 2
    return mean_over_pairs(loss)


def _weighted_cross_entropy(scores: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """sum_k weight_k CE_k over each sample's own tokens: (B, N, N) -> (B,)."""
    log_p = scores.masked_fill(~mask.unsqueeze(1), _NEVER).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return -(weights * log_p * mask).sum(dim=1)


def prototype_alignment(image: Tensor, text: Tensor, prototypes: Tensor, tau: float, epsilon: float,
                        iterations: int) -> Tensor:
    """L_CPA: each side predicts the other's Sinkhorn assignment to the prototypes (K, D); vectors (B, D)."""
    of_image, of_text = image @ prototypes.T, text @ prototypes.T
    codes = [sinkhorn(scores, epsilon, iterations) for scores in (of_image, of_text)]
    log_p = [(scores / tau).log_softmax(dim=1) for scores in (of_image, of_text)]
    return mean_over_pairs(-((codes[0] * log_p[1]).sum(dim=1) + (codes[1] * log_p[0]).sum(dim=1)) / 2)


def clipped_weights(attention: Tensor, mask: Tensor) -> Tensor:
    """Attention (B, N) to tokens as weights: clipped to the 10 to 90 percentiles of a sample's own tokens, then made to
    sum to 1; 0 at padding."""
    values = attention.float().masked_fill(~mask, float("nan"))
    low, high = (torch.nanquantile(values, q, dim=1, keepdim=True) for q in (0.1, 0.9))
    clipped = attention.float().clamp(low.nan_to_num(0), high.nan_to_num(0)) * mask
    return clipped / clipped.sum(dim=1, keepdim=True).clamp_min(1e-12)
