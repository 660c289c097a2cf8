"""MGCA's prototype alignment (CPA), and attention as the weights of tokens. Equations in README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from prior_bench.losses import mean_over_pairs, sinkhorn


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
