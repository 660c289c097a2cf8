"""Losses that methods share: pure functions of tensors, with negatives gathered from all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e9  # a logit without weight; finite, or a row of nothing but such would have NaN gradients


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks, whose gradient is the sum over ranks as well: every rank's loss depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(*tensors: Tensor) -> tuple[list[Tensor], int]:
    """The rows of all ranks, in rank order and with gradient, and the number of rows that come before this rank's.

    Ranks may hold different numbers of rows. Each rank writes its rows into a zero tensor of the total size and the
    tensors are summed, so the backward pass needs nothing but the same sum. Args: tensors (B, ...) with one B.
    """
    if world_size() == 1:
        return list(tensors), 0
    rows = tensors[0].new_zeros(world_size(), dtype=torch.long)
    rows[dist.get_rank()] = len(tensors[0])
    dist.all_reduce(rows)
    sizes = rows.tolist()
    before = sum(sizes[: dist.get_rank()])
    after = sum(sizes) - before - len(tensors[0])
    gathered = []
    for x in tensors:
        padding = [0, 0] * (x.dim() - 1) + [before, after]
        gathered.append(_AllReduceSum.apply(F.pad(x, padding)))
    return gathered, before


def gather_padded(regions: Tensor, words: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """`gather` of region vectors (B, R, D) and word vectors (B, L, D) with their mask (B, L); ranks may differ in L."""
    if world_size() == 1:
        return (regions, words, mask), 0
    longest = torch.tensor(words.shape[1], device=words.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    more = int(longest) - words.shape[1]
    padded = F.pad(words, (0, 0, 0, more))
    (all_regions, all_words, all_masks), before = gather(regions, padded, F.pad(mask, (0, more)).float())
    return (all_regions, all_words, all_masks > 0.5), before


def pair_cross_entropy(scores: Tensor, before: int) -> Tensor:
    """Mean over all pairs of -log softmax of the true one, from this rank's rows (B, all pairs); row i's pair is column
    `before` + i. Weighted so that the mean over ranks is the mean over pairs, whatever each rank's number of rows."""
    labels = torch.arange(len(scores), device=scores.device) + before
    total = F.cross_entropy(scores, labels, reduction="sum")
    return total * world_size() / scores.shape[1]


def mean_over_pairs(values: Tensor) -> Tensor:
    """Mean of one value a pair (B,) over the pairs of all ranks; see `masked_mean`."""
    return masked_mean(values, torch.ones_like(values))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignment of this rank's rows to K prototypes, which share the rows of all ranks equally (Cuturi, 2013; as
    in SwAV, Caron et al., 2020).

    Args: scores (B, K). Returns: (B, K), rows sum to 1.
    """
    (whole,), before = gather(scores.float())
    assignment = ((whole - whole.max()) / epsilon).exp()
    for _ in range(iterations):
        assignment = assignment / assignment.sum(dim=0, keepdim=True).clamp_min(1e-30)
        assignment = assignment / assignment.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return assignment[before : before + len(scores)]


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE over the pairs (a_i, b_i) of all ranks (van den Oord et al., 2018; CLIP's form).

    Args: a, b (B, D) unit length; scale: inverse temperature. Each rank contributes its own rows against all columns,
    weighted so that the mean over ranks (of the losses, and by DistributedDataParallel of the gradients) is the mean
    over all pairs, whatever each rank's number of rows.
    """
    forth, back = info_nce_directions(a, b, scale)
    return (forth + back) / 2


def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of unit-length vectors (N, D) and (M, D), in float32 under autocast too."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def info_nce_directions(a: Tensor, b: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """The two directions of `info_nce`: a_i chooses among all b, and b_i among all a."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        (all_a, all_b), before = gather(a, b)
        return pair_cross_entropy(scale * a @ all_b.T, before), pair_cross_entropy(scale * b @ all_a.T, before)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (...) where `mask` (...) is set; zero where nothing is set.

    The mean runs over all ranks' values: each rank's part is weighted so that the mean over ranks is that mean.
    """
    count = mask.sum()
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
    return (values * mask).sum() * world_size() / count.clamp_min(1)


def token_alignment(words: Tensor, mask: Tensor, word_weights: Tensor, patches: Tensor, patch_weights: Tensor,
                    tau: float) -> Tensor:
    """Tokens of one modality against what they attend to in the other, both ways added, averaged over all pairs: each
    token must pick its own context among those of its sample's tokens (MGCA's L_CTA, Wang et al., 2022).

    Args: words (B, L, D) with mask (B, L); patches (B, R, D); weights (B, L) and (B, R), each sums to 1 over a sample,
    0 at padding. All vectors of unit length.
    """
    everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    return (_one_way(words, mask, word_weights, patches, everywhere, tau)
            + _one_way(patches, everywhere, patch_weights, words, mask, tau))


def _one_way(queries: Tensor, query_mask: Tensor, weights: Tensor, keys: Tensor, key_mask: Tensor,
             tau: float) -> Tensor:
    """Each token against what it attends to on the other side, the sample's other tokens being the negatives."""
    attention = (queries @ keys.mT / tau).masked_fill(~key_mask.unsqueeze(1), NEVER).softmax(dim=2)
    seen = F.normalize(attention @ keys, dim=-1)
    scores = queries @ seen.mT / tau  # (B, N, N)
    forth, back = (_weighted_cross_entropy(s, query_mask, weights) for s in (scores, scores.mT))
    return mean_over_pairs((forth + back) / 2)


def _weighted_cross_entropy(scores: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """sum_k weight_k CE_k over each sample's own tokens: (B, N, N) -> (B,)."""
    log_p = scores.masked_fill(~mask.unsqueeze(1), NEVER).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return -(weights * log_p * mask).sum(dim=1)
