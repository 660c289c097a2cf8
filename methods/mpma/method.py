"""MPMA: Multi-task Paired Masking with Alignment Modeling for Medical Vision-Language Pre-training.

K. Zhang, Y. Yang, J. Yu, H. Jiang, J. Fan, Q. Huang, W. Han; IEEE Transactions on Multimedia 2023, arXiv 2305.07920.

A re-implementation from the abstract, not a reproduction: README.md says what is published and what was decided here.
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
from prior_bench.encoders.heads import unit
from prior_bench.encoders.mae import PatchDecoder, hidden_patches, masked_patch_error, random_kept
from prior_bench.encoders.pooling import sentence_means
from prior_bench.encoders.text import TextEncoder, Tokens
from prior_bench.errors import UserError
from prior_bench.losses import info_nce, masked_mean, mean_over_pairs, token_alignment
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.methods.mpma.fusion import Fusion
from prior_bench.recipes import Recipe, Strict
from prior_bench.set_similarity import attention_map


class FusionSizes(Strict):
    """Sizes of the memory-augmented fusion."""

    layers: int = Field(3, gt=0)
    heads: int = 12
    memory: int = Field(2048, gt=0)
    memory_width: int = 512
    top: int = Field(32, gt=0)  # memory rows that a token reads


class DecoderSizes(Strict):
    """Sizes of the image decoder."""

    layers: int = Field(4, gt=0)
    width: int = 768
    heads: int = 6


class MpmaRecipe(Recipe):
    """MPMA's settings."""

    width: int = 256
    image_masked: float = Field(0.75, gt=0, lt=1)  # share of the patches
    words_masked: float = Field(0.5, gt=0, lt=1)  # share of the words
    tau_global: float = Field(0.07, gt=0)  # the start; it is learned
    tau_local: float = Field(0.1, gt=0)
    fusion: FusionSizes = FusionSizes()
    decoder: DecoderSizes = DecoderSizes()
    loss_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.5)  # of L_mim, L_mlm, L_global, L_local
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True, slots=True)
class _Text:
    """Unit-length vectors (B, D), sentences (B, S, D) of unit length with their mask (B, S)."""

    joint: Tensor
    sentences: Tensor
    mask: Tensor


