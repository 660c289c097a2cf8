"""PRIOR: Prototype Representation Joint Learning from Medical Images and Reports.

P. Cheng, L. Lin, J. Lyu, Y. Huang, W. Luo, X. Tang; ICCV 2023, arXiv 2307.12577. The equations, and every deviation
from the authors' code, are in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from prior_bench.data.augment import Augmentation, augment
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.image import fit_channels
from prior_bench.encoders.pooling import AttentionPool, sentence_means
from prior_bench.encoders.text import TextEncoder
from prior_bench.losses import cosine_matrix, info_nce, masked_mean, mean_over_pairs
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.methods.prior import official
from prior_bench.methods.prior.decoders import (
    ImageDecoder,
    SentenceDecoder,
    image_reconstruction_loss,
    match,
    reorder,
)
from prior_bench.methods.prior.local_alignment import CrossAttention, Predictor, image_loss, text_loss
from prior_bench.methods.prior.prototypes import PrototypeBank, Schedule, Similarity
from prior_bench.recipes import Recipe, Strict
from prior_bench.set_similarity import attention_map

Term = Literal["L_global", "L_li", "L_lt", "L_proto", "L_rec", "L_spg", "L_kl", "L_gpa"]


class Prototypes(Strict):
    """The sentence prototype bank. `start: data` makes prototypes the k-means centres of stage 1's last sentences."""

    count: int = Field(512, gt=1)
    similarity: Similarity = "dot"
    temperature: float = Field(0.9, gt=0)
    schedule: Schedule = "fixed"
    start: Literal["random", "data"] = "random"
    memory: int = 4096  # sentences remembered for `start: data`


class Decoders(Strict):
    """Sizes of the two decoders."""

    image_channels: int = 768  # of the first up-sampling block; each further one has half
    image_blocks: int = Field(5, ge=1)  # each doubles the side; the target image is resized to the result
    mask: Literal["channel", "spatial"] = "channel"  # what the masking of local features drops
    mask_rate: float = Field(0.5, ge=0, lt=1)
    queries: int = Field(16, gt=0)
    sentence_layers: int = Field(8, gt=0)
    sentence_heads: int = 12
    dropout: float = Field(0.1, ge=0, lt=1)  # of the sentence decoder


class PriorRecipe(Recipe):
    """PRIOR's settings. `weights` holds the loss weights of each stage of `training.stages`; a stage that names
    L_proto, and all after it, align quantised sentences, the stages before raw ones."""

    width: int = 768
    pooling: Literal["attention", "mean"] = "attention"  # of the image's last map
    pool_heads: int = 8
    tau_global: float = Field(0.01, gt=0)  # starting temperatures of the two contrastive losses
    tau_local: float = Field(0.01, gt=0)
    prototypes: Prototypes = Prototypes()
    decoders: Decoders = Decoders()
    weights: tuple[dict[Term, float], ...]
    augmentation: Augmentation = Augmentation(rotation=5.0)
    official_layout: bool = False  # local tokens as the authors' code has them, without a transpose

    @model_validator(mode="after")
    def _weights_for_every_stage(self) -> PriorRecipe:
        if self.training is not None and len(self.training.stages) != len(self.weights):
            raise ValueError(f"weights has {len(self.weights)} stages and training.stages {len(self.training.stages)}")
        return self


@dataclass(frozen=True, slots=True)
class _Text:
    """Encoded reports: sentences (B, S, D) raw and as they are aligned, their mask (B, S), report vectors (B, D)."""

    raw: Tensor
    sentences: Tensor
    mask: Tensor
    report: Tensor


