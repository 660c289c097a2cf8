"""MGCA: Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning.

F. Wang, Y. Zhou, S. Wang, V. Vardhanabhuti, L. Yu; NeurIPS 2022, arXiv 2210.06044. The equations, and every deviation
from the authors' code, are in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prior_bench.data.augment import Augmentation
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.heads import bn_head, project_tokens, unit
from prior_bench.encoders.pooling import segment_sums
from prior_bench.encoders.text import TextEncoder
from prior_bench.layouts import renamed
from prior_bench.losses import info_nce_directions, token_alignment
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.methods.mgca.alignment import clipped_weights, prototype_alignment
from prior_bench.recipes import Recipe
from prior_bench.set_similarity import attention_map


class MgcaRecipe(Recipe):
    """MGCA's settings; `width` is that of the joint space, global and local alike."""

    width: int = 128
    hidden: int = 2048  # of the four heads
    tau_instance: float = Field(0.07, gt=0)
    tau_token: float = Field(0.1, gt=0)
    tau_prototype: float = Field(0.2, gt=0)
    prototypes: int = Field(500, gt=1)
    epsilon: float = Field(0.05, gt=0)  # of Sinkhorn
    iterations: int = Field(3, gt=0)  # of Sinkhorn
    frozen_prototypes: float = Field(0.02, ge=0, lt=1)  # share of the steps, from the first, in which they do not move
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of L_ITA, L_CTA, L_CPA
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, slots=True)
class _Side:
    """One modality: vectors (B, D), tokens (B, N, D), all unit length, with mask and weights (B, N)."""

    joint: Tensor
    tokens: Tensor
    mask: Tensor
    weights: Tensor


class Mgca(DualEncoder):
    name = "mgca"
    title = "MGCA"
    paper = "https://arxiv.org/abs/2210.06044"
    contrastive: ClassVar[Mapping[str, float]] = {"L_ITA": 2}
    recipe_class: ClassVar[type[Recipe]] = MgcaRecipe
    recipe: MgcaRecipe
    official_positions: Tensor

    def __init__(self, recipe: MgcaRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        self.text_encoder.model.pooler = None  # unused, and not in the authors' files
        self.register_buffer("official_positions", torch.tensor(False))  # travels with the weights
        image, regions = self.image_encoder.channels, self.image_encoder.pyramid_channels[2]
        self.image_global = bn_head(image, recipe.hidden, recipe.width)
        self.image_local = bn_head(regions, recipe.hidden, recipe.width)
        self.text_global = bn_head(text_encoder.width, recipe.hidden, recipe.width)
        self.text_local = bn_head(text_encoder.width, recipe.hidden, recipe.width)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(recipe.prototypes, recipe.width), dim=1))

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' Lightning file, `img_encoder_q.*` and `text_encoder_q.*`: local heads are convolutions, their
        BERT has no table of token types, and each of its tokens stands at position 0."""
        if not any(key.startswith("img_encoder_q.") for key in state):
            return state
        names = {"img_encoder_q.model.": "image_encoder.model.", "text_encoder_q.model.": "text_encoder.model.",
                 "img_encoder_q.global_embed.head.": "image_global.", "img_encoder_q.local_embed.head.": "image_local.",
                 "text_encoder_q.global_embed.head.": "text_global.", "text_encoder_q.local_embed.head.": "text_local.",
                 "prototype_layer.weight": "prototypes"}
        unused = ("patch_local_atten_layer.", "word_local_atten_layer.")
        kept = {key: value for key, value in state.items()
                if not key.startswith(unused) and not key.endswith("position_ids") and ".crossattention." not in key}
        ours = {key: value.squeeze(-1) if "_local." in key and value.dim() == 3 else value
                for key, value in renamed(kept, names).items()}
        types = "text_encoder.model.embeddings.token_type_embeddings.weight"
        if types not in ours and types in self.state_dict():
            ours[types] = torch.zeros_like(self.state_dict()[types])
        return ours | {"official_positions": torch.tensor(True)}

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        whole, features = self.image_encoder.whole(images)
        return ImageFeatures(unit(self.image_global(whole)), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        text = self._text(self.tokens(texts))
        return TextFeatures(text.joint, words=text.tokens, word_mask=text.mask)

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """What L_CTA lets the sentence's words attend to, weighted as the words are there."""
        image, text = self._image(images), self._text(self.tokens(texts))
        attention = (text.tokens @ image.tokens.mT / self.recipe.tau_token).softmax(dim=2)
        return {"words to image": attention_map(attention, text.weights)}

    def prototype_use(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """The predictions p of L_CPA; Sinkhorn's codes use all prototypes alike whatever the vectors are."""
        joint = {"images": self.encode_image(images).joint, "texts": self.encode_text(texts).joint}
        return {side: (z @ self.prototypes.T / self.recipe.tau_prototype).softmax(dim=1)
                for side, z in joint.items() if z is not None}

    def _image(self, images: Tensor) -> _Side:
        """Regions are the patches of a transformer, weighted by the class token's attention, or the positions of a
        convolutional network's map of stride 16, all alike."""
        if self.image_encoder.plain:
            seen = self.image_encoder.with_class_token(images)
            whole, regions = seen.token, seen.map.flatten(2).mT
            mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
            weights = clipped_weights(seen.attention, mask)
        else:
            levels = self.image_encoder.pyramid(images)
            whole, regions = levels[3].mean(dim=(2, 3)), levels[2].flatten(2).mT
            mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
            weights = mask / regions.shape[1]
        return _Side(unit(self.image_global(whole)), project_tokens(self.image_local, regions, mask), mask, weights)

    def _text(self, tokens: Batch) -> _Side:
        """The class token is the report; a word is the sum of its pieces, weighted by their share of its attention."""
        self.text_encoder.without_order = bool(self.official_positions)
        states, attention = self.text_encoder.with_class_attention(tokens["ids"], tokens["mask"])
        count = max(int(tokens["word"].max()) + 1, 1)
        words, sizes = segment_sums(states, tokens["word"], count)
        shares, _ = segment_sums(attention.unsqueeze(-1), tokens["word"], count)
        mask = sizes > 0
        return _Side(unit(self.text_global(states[:, 0])), project_tokens(self.text_local, words, mask), mask,
                     clipped_weights(shares.squeeze(-1), mask))

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and its whole report."""
        return self.pair(study, study.report.sentences, self.recipe.augmentation, rng)

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        recipe = self.recipe
        image, text = self._image(self.normalise(batch["image"])), self._text(batch)
        prototypes = self.prototypes.detach() if progress < recipe.frozen_prototypes else self.prototypes
        forth, back = info_nce_directions(image.joint, text.joint, 1 / recipe.tau_instance)
        terms = {
            "L_ITA": forth + back,
            "L_CTA": token_alignment(text.tokens, text.mask, text.weights, image.tokens, image.weights,
                                     recipe.tau_token),
            "L_CPA": prototype_alignment(image.joint, text.joint, prototypes, recipe.tau_prototype, recipe.epsilon,
                                         recipe.iterations),
        }
        return {name: (weight, terms[name]) for name, weight in zip(terms, recipe.loss_weights, strict=True)}

    def after_step(self, progress: float) -> None:
        """Prototypes keep unit length."""
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
