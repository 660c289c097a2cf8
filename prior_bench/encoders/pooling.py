"""Pooling: CLIP's attention pooling, and masked means of words into sentences. All batched, padding under masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """CLIP's attention pooling (Radford et al., 2021): the mean of the tokens asks, the mean and the tokens answer.

    Args: width: C; heads; grid: side of the grid of a learned positional table (1 + grid^2, C), None for no table.
    """

    def __init__(self, width: int, heads: int = 8, grid: int | None = None):
        super().__init__()
        self.heads = heads
        self.positional_embedding = None
        if grid is not None:
            self.positional_embedding = nn.Parameter(torch.randn(1 + grid * grid, width) / width**0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, C) tokens -> (B, C). `mask` (B, N) bool is True for real tokens; `grid` (h, w) is the tokens' layout,
        for maps of another size than the positional table's, which is then interpolated."""
        if mask is None:
            mean = tokens.mean(dim=1, keepdim=True)
        else:
            weights = mask.to(tokens.dtype).unsqueeze(-1)
            mean = (tokens * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp_min(1)
            mask = F.pad(mask, (1, 0), value=True)[:, None, None, :]  # the mean token is always there
        x = torch.cat([mean, tokens], dim=1)
        if self.positional_embedding is not None:
            x = x + _positions(self.positional_embedding, grid)
        query, key, value = (self._split(y) for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)))
        pooled = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.c_proj(pooled.flatten(1))  # (B, heads, 1, C / heads): the heads side by side
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _positions(table: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """A positional table (1 + side^2, C) for tokens laid out on `grid`: (1 + h w, C)."""
    side = round((len(table) - 1) ** 0.5)
    if grid is None or grid == (side, side):
        return table
    square = table[1:].T.unflatten(1, (side, side)).unsqueeze(0)
    fitted = F.interpolate(square, grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], fitted[0].flatten(1).T])


def segment_sums(pieces: Tensor, index: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Sum of the vectors of each segment (a word's pieces, a sentence's words).

    Args: pieces (B, L, D); index (B, L) the segment that each belongs to, -1 for none; segments: S.
    Returns: (B, S, D), zero where a segment is empty, and how many vectors each has (B, S).
    """
    member = index.unsqueeze(1) == torch.arange(segments, device=index.device).view(1, -1, 1)  # (B, S, L)
    return member.to(pieces.dtype) @ pieces, member.sum(dim=2)


def sentence_means(words: Tensor, index: Tensor, sentences: int) -> tuple[Tensor, Tensor]:
    """Mean of the word vectors of each sentence.

    Args: words (B, L, D); index (B, L) the sentence that each word piece belongs to, -1 for none; sentences: S.
    Returns: (B, S, D), zero where a sentence has no words, and the mask (B, S) of those that have.
    """
    sums, counts = segment_sums(words, index, sentences)
    return sums / counts.clamp_min(1).unsqueeze(-1).to(words.dtype), counts > 0
