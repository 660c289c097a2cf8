"""GLoRIA's similarity of an image's regions and a report's words, for all pairs of images and reports at once.

For region vectors V and word vectors W: scores V W^T; softmax over words for each region; times tau_1, softmax over
regions for each word, which gives the attention a; context c_k = sum_r a_kr V_r; then cos(W_k, c_k).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prior_bench.losses import NEVER
from prior_bench.set_similarity import context_cosines


def word_cosines(regions: Tensor, words: Tensor, mask: Tensor, tau_1: float) -> tuple[Tensor, Tensor]:
    """Cosine of each word with its context, and the attention behind it.

    Args: regions (I, R, D); words (T, L, D) with mask (T, L).
    Returns: cosines (I, T, L), of padding without meaning; attention (I, T, L, R).
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = regions.float(), words.float()
        scores = torch.einsum("ird,tld->itlr", regions, words)
        there = mask[None, :, :, None]
        over_words = scores.masked_fill(~there, NEVER).softmax(dim=2)
        attention = (tau_1 * over_words).softmax(dim=3)
        return context_cosines(attention, scores, regions, words), attention


def log_sum_exp(cosines: Tensor, mask: Tensor, tau_2: float, mean: bool) -> Tensor:
    """log sum_k exp(tau_2 cos_k) over a report's words, or of their mean: (I, T, L) -> (I, T); 0 without words."""
    total = (tau_2 * cosines).masked_fill(~mask, float("-inf")).logsumexp(dim=2).masked_fill(~mask.any(dim=1), 0.0)
    return total - mask.sum(dim=1).clamp_min(1).log() if mean else total
