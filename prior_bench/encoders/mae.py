"""Masked image modelling: which patches are kept, the decoder of the others, and its loss (MAE, He et al., 2022)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_kept(patches: int, masked: float, rng: np.random.Generator) -> np.ndarray:
    """Indices (n,) int64 of one image's patches that stay; drawn with the sample, so that a step can be made again."""
    kept: np.ndarray = rng.permutation(patches)[: max(1, round(patches * (1 - masked)))]
    return kept


def hidden_patches(kept: Tensor, patches: int) -> Tensor:
    """The mask (B, patches) of the patches that do not stay; kept (B, n)."""
    every = torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device)
    return every.scatter(1, kept, False)


def patchify(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as patches (B, N, C side^2), row by row of the grid."""
    return F.unfold(images, side, stride=side).mT


class PatchDecoder(nn.Module):
    """A transformer that fills in the patches that were not kept and predicts the pixels of all."""

    def __init__(self, inputs: int, width: int, layers: int, heads: int, patches: int, pixels: int):
        super().__init__()
        self.project = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.positions = nn.Parameter(torch.randn(patches, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.pixels = nn.Linear(width, pixels)

    def forward(self, visible: Tensor, kept: Tensor) -> Tensor:
        """Visible tokens (B, n, inputs) of the patches `kept` (B, n) -> pixels (B, N, pixels)."""
        some = self.project(visible)
        every = self.mask_token.to(some.dtype).expand(len(some), len(self.positions), -1)
        every = every.scatter(1, kept.unsqueeze(-1).expand_as(some), some)
        out: Tensor = self.pixels(self.layers(every + self.positions))
        return out


def masked_patch_error(predicted: Tensor, images: Tensor, mask: Tensor, side: int) -> Tensor:
    """Mean squared error of each sample's masked patches, each normalised by its own mean and deviation: (B,)."""
    target = patchify(images.float(), side)
    mean, variance = target.mean(dim=2, keepdim=True), target.var(dim=2, keepdim=True)
    error = (predicted.float() - (target - mean) / (variance + 1e-6).sqrt()).pow(2).mean(dim=2)
    return (error * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