class Prior(DualEncoder):
    name = "prior"
    title = "PRIOR"
    paper = "https://arxiv.org/abs/2307.12577"
    contrastive: ClassVar[Mapping[str, float]] = {"L_global": 1, "L_gpa": 1}
    recipe_class: ClassVar[type[Recipe]] = PriorRecipe
    local_weight: ClassVar[float] = 0.5
    recipe: PriorRecipe
    official_layout: Tensor

    def __init__(self, recipe: PriorRecipe, text_encoder: TextEncoder | None):
        super().__init__(recipe, text_encoder)
        width, channels = recipe.width, self.image_encoder.channels
        self.image_pool = None
        if recipe.pooling == "attention":
            self.image_pool = AttentionPool(channels, recipe.pool_heads, self.image_encoder.grid(recipe.image.size))
        self.global_image_projection = _projection(channels, width)
        self.local_image_projection = _projection(channels, width)
        self.register_buffer("official_layout", torch.tensor(recipe.official_layout))  # travels with the weights
        if text_encoder is None:
            return
        self.local_text_projection = _projection(text_encoder.width, width)
        self.sentence_pool = AttentionPool(width, recipe.pool_heads)
        self.cross_attention = CrossAttention(width)
        self.predictor = Predictor(width)
        bank, sizes = recipe.prototypes, recipe.decoders
        memory = bank.memory if bank.start == "data" else 0
        self.bank = PrototypeBank(bank.count, width, bank.temperature, bank.similarity, memory)
        self.image_decoder = ImageDecoder(2 * width, sizes.image_channels, sizes.image_blocks)
        self.sentence_decoder = SentenceDecoder(width, sizes.queries, sizes.sentence_layers, sizes.sentence_heads,
                                                sizes.dropout)
        self.logit_scale = nn.Parameter(-torch.tensor(recipe.tau_global).log())
        self.local_logit_scale = nn.Parameter(-torch.tensor(recipe.tau_local).log())

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Prior:
        if isinstance(recipe, PriorRecipe) and recipe.text is None:  # for the authors' image-only file
            return cls(recipe, None)
        return super().from_recipe(recipe, texts, tokenizer)

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if official.is_ours(state):
            return state
        adapted = official.adapt(state)
        if self.recipe.text and any(key.startswith("bank.") for key in adapted):
            adapted["bank.temperature"] = self.bank.temperature  # a setting of the authors' code, not in their files
        kernel = "image_encoder.model.conv1.weight"
        if kernel in adapted:
            adapted[kernel] = fit_channels(adapted[kernel], self.image_input.channels)
        return adapted

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        features = self.image_encoder(images)
        return ImageFeatures(self._global(features) if self.has_text else None, features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        if not self.has_text:
            return super().encode_text(texts)
        encoded = self._encode_sentences(texts)
        return TextFeatures(encoded.report, encoded.sentences, encoded.mask)

    def local_score(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        """Mean sigmoid attention of both directions over tokens and sentences, in (0, 1)."""
        if not self.has_text:
            return None
        text = self._encode_sentences(texts)
        scores = self.cross_attention.score(self._local(self.image_encoder(images)), text.sentences[text.mask])
        owner = text.mask.nonzero()[:, 0]
        member = F.one_hot(owner, len(texts)).to(scores.dtype)  # (sentences, T)
        return scores @ (member / member.sum(dim=0).clamp_min(1))

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """Sigmoid attention in both directions; none in the authors' layout, where a token is no position."""
        if not self.has_text or self.official_layout:
            return None
        text = self._encode_sentences(texts)
        forth, back = self.cross_attention.attention(self._local(self.image_encoder(images)), text.sentences)
        return {"sentence to image": attention_map(forth, text.mask),
                "image to sentence": attention_map(back.mT, text.mask)}

    def prototype_use(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """The mixture over the bank that stands for each sentence."""
        if not self.has_text:
            return None
        text = self._encode_sentences(texts)
        return {"sentences": self.bank.mixture(text.raw[text.mask])}

    def paper_zero_shot(self, images: Iterable[Tensor], classes: Sequence[str]) -> Tensor | None:
        """softmax over classes of the stored logarithm of the scale (not its exponential) times the cosine, plus half
        of the softmax of the local scores; one prompt a class, taken as one sentence that holds [SEP] too."""
        if not self.has_text:
            return None
        tokens = self.text_encoder.pad([self.text_encoder.tokens([f"{name} is observed"]) for name in classes])
        tokens["sentence"] = torch.where(tokens["mask"], 0, -1)
        tokens["sentence"][:, 0] = -1  # [CLS] alone is left out
        device = self.logit_scale.device
        text = self._text({key: value.to(device) for key, value in tokens.items()}, quantise=self._quantised(-1))
        scores = []
        for batch in images:
            features = self.image_encoder(batch)
            cosine = cosine_matrix(self._global(features), text.report)
            local = self.cross_attention.score(self._local(features), text.sentences[:, 0])
            scores.append((self.logit_scale * cosine).softmax(dim=1) + 0.5 * local.softmax(dim=1))
        return torch.cat(scores)

    def _encode_sentences(self, texts: Sequence[str]) -> _Text:
        return self._text(self.tokens(texts), quantise=self._quantised(-1))

    def _global(self, features: Tensor) -> Tensor:
        """Unit-length image vectors (B, D) from last maps (B, C, h, w)."""
        if self.image_pool is None:
            pooled = features.mean(dim=(2, 3))
        else:
            pooled = self.image_pool(_tokens(features), grid=(features.shape[2], features.shape[3]))
        return F.normalize(self.global_image_projection(pooled).float(), dim=-1)

    def _local(self, features: Tensor) -> Tensor:
        """Local image tokens (B, h w, D): token i is position i of the map, unless `official_layout`."""
        tokens = _tokens(features)
        if self.official_layout:  # the buffer (C, h, w) read as (h w, C), as the authors' code does
            tokens = features.contiguous().view(tokens.shape)
        out: Tensor = self.local_image_projection(tokens)
        return out

    def _map(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Local tokens (B, h w, D) as a map (B, D, h, w), undoing `_local`'s layout."""
        height, width = features.shape[2:]
        if self.official_layout:
            return tokens.contiguous().view(len(tokens), -1, height, width)
        return tokens.mT.unflatten(2, (height, width))

    def _text(self, tokens: Batch, quantise: bool) -> _Text:
        """Words to sentences to reports. `tokens`: ids, mask and sentence, each (B, L)."""
        words = self.local_text_projection(self.text_encoder(tokens["ids"], tokens["mask"]))
        count = max(int(tokens["sentence"].max()) + 1, 1)
        raw, mask = sentence_means(words.float(), tokens["sentence"], count)
        sentences = self.bank(raw) * mask.unsqueeze(-1) if quantise else raw
        return _Text(raw, sentences, mask, self._report(sentences, mask))

    def _report(self, sentences: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.sentence_pool(sentences, mask).float(), dim=-1)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, slightly moved, and its sentences in random order."""
        pixels = augment(study.images[rng.integers(len(study.images))], self.recipe.augmentation, rng)
        sentences = study.report.sentences
        shuffled = [sentences[i] for i in rng.permutation(len(sentences))]
        return {"image": pixels, "tokens": self.text_encoder.tokens(shuffled)}

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        assert self.recipe.training is not None
        stage = self.recipe.training.stage_at(progress)
        weights = self.recipe.weights[stage]
        quantise = self._quantised(stage)
        if quantise:
            self._prepare_bank(progress)

        images = self.normalise(batch["image"])
        features = self.image_encoder(images)
        image, tokens = self._global(features), self._local(features)
        text = self._text(batch, quantise)
        if not quantise and self.recipe.prototypes.start == "data":
            self.bank.remember(text.raw[text.mask])

        scale = self.logit_scale.exp()
        seen = self.cross_attention(tokens, text.sentences.to(tokens.dtype), text.mask)
        terms: dict[str, Tensor] = {
            "L_global": info_nce(image, text.report, scale),
            "L_li": image_loss(tokens, seen.of_tokens, self.predictor),
            "L_lt": text_loss(text.sentences, seen.of_sentences, text.mask, self.local_logit_scale.exp()),
        }
        if "L_proto" in weights:
            distance = (text.sentences - text.raw).abs().mean(dim=-1)
            terms["L_proto"] = masked_mean(distance, text.mask)
        if "L_rec" in weights:
            terms["L_rec"] = self._reconstruct_image(images, features, tokens, seen.of_tokens)
        if weights.keys() & {"L_spg", "L_kl", "L_gpa"}:
            terms |= self._generate_sentences(tokens, text, scale)
        return {name: (weight, terms[name]) for name, weight in weights.items()}

    def _reconstruct_image(self, images: Tensor, features: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        masked = self._map(tokens, features)
        rate = self.recipe.decoders.mask_rate
        if self.recipe.decoders.mask == "channel":
            masked = F.dropout2d(masked, rate, self.training)
        else:
            masked = masked * F.dropout(masked.new_ones(len(masked), 1, *masked.shape[2:]), rate, self.training)
        condition = self._map(seen, features)
        return image_reconstruction_loss(self.image_decoder(torch.cat([masked, condition], dim=1)), images)

    def _generate_sentences(self, tokens: Tensor, text: _Text, scale: Tensor) -> dict[str, Tensor]:
        """L_spg, L_kl and L_gpa: sentence prototypes from the image alone, compared with the report's."""
        generated = self.sentence_decoder(tokens).float()
        queries = generated.shape[1]
        mask = _resize(text.mask, queries)
        targets = _resize(text.sentences * text.mask.unsqueeze(-1), queries)
        generated = reorder(generated, match(generated, targets, mask))
        kept = slice(0, min(queries, text.mask.shape[1]))
        divergence = self.bank.consistency(text.raw[:, kept], generated[:, kept])
        report = self._report(self.bank(generated) * mask.unsqueeze(-1), mask)
        return {
            "L_spg": mean_over_pairs((generated - targets).abs().mean(dim=(1, 2))),
            "L_kl": masked_mean(divergence, mask[:, kept]),
            "L_gpa": info_nce(report, text.report, scale),
        }

    # ----------------------------------------------------------------------------------------- stages

    def _quantised(self, stage: int) -> bool:
        """Whether sentences pass through the bank in a stage: from the first that trains it (-1: the last stage)."""
        weights = self.recipe.weights
        return any("L_proto" in w for w in weights[: (stage % len(weights)) + 1])

    def _prepare_bank(self, progress: float) -> None:
        """Before a step with the bank: its start from data, the first time, and its temperature."""
        assert self.recipe.training is not None
        if self.bank.remembered > 0:
            self.bank.start()
        stages = enumerate(self.recipe.training.stages)
        without = sum(stage.share for index, stage in stages if not self._quantised(index))
        bank = self.recipe.prototypes
        self.bank.set_temperature(bank.schedule, bank.temperature, (progress - without) / (1 - without))


def _projection(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


def _tokens(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return features.flatten(2).mT


def _resize(x: Tensor, rows: int) -> Tensor:
    """(B, S, ...) cut or zero-padded to (B, rows, ...)."""
    x = x[:, :rows]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [0, rows - x.shape[1]])
