"""PRIOR's two decoders: the image from masked local features and its report, and sentence prototypes from the image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.losses import mean_over_pairs


class ImageDecoder(nn.Module):
    """Up-sampling blocks of nearest-neighbour resize and twice (3x3 convolution, batch norm, ReLU), each with half the
    channels of the one before, then a 3x3 convolution to one channel.

    Args: inputs: channels of the conditioned map; channels: of the first block; blocks: each doubles the side.
    """

    def __init__(self, inputs: int, channels: int, blocks: int):
        super().__init__()
        widths = [inputs, *(max(8, channels >> i) for i in range(blocks))]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv1": _convolution(a, b), "conv2": _convolution(b, b)})
            for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, 1, h 2^blocks, w 2^blocks)."""
        for block in self.blocks:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block["conv2"](block["conv1"](x))  # type: ignore[index]
        out: Tensor = self.head(x)
        return out


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def image_reconstruction_loss(reconstructed: Tensor, images: Tensor) -> Tensor:
    """L_rec: mean L1 distance to the normalised images (B, C, H, W), grey, brought to the reconstruction's size."""
    target = images.mean(dim=1, keepdim=True)
    if target.shape[-2:] != reconstructed.shape[-2:]:
        target = F.interpolate(target, reconstructed.shape[-2:], mode="bilinear", align_corners=True)
    return mean_over_pairs((reconstructed.float() - target).abs().mean(dim=(1, 2, 3)))


class SentenceDecoder(nn.Module):
    """BERT's decoder layers over learned queries, all at once: no causal mask, no token-by-token decoding.

    The queries get BERT's positional and type embeddings, layer norm and dropout, as input embeddings do.
    """

    def __init__(self, width: int, queries: int, layers: int, heads: int, dropout: float, positions: int = 512):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, activation="gelu", layer_norm_eps=1e-12,
                                           batch_first=True)
        self.layers = nn.TransformerDecoder(layer, layers)
        for module in self.modules():  # BERT's initialisation
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Image tokens (B, N, D) -> sentence prototypes (B, Q, D), in no order."""
        count = self.queries.shape[1]
        x = self.queries + self.position_embeddings.weight[:count] + self.token_type_embeddings.weight[0]
        x = self.dropout(self.norm(x)).expand(len(tokens), -1, -1)
        out: Tensor = self.layers(x, tokens)
        return out


@torch.no_grad()
def match(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Hungarian matching by L1 distance: (B, Q) the output that belongs to each target.

    Args: outputs (B, Q, D); targets (B, Q, D), zero where `mask` (B, Q) is not set. The zero targets, which come last,
    all ask the same of an output, its norm, so only the real ones are matched, at what they cost beyond that norm.
    """
    from scipy.optimize import linear_sum_assignment

    used = int(mask.sum(dim=1).max())
    outputs = outputs.float()
    cost = torch.cdist(outputs, targets[:, :used].float(), p=1) - outputs.abs().sum(dim=2, keepdim=True)
    counts = mask.sum(dim=1).tolist()
    order = np.empty(mask.shape, np.int64)
    costs = cost.nan_to_num().cpu().numpy()  # a run that diverges goes on to its loss, where it is told
    for row, (sample, count) in enumerate(zip(costs, counts, strict=True)):
        matched, target = linear_sum_assignment(sample[:, :count])
        order[row, target] = matched
        order[row, count:] = np.setdiff1d(np.arange(len(sample)), matched)
    return torch.from_numpy(order).to(outputs.device)


def reorder(outputs: Tensor, order: Tensor) -> Tensor:
    """Outputs (B, Q, D) in the order (B, Q) of the targets that they were matched with."""
    return outputs.gather(1, order.unsqueeze(-1).expand_as(outputs))
