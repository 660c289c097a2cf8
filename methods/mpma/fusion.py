"""MPMA's memory-augmented cross-modal fusion (MA-CMF): masked words read the image, through a memory that both share.

The form is this project's; sizes of the memory follow R2GenCMN (Chen et al., 2021). See README.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """A learned matrix that is read by its best-matching rows, shared by both modalities."""

    def __init__(self, width: int, rows: int, row_width: int, top: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows, row_width) * row_width**-0.5)
        self.query, self.response = nn.Linear(width, row_width), nn.Linear(row_width, width)
        self.top = min(top, rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> responses (B, N, D)."""
        scores = self.query(tokens) @ self.rows.T / self.rows.shape[1] ** 0.5
        best, index = scores.topk(self.top, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, index, best.softmax(dim=-1).to(scores.dtype))
        out: Tensor = self.response(weights @ self.rows)
        return out


class FusionLayer(nn.Module):
    """Self-attention of words, reading the memory, cross-attention to image tokens and memory responses, feed-forward.

    Each with a norm before it and a residual around it.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, words: Tensor, mask: Tensor, image: Tensor, memory: Memory) -> Tensor:
        x = self.norms[0](words)
        words = words + self.own(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        responses = memory(self.norms[1](words))
        words = words + responses
        keys = torch.cat([image, memory(image), responses], dim=1)
        there = torch.ones(image.shape[0], 2 * image.shape[1], dtype=torch.bool, device=mask.device)
        padding = ~torch.cat([there, mask], dim=1)
        words = words + self.cross(self.norms[2](words), keys, keys, key_padding_mask=padding, need_weights=False)[0]
        out: Tensor = words + self.feed(self.norms[3](words))
        return out


class Fusion(nn.Module):
    """MA-CMF: word states (B, L, D) and visible image tokens (B, n, inputs) -> (B, L, D)."""

    def __init__(self, width: int, inputs: int, layers: int, heads: int, rows: int, row_width: int, top: int):
        super().__init__()
        self.project = nn.Linear(inputs, width)
        self.memory = Memory(width, rows, row_width, top)
        self.layers = nn.ModuleList(FusionLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        seen = self.project(image)
        for layer in self.layers:
            words = layer(words, mask, seen, self.memory)
        out: Tensor = self.norm(words)
        return out
