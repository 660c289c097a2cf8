"""Projection heads into a joint space, and their use on padded tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def bn_head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear, batch norm without affine (MGCA and PLACE)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs),
                         nn.BatchNorm1d(outputs, affine=False))


def unit(x: Tensor) -> Tensor:
    """Vectors (..., D) of unit length, in float32."""
    return F.normalize(x.float(), dim=-1)


def project_tokens(head: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """A head over tokens (B, N, C) with mask (B, N): unit length; zero at padding, which is no part of batch norm."""
    found = unit(head(tokens[mask]))
    out = found.new_zeros(*mask.shape, found.shape[1])
    out[mask] = found
    return out
