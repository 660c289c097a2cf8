"""ConVIRT: Contrastive Learning of Medical Visual Representations from Paired Images and Text.

Y. Zhang, H. Jiang, Y. Miura, C. D. Manning, C. P. Langlotz; MLHC 2022, arXiv 2010.00747. The equations, and every
deviation from the paper, are in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prior_bench.data.augment import Augmentation
from prior_bench.data.reports import split_sentences
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.text import TextEncoder
from prior_bench.losses import info_nce_directions
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.recipes import Recipe

LEAST_WORDS = 3  # of a sentence that is a text view


class ConvirtRecipe(Recipe):
    """ConVIRT's settings; `width` is both that of the joint space and of the heads' hidden layer."""

    width: int = 512
    tau: float = Field(0.1, gt=0)
    image_to_text: float = Field(0.75, ge=0, le=1)  # lambda, the weight of that direction
    frozen_layers: int = Field(0, ge=0)  # of the text encoder, with its embeddings
    augmentation: Augmentation = Augmentation()


class Convirt(DualEncoder):
    name = "convirt"
    title = "ConVIRT"
    paper = "https://arxiv.org/abs/2010.00747"
    recipe_class: ClassVar[type[Recipe]] = ConvirtRecipe
    recipe: ConvirtRecipe

    def __init__(self, recipe: ConvirtRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        self.image_head = _head(self.image_encoder.channels, recipe.width)
        self.text_encoder.freeze(recipe.frozen_layers)
        self.text_head = _head(text_encoder.width, recipe.width)

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        features = self.image_encoder(images)
        return ImageFeatures(self._image(features), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """A text is the mean of its sentences' vectors, made unit length: training sees single sentences."""
        sentences = [split_sentences(text) or [text] for text in texts]
        counts = torch.tensor([len(some) for some in sentences])
        tokens = self.text_encoder.pad([self.text_encoder.tokens([s]) for some in sentences for s in some])
        device = next(self.image_head.parameters()).device
        vectors = self._text(tokens["ids"].to(device), tokens["mask"].to(device))
        mask = torch.arange(int(counts.max())) < counts.unsqueeze(1)  # (T, S)
        padded = vectors.new_zeros(*mask.shape, vectors.shape[1])
        padded[mask.to(device)] = vectors
        return TextFeatures(F.normalize(padded.sum(dim=1), dim=-1), padded, mask.to(device))

    def _image(self, features: Tensor) -> Tensor:
        """v: unit-length vectors (B, D) of last maps (B, C, h, w), averaged."""
        return F.normalize(self.image_head(features.mean(dim=(2, 3))).float(), dim=-1)

    def _text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """u: unit-length vectors (B, D) of texts, the largest value of each channel over their tokens."""
        words = self.text_encoder(ids, mask)
        pooled = words.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)
        return F.normalize(self.text_head(pooled).float(), dim=-1)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and one of its sentences of at least three words."""
        sentences = study.report.sentences
        long = [s for s in sentences if len(s.split()) >= LEAST_WORDS] or list(sentences)
        return self.pair(study, [long[rng.integers(len(long))]], self.recipe.augmentation, rng)

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        image = self._image(self.image_encoder(self.normalise(batch["image"])))
        text = self._text(batch["ids"], batch["mask"])
        forth, back = info_nce_directions(image, text, 1 / self.recipe.tau)
        share = self.recipe.image_to_text
        return {"l_v_to_u": (share, forth), "l_u_to_v": (1 - share, back)}


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
