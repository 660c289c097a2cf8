"""PRIOR's local alignment module: sigmoid cross attention between image tokens and sentences, and its two losses.

Paper section on local alignment; equations in README.md. All of it is batched over samples, padding under masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.losses import NEVER, masked_mean, mean_over_pairs


@dataclass(frozen=True, slots=True)
class Aligned:
    """What each side sees of the other: `of_sentences` C_s (B, T, D) of image tokens, `of_tokens` C_v (B, N, D) of
    sentences."""

    of_sentences: Tensor
    of_tokens: Tensor


class CrossAttention(nn.Module):
    """Single-head attention with element-wise sigmoid instead of softmax; the two directions share no weights."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = width**-0.5
        self.image_query, self.image_key, self.image_value = (nn.Linear(width, width) for _ in range(3))
        self.text_query, self.text_key, self.text_value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, tokens: Tensor, sentences: Tensor, mask: Tensor) -> Aligned:
        """Image tokens (B, N, D), sentences (B, T, D) with their mask (B, T)."""
        of_sentences, of_tokens = self.attention(tokens, sentences)
        seen = of_tokens * mask.unsqueeze(1)
        return Aligned(of_sentences @ self.image_value(tokens), seen @ self.text_value(sentences))

    def attention(self, tokens: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """How much each sentence (B, T, D) takes from each token of its image, (B, T, N), and each token (B, N, D) from
        each sentence, (B, N, T); all in (0, 1)."""
        image_of_text = self.text_query(sentences) @ self.image_key(tokens).mT * self.scale
        text_of_image = self.image_query(tokens) @ self.text_key(sentences).mT * self.scale
        return image_of_text.sigmoid(), text_of_image.sigmoid()

    def score(self, tokens: Tensor, sentences: Tensor) -> Tensor:
        """Mean attention of both directions for every image (I, N, D) and every sentence (M, D): (I, M) in (0, 1)."""
        image_of_text = self.image_key(tokens) @ self.text_query(sentences).T * self.scale
        text_of_image = self.image_query(tokens) @ self.text_key(sentences).T * self.scale
        return (image_of_text.float().sigmoid().mean(dim=1) + text_of_image.float().sigmoid().mean(dim=1)) / 2


class Predictor(nn.Sequential):
    """SimSiam's predictor (Chen and He, 2021) without batch normalisation."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))


def image_loss(tokens: Tensor, seen: Tensor, predictor: nn.Module) -> Tensor:
    """L_li: negative cosine of image tokens (B, N, D) and what they see of the report, targets stopped; in [-1, 1]."""
    forth = F.cosine_similarity(predictor(tokens).float(), seen.detach().float(), dim=-1)
    back = F.cosine_similarity(predictor(seen).float(), tokens.detach().float(), dim=-1)
    return mean_over_pairs(-(forth + back).mean(dim=1) / 2)


def text_loss(sentences: Tensor, seen: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """L_lt: each sentence (B, T, D) against what it sees of the image; the negatives are the same report's sentences.

    Averaged over a report's sentences, then over reports.
    """
    with torch.autocast(sentences.device.type, enabled=False):
        a, b = F.normalize(seen.float(), dim=-1), F.normalize(sentences.float(), dim=-1)
        padding = ~mask.unsqueeze(1)
        logits = scale * a @ b.mT  # (B, T, T)
        own = logits.diagonal(dim1=1, dim2=2)
        forth, back = (x.masked_fill(padding, NEVER).logsumexp(dim=2) - own for x in (logits, logits.mT))
        return _mean_of_means((forth + back) / 2, mask)


def _mean_of_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each report's sentences (B, T), then over the reports that have any."""
    counts = mask.sum(dim=1)
    per_report = (values.masked_fill(~mask, 0.0)).sum(dim=1) / counts.clamp_min(1)
    return masked_mean(per_report, counts > 0)
