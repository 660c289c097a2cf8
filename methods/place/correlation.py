"""PLACE's proxy task: which patches of an image look alike (cross-modal correlation exploration, L_cce).

Equations in README.md; the form of target and prediction is this project's, the paper's is not public to us.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 16  # pixels of a cell's side, to which the image is averaged


def patch_correlation(images: Tensor, grid: int) -> Tensor:
    """Correlation of the grey values of the cells of a grid: images (B, C, H, W) -> (B, grid^2, grid^2) in [-1, 1]."""
    small = F.adaptive_avg_pool2d(images.float().mean(dim=1, keepdim=True), grid * CELL)
    cells = F.unfold(small, CELL, stride=CELL).mT  # (B, grid^2, CELL^2)
    centred = cells - cells.mean(dim=2, keepdim=True)
    shape = centred / (centred.norm(dim=2, keepdim=True) + 1e-6)
    return shape @ shape.mT


class CorrelationHead(nn.Module):
    """Predicts the correlation of patches from what they see of the report: a cross-attention and a linear layer."""

    def __init__(self, width: int, heads: int, outputs: int, grid: int):
        super().__init__()
        self.grid = grid
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear = nn.Linear(width, outputs)

    def forward(self, patches: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """patches (B, D, h, w); words (B, L, D) with mask (B, L) -> (B, grid^2, grid^2)."""
        queries = F.adaptive_avg_pool2d(patches, self.grid).flatten(2).mT
        seen, _ = self.attention(queries, words, words, key_padding_mask=~mask, need_weights=False)
        found = F.normalize(self.linear(queries + seen).float(), dim=2)
        return found @ found.mT


def correlation_loss(found: Tensor, target: Tensor) -> Tensor:
    """L_cce of each sample: mean absolute difference over the pairs of different cells, (B, G, G) twice -> (B,)."""
    above = torch.triu_indices(found.shape[1], found.shape[1], offset=1, device=found.device)
    return (found - target)[:, above[0], above[1]].abs().mean(dim=1)
