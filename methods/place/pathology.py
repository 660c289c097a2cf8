"""PLACE's pathology observations and their alignment (VPOE and PCMA). Equations in README.md."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.encoders.pooling import segment_sums
from prior_bench.losses import NEVER, gather_padded, mean_over_pairs, pair_cross_entropy
from prior_bench.set_similarity import context_cosines


class VisualObservations(nn.Module):
    """VPOE: pathology queries that read an image's patches, through pre-norm decoder layers."""

    def __init__(self, inputs: int, width: int, queries: int, layers: int, heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.project = nn.Linear(inputs, width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))

    def forward(self, patches: Tensor) -> Tensor:
        """Patch tokens (B, N, inputs) -> observations (B, K, width)."""
        out: Tensor = self.decoder(self.queries.expand(len(patches), -1, -1), self.project(patches))
        return out

    def attention(self, patches: Tensor) -> Tensor:
        """What each query reads in the last layer: (B, N, inputs) -> (B, K, N), averaged over heads."""
        read: list[tuple[Tensor, ...]] = []
        last = self.decoder.layers[-1].multihead_attn
        hook = last.register_forward_pre_hook(lambda module, inputs: read.append(inputs))
        try:
            self(patches)
        finally:
            hook.remove()
        weights: Tensor = last(*read[0])[1]
        return weights


class SentencePool(nn.Module):
    """Attention pooling of each sentence's word pieces by one learned score."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, pieces: Tensor, sentence: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Pieces (B, L, D), the sentence (B, L) of each, -1 for none -> the first `most` sentences (B, S, D), mask."""
        count = min(max(int(sentence.max()) + 1, 1), most)
        scores = self.score(pieces).float()
        weights = (scores - scores.amax(dim=1, keepdim=True).detach()).exp()
        sums, sizes = segment_sums(pieces.float() * weights, sentence, count)
        total, _ = segment_sums(weights, sentence, count)
        return sums / total.clamp_min(1e-12), sizes > 0


def set_alignment(visual: Tensor, textual: Tensor, mask: Tensor, tau_attention: float, tau: float) -> Tensor:
    """L_pcma: mean of the inter-report and the intra-report term.

    Args: observations of unit length, visual (B, K, D) and textual (B, S, D) with mask (B, S).
    """
    return (_inter(visual, textual, mask, tau_attention, tau) + _intra(visual, textual, mask, tau_attention, tau)) / 2


def pair_scores(visual: Tensor, textual: Tensor, mask: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Z (I, T), the mean over sentences of the cosine with what they see of the image, and Z' (I, T), the mean over
    visual observations of the cosine with what they see of the report."""
    scores = torch.einsum("ikd,tsd->itsk", visual, textual)
    of_sentences = context_cosines((scores / tau).softmax(dim=3), scores, visual, textual)  # (I, T, S)
    forth = (of_sentences * mask).sum(dim=2) / mask.sum(dim=1).clamp_min(1)
    over_sentences = (scores / tau).masked_fill(~mask[None, :, :, None], NEVER).softmax(dim=2)
    turned = over_sentences.permute(1, 0, 3, 2)  # (T, I, K, S): the texts are the keys
    back = context_cosines(turned, scores.permute(1, 0, 3, 2), textual, visual).mean(dim=2)  # (T, I)
    return forth, back.T


def _inter(visual: Tensor, textual: Tensor, mask: Tensor, tau_attention: float, tau: float) -> Tensor:
    """Images choose among the reports of all ranks by Z, reports among the images by Z'."""
    (all_visual, all_textual, all_masks), before = gather_padded(visual, textual, mask)
    forth, _ = pair_scores(visual, all_textual, all_masks, tau_attention)
    _, back = pair_scores(all_visual, textual, mask, tau_attention)
    return (pair_cross_entropy(forth / tau, before) + pair_cross_entropy(back.T / tau, before)) / 2


def _intra(visual: Tensor, textual: Tensor, mask: Tensor, tau_attention: float, tau: float) -> Tensor:
    """What a sentence sees of its image must pick that sentence among those of its report."""
    attention = (textual @ visual.mT / tau_attention).softmax(dim=2)
    seen = F.normalize(attention @ visual, dim=2)
    scores = (seen @ textual.mT / tau).masked_fill(~mask.unsqueeze(1), NEVER)
    own = -scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    return mean_over_pairs((own * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1))