class Mpma(DualEncoder):
    name = "mpma"
    title = "MPMA"
    paper = "https://arxiv.org/abs/2305.07920"
    contrastive: ClassVar[Mapping[str, float]] = {"L_global": 1}
    recipe_class: ClassVar[type[Recipe]] = MpmaRecipe
    recipe: MpmaRecipe

    def __init__(self, recipe: MpmaRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        if not self.image_encoder.plain:
            raise UserError(f"MPMA masks patches, which {recipe.image.name!r} does not have", where="image.name",
                            expected="a plain vision transformer, such as vit_tiny_patch16_224")
        if recipe.image.size % self.image_encoder.stride:
            raise UserError(f"MPMA reconstructs whole patches, and images of {recipe.image.size} pixels do not divide "
                            "into them", where="image.size", expected=f"a multiple of {self.image_encoder.stride}")
        image, text, width = self.image_encoder.channels, text_encoder.width, recipe.width
        self.image_head, self.text_head = _head(image, width), _head(text, width)
        self.image_local, self.text_local = nn.Linear(image, width), nn.Linear(text, width)
        self.logit_scale = nn.Parameter(-torch.tensor(recipe.tau_global).log())
        sizes, stride = recipe.fusion, self.image_encoder.stride
        self.fusion = Fusion(text, image, sizes.layers, sizes.heads, sizes.memory, sizes.memory_width, sizes.top)
        self.word_bias = nn.Parameter(torch.zeros(text_encoder.model.config.vocab_size))
        self.patches = self.image_encoder.grid(recipe.image.size) ** 2
        self.image_decoder = PatchDecoder(image, recipe.decoder.width, recipe.decoder.layers, recipe.decoder.heads,
                                          self.patches, stride**2 * recipe.image.channels)

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        features = self.image_encoder(images)
        return ImageFeatures(self._global(features), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        text = self._text(self.tokens(texts))
        return TextFeatures(text.joint, text.sentences, text.mask)

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """What L_local lets the sentence attend to."""
        text, patches = self._text(self.tokens(texts)), self._patches(self.image_encoder(images))
        attention = (text.sentences @ patches.mT / self.recipe.tau_local).softmax(dim=2)
        return {"sentence to image": attention_map(attention, text.mask)}

    def _patches(self, features: Tensor) -> Tensor:
        """Unit-length patch vectors (B, N, D) of last maps (B, C, h, w)."""
        return unit(self.image_local(features.flatten(2).mT))

    def _global(self, features: Tensor) -> Tensor:
        return unit(self.image_head(features.mean(dim=(2, 3))))

    def _text(self, tokens: Batch) -> _Text:
        """A report is the mean of its words, a sentence the mean of its own."""
        words = self.text_encoder(tokens["ids"], tokens["mask"]).float()
        own = (tokens["sentence"] >= 0).unsqueeze(-1)
        mean = (words * own).sum(dim=1) / own.sum(dim=1).clamp_min(1)
        sentences, mask = sentence_means(words, tokens["sentence"], max(int(tokens["sentence"].max()) + 1, 1))
        return _Text(unit(self.text_head(mean)), unit(self.text_local(sentences)) * mask.unsqueeze(-1), mask)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, its report in its own order, which patches stay, and which word pieces
        are masked: whole words, drawn at the recipe's rate."""
        sample = self.pair(study, study.report.sentences, self.recipe.augmentation, rng)
        return {**sample, "masked": _masked_pieces(sample["tokens"], self.recipe.words_masked, rng),
                "kept": random_kept(self.patches, self.recipe.image_masked, rng)}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        batch = dict(super().collate(samples))
        masked = torch.zeros(batch["ids"].shape, dtype=torch.bool)
        for row, sample in zip(masked, samples, strict=True):
            row[: len(sample["masked"])] = torch.from_numpy(sample["masked"])
        return {**batch, "masked": masked, "kept": torch.from_numpy(np.stack([s["kept"] for s in samples]))}

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        """The clean pair is aligned, the masked pair reconstructed, by the same encoders."""
        images = self.normalise(batch["image"])
        features, text = self.image_encoder(images), self._text(batch)
        kept, side = batch["kept"], self.image_encoder.stride
        visible = self.image_encoder.visible_tokens(images, kept)
        hidden = hidden_patches(kept, self.patches)
        patches = self._patches(features)
        even = torch.full(patches.shape[:2], 1 / patches.shape[1], device=patches.device)
        shares = text.mask / text.mask.sum(dim=1, keepdim=True).clamp_min(1)
        terms = {
            "L_mim": mean_over_pairs(masked_patch_error(self.image_decoder(visible, kept), images, hidden, side)),
            "L_mlm": self._word_loss(batch, visible),
            "L_global": info_nce(self._global(features), text.joint, self.logit_scale.exp()),
            "L_local": token_alignment(text.sentences, text.mask, shares, patches, even, self.recipe.tau_local),
        }
        return {name: (weight, terms[name]) for name, weight in zip(terms, self.recipe.loss_weights, strict=True)}

    def _word_loss(self, batch: Batch, visible: Tensor) -> Tensor:
        """Cross-entropy of the masked word pieces, predicted from the other words and the visible patches; the output
        layer is the word table."""
        masked = batch["masked"]
        ids = batch["ids"].masked_fill(masked, self.text_encoder.tokenizer.mask_token_id)
        words = self.fusion(self.text_encoder(ids, batch["mask"]), batch["mask"], visible)
        table = self.text_encoder.model.get_input_embeddings().weight
        logits = words[masked] @ table.T + self.word_bias
        loss = masked.new_zeros(masked.shape, dtype=torch.float32)
        loss[masked] = F.cross_entropy(logits.float(), batch["ids"][masked], reduction="none")
        return masked_mean(loss, masked)


def _masked_pieces(tokens: Tokens, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which word pieces (L,) are masked: those of a share of the words, at least one."""
    words = int(tokens.word.max()) + 1
    chosen = rng.random(words) < share
    if words and not chosen.any():
        chosen[rng.integers(words)] = True
    found: np.ndarray = (tokens.word >= 0) & np.append(chosen, False)[tokens.word]
    return found


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))
