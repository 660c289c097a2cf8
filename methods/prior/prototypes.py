"""PRIOR's sentence-wise prototype memory bank: sentence vectors become mixtures of a trained table of prototypes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.losses import gather, world_size

Schedule = Literal["fixed", "linear", "exponential"]
Similarity = Literal["dot", "distance"]


class PrototypeBank(nn.Module):
    """A table E of K prototypes (K, D). A sentence s becomes softmax((s E^T + Gumbel noise) / temperature) E.

    With `similarity: distance` the dot products s E_k lose |E_k|^2 / 2, which makes them half the negative squared
    distance, up to a constant of s: a sentence goes to its nearest prototype, not to the longest ones around.
    Noise is drawn in training only. With `memory`, the table starts from data: the last `memory` sentence vectors are
    remembered until `start` clusters them; otherwise it starts from N(0, 1), as the authors' does.
    """

    temperature: Tensor
    memory: Tensor
    remembered: Tensor

    def __init__(self, prototypes: int, width: int, temperature: float, similarity: Similarity = "dot",
                 memory: int = 0):
        super().__init__()
        self.similarity = similarity
        self.embed = nn.Embedding(prototypes, width)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("memory", torch.zeros(memory, width), persistent=memory > 0)
        self.register_buffer("remembered", torch.tensor(0), persistent=memory > 0)

    def logits(self, sentences: Tensor) -> Tensor:
        """Similarities to the prototypes (..., K) in float32."""
        with torch.autocast(sentences.device.type, enabled=False):
            table = self.embed.weight.float()
            bias = -table.square().sum(dim=1) / 2 if self.similarity == "distance" else None
            return F.linear(sentences.float(), table, bias)

    def mixture(self, sentences: Tensor) -> Tensor:
        """Weights of the prototypes (..., K) in what stands for each sentence (..., D), float32, summing to 1."""
        logits = self.logits(sentences)
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            logits = logits + noise
        return (logits / self.temperature).softmax(dim=-1)

    def forward(self, sentences: Tensor) -> Tensor:
        """Quantised sentences (..., D) in float32."""
        mixture = self.mixture(sentences)
        with torch.autocast(sentences.device.type, enabled=False):
            return mixture @ self.embed.weight.float()

    def consistency(self, target: Tensor, reconstructed: Tensor) -> Tensor:
        """KL divergence (...) between assignments of true and reconstructed sentences; no noise, no temperature."""
        p, q = self.logits(target).log_softmax(dim=-1), self.logits(reconstructed).log_softmax(dim=-1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)

    # ------------------------------------------------------------------------------------ start from data

    @torch.no_grad()
    def remember(self, sentences: Tensor) -> None:
        """Keep the sentence vectors (n, D) of all ranks in the ring of the last ones."""
        size = len(self.memory)
        (sentences,), _ = gather(sentences.to(self.memory.dtype))
        sentences = sentences[-size:]
        places = (int(self.remembered) + torch.arange(len(sentences), device=sentences.device)) % size
        self.memory[places] = sentences
        self.remembered += len(sentences)

    @torch.no_grad()
    def start(self, iterations: int = 10) -> None:
        """Make the prototypes the k-means centres of the remembered sentences; an empty centre is drawn anew."""
        points = self.memory[: min(int(self.remembered), len(self.memory))]
        count = self.embed.num_embeddings
        centres = points[torch.randint(len(points), (count,), device=points.device)] if len(points) < count else (
            points[torch.randperm(len(points), device=points.device)[:count]])
        for _ in range(iterations):
            # Distances without a matrix product: those to equal centres are equal, and the first one takes the point.
            nearest = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
            member = F.one_hot(nearest, count).to(points.dtype)  # (n, K)
            sizes = member.sum(dim=0).unsqueeze(1)
            drawn = points[torch.randint(len(points), (count,), device=points.device)]
            centres = torch.where(sizes > 0, member.T @ points / sizes.clamp_min(1), drawn)
        self.embed.weight.copy_(centres)
        self.remembered.zero_()
        if world_size() > 1:
            dist.broadcast(self.embed.weight, src=0)

    def set_temperature(self, schedule: Schedule, first: float, progress: float) -> None:
        """Temperature at `progress` in [0, 1] of the stages with the bank; schedules end at a tenth of the first."""
        factor = {"fixed": 1.0, "linear": 1 - 0.9 * progress, "exponential": 0.1**progress}[schedule]
        self.temperature.fill_(first * factor)
