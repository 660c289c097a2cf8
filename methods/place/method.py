"""PLACE: Improving Medical Visual Representation Learning with Pathological-level Cross-Modal Alignment and Correlation
Exploration. J. Wang, L. Zhu, X. Yu, A. Bhalerao, Y. He; 2025, arXiv 2506.10573.

A re-implementation from the abstract, not a reproduction: README.md says what is published and what was decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from prior_bench.data.augment import Augmentation
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.heads import bn_head, project_tokens, unit
from prior_bench.encoders.text import TextEncoder
from prior_bench.losses import info_nce, mean_over_pairs
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.methods.place.correlation import CorrelationHead, correlation_loss, patch_correlation
from prior_bench.methods.place.pathology import SentencePool, VisualObservations, pair_scores, set_alignment
from prior_bench.recipes import Recipe
from prior_bench.set_similarity import attention_map


class PlaceRecipe(Recipe):
    """PLACE's settings; `width` is that of the joint space and of the observations."""

    width: int = 128
    hidden: int = 2048  # of the heads
    queries: int = Field(16, gt=0)
    query_width: int = 768  # of the decoder that makes visual observations, and of the correlation head
    query_layers: int = Field(2, gt=0)
    query_heads: int = 8
    sentences: int = Field(16, gt=0)  # of a report, at most
    tau_global: float = Field(0.07, gt=0)
    tau_attention: float = Field(0.1, gt=0)
    tau_observation: float = Field(0.1, gt=0)
    grid: int = Field(7, gt=1)  # cells along a side whose correlation is predicted
    condition: Literal["report", "none"] = "report"  # what the prediction reads beside the patches
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 0.5)  # of L_ita, L_pcma, L_cce
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, slots=True)
class _Image:
    """Unit-length vectors (B, D), patches (B, C, h, w), visual observations (B, K, D)."""

    joint: Tensor
    patches: Tensor
    observations: Tensor


@dataclass(frozen=True, slots=True)
class _Text:
    """Unit-length vectors (B, D), word pieces (B, L, C) with mask, textual observations (B, S, D) with mask."""

    joint: Tensor
    pieces: Tensor
    piece_mask: Tensor
    observations: Tensor
    mask: Tensor


class Place(DualEncoder):
    name = "place"
    title = "PLACE"
    paper = "https://arxiv.org/abs/2506.10573"
    contrastive: ClassVar[Mapping[str, float]] = {"L_ita": 1}
    recipe_class: ClassVar[type[Recipe]] = PlaceRecipe
    recipe: PlaceRecipe

    def __init__(self, recipe: PlaceRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        image, regions, wide = self.image_encoder.channels, self.image_encoder.pyramid_channels[2], recipe.query_width
        self.image_global = bn_head(image, recipe.hidden, recipe.width)
        self.text_global = bn_head(text_encoder.width, recipe.hidden, recipe.width)
        self.visual = VisualObservations(regions, wide, recipe.queries, recipe.query_layers, recipe.query_heads)
        self.image_local = bn_head(wide, recipe.hidden, recipe.width)
        self.sentence_pool = SentencePool(text_encoder.width)
        self.text_local = bn_head(text_encoder.width, recipe.hidden, recipe.width)
        self.correlation_patches = nn.Conv2d(regions, wide, 1)
        self.correlation_words = nn.Linear(text_encoder.width, wide)
        self.correlation = CorrelationHead(wide, recipe.query_heads, 64, recipe.grid)

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        whole, features = self.image_encoder.whole(images)
        return ImageFeatures(unit(self.image_global(whole)), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        text = self._text(self.tokens(texts))
        return TextFeatures(text.joint, text.observations, text.mask)

    def local_score(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        """Mean of the two directions' cosines of observations, (Z + Z') / 2."""
        text = self._text(self.tokens(texts))
        forth, back = pair_scores(self._image(images).observations, text.observations, text.mask,
                                  self.recipe.tau_attention)
        return (forth + back) / 2

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """What the queries read, mixed by how much the sentence attends to each query's observation."""
        image, text = self._image(images), self._text(self.tokens(texts))
        read = self.visual.attention(image.patches.flatten(2).mT)
        return {"sentence to image": attention_map(self._picked(image, text) @ read, text.mask)}

    def prototype_use(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """The attention of each sentence to the queries' observations of its image."""
        image, text = self._image(images), self._text(self.tokens(texts))
        return {"sentences": self._picked(image, text)[text.mask]}

    def _picked(self, image: _Image, text: _Text) -> Tensor:
        """a_ks (B, S, K): how much each sentence attends to each visual observation of its own image."""
        return (text.observations @ image.observations.mT / self.recipe.tau_attention).softmax(dim=2)

    def _image(self, images: Tensor) -> _Image:
        """Patches are a transformer's, or the positions of a convolutional network's map of stride 16."""
        if self.image_encoder.plain:
            seen = self.image_encoder.with_class_token(images)
            whole, patches = seen.token, seen.map
        else:
            levels = self.image_encoder.pyramid(images)
            whole, patches = levels[3].mean(dim=(2, 3)), levels[2]
        found = self.visual(patches.flatten(2).mT)
        everything = torch.ones(found.shape[:2], dtype=torch.bool, device=found.device)
        return _Image(unit(self.image_global(whole)), patches, project_tokens(self.image_local, found, everything))

    def _text(self, tokens: Batch) -> _Text:
        pieces = self.text_encoder(tokens["ids"], tokens["mask"])
        sentences, mask = self.sentence_pool(pieces, tokens["sentence"], self.recipe.sentences)
        return _Text(unit(self.text_global(pieces[:, 0])), pieces, tokens["mask"],
                     project_tokens(self.text_local, sentences, mask), mask)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and its whole report."""
        return self.pair(study, study.report.sentences, self.recipe.augmentation, rng)

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        recipe, images = self.recipe, self.normalise(batch["image"])
        image, text = self._image(images), self._text(batch)
        terms = {
            "L_ita": info_nce(image.joint, text.joint, 1 / recipe.tau_global),
            "L_pcma": set_alignment(image.observations, text.observations, text.mask, recipe.tau_attention,
                                    recipe.tau_observation),
            "L_cce": mean_over_pairs(correlation_loss(self._correlation(image, text),
                                                      patch_correlation(images, recipe.grid))),
        }
        return {name: (weight, terms[name]) for name, weight in zip(terms, recipe.loss_weights, strict=True)}

    def _correlation(self, image: _Image, text: _Text) -> Tensor:
        patches, mask = self.correlation_patches(image.patches), text.piece_mask
        words = self.correlation_words(text.pieces)
        if self.recipe.condition == "none":  # nothing of the report but its beginning, which says nothing
            words, mask = torch.zeros_like(words[:, :1]), mask[:, :1]
        found: Tensor = self.correlation(patches, words, mask)
        return found
