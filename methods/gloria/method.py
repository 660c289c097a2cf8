"""GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical Image Recognition.

S.-C. Huang, L. Shen, M. P. Lungren, S. Yeung; ICCV 2021. The equations, and every deviation from the authors' code, are
in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field, model_validator
from torch import Tensor, nn

from prior_bench.data.augment import Augmentation
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.pooling import segment_sums
from prior_bench.encoders.text import TextEncoder
from prior_bench.layouts import renamed
from prior_bench.losses import cosine_matrix, gather_padded, info_nce_directions, pair_cross_entropy
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.methods.gloria.local_similarity import log_sum_exp, word_cosines
from prior_bench.recipes import Recipe
from prior_bench.set_similarity import attention_map

PROMPTS = Path(__file__).parent / "prompts.yaml"


class GloriaRecipe(Recipe):
    """GLoRIA's settings; the joint width is the text encoder's, so that `width` is not set."""

    tau_1: float = Field(4.0, gt=0)  # of the attention over regions
    tau_2: float = Field(5.0, gt=0)  # of the words' cosines
    tau_3: float = Field(10.0, gt=0)  # of both contrastive losses
    text_layers: int = Field(4, gt=0)  # last layers whose hidden states are summed
    length_normalised: bool = True  # the mean over words in the image-report similarity, in place of the sum
    sentences: bool = False  # train on one random sentence, not on the whole report
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _no_width(self) -> GloriaRecipe:
        if self.width != Recipe.model_fields["width"].default:
            raise ValueError("width: the joint width is the text encoder's; leave it out")
        return self


@dataclass(frozen=True, slots=True)
class _Text:
    """Encoded reports: unit-length vectors (B, D), words (B, L, D) and their mask (B, L)."""

    joint: Tensor
    words: Tensor
    mask: Tensor


class Gloria(DualEncoder):
    name = "gloria"
    title = "GLoRIA"
    paper = "https://doi.org/10.1109/ICCV48922.2021.00391"
    contrastive: ClassVar[Mapping[str, float]] = {"L_global": 2, "L_local": 2}
    recipe_class: ClassVar[type[Recipe]] = GloriaRecipe
    recipe: GloriaRecipe
    official_text: Tensor

    def __init__(self, recipe: GloriaRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        self.register_buffer("official_text", torch.tensor(False))  # travels with the weights
        width = text_encoder.width  # of the joint space, too: texts are not projected
        self.global_embedder = nn.Linear(self.image_encoder.channels, width)
        self.local_embedder = nn.Conv2d(self.image_encoder.pyramid_channels[2], width, 1, bias=False)

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' Lightning file, `gloria.img_encoder.*` and `gloria.text_encoder.*`; in their reports' vectors
        [CLS] and [SEP] count."""
        if not any(key.startswith("gloria.") for key in state):
            return state
        names = {"gloria.img_encoder.model.": "image_encoder.model.", "gloria.img_encoder.": "",
                 "gloria.text_encoder.model.": "text_encoder.model."}
        kept = {key: value for key, value in state.items() if not key.endswith("position_ids")}
        return renamed(kept, names) | {"official_text": torch.tensor(True)}

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        features = self.image_encoder(images)
        return ImageFeatures(self._global(features), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        text = self._text(self.tokens(texts))
        return TextFeatures(text.joint, words=text.words, word_mask=text.mask)

    def local_score(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        """log mean_k exp(tau_2 cos_k) / tau_2 over a text's words."""
        text = self._text(self.tokens(texts))
        cosines, _ = word_cosines(self._regions(self.image_encoder.pyramid(images)), text.words, text.mask,
                                  self.recipe.tau_1)
        return log_sum_exp(cosines, text.mask, self.recipe.tau_2, mean=True) / self.recipe.tau_2

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """The two-step attention of the sentence's words to regions, averaged over words."""
        text = self._text(self.tokens(texts))
        _, attention = word_cosines(self._regions(self.image_encoder.pyramid(images)), text.words, text.mask,
                                    self.recipe.tau_1)
        own = torch.arange(len(texts), device=attention.device)
        return {"words to image": attention_map(attention[own, own], text.mask)}

    def paper_zero_shot(self, images: Iterable[Tensor], classes: Sequence[str]) -> Tensor | None:
        """Of a class's five prompts the largest mean of the cosine and tau_2 times the best word's cosine; then each
        class's scores are standardised over the test set."""
        prompts = yaml.safe_load(PROMPTS.read_text())
        if not set(classes) <= set(prompts):
            return None
        text = self._text(self.tokens([sentence for name in classes for sentence in prompts[name]]))
        scores = []
        for batch in images:
            levels = self.image_encoder.pyramid(batch)
            cosines, _ = word_cosines(self._regions(levels), text.words, text.mask, self.recipe.tau_1)
            local = self.recipe.tau_2 * cosines.masked_fill(~text.mask, float("-inf")).amax(dim=2)
            both = (cosine_matrix(self._global(levels[3]), text.joint) + local) / 2
            scores.append(both.unflatten(1, (len(classes), -1)).amax(dim=2))
        whole = torch.cat(scores)
        return (whole - whole.mean(dim=0)) / whole.std(dim=0, correction=0).clamp_min(1e-12)

    def _global(self, features: Tensor) -> Tensor:
        """Unit-length image vectors (B, D) of last maps (B, C, h, w)."""
        return F.normalize(self.global_embedder(features.mean(dim=(2, 3))).float(), dim=-1)

    def _regions(self, levels: Sequence[Tensor]) -> Tensor:
        """Region vectors (B, R, D): the positions of the map of stride 16."""
        out: Tensor = self.local_embedder(levels[2]).flatten(2).mT
        return out

    def _text(self, tokens: Batch) -> _Text:
        """A word is the sum of its pieces, a report that of its words (its length is made 1), over the last layers. A
        text without words is its special tokens."""
        layers = min(self.recipe.text_layers, self.text_encoder.model.config.num_hidden_layers)
        pieces = self.text_encoder.last_layers(tokens["ids"], tokens["mask"], layers).sum(dim=0).float()
        count = max(int(tokens["word"].max()) + 1, 1)
        words, sizes = segment_sums(pieces, tokens["word"], count)
        mask = sizes > 0
        whole = (pieces * tokens["mask"].unsqueeze(-1)).sum(dim=1)
        total = whole if self.official_text else torch.where(mask.any(dim=1, keepdim=True), words.sum(dim=1), whole)
        return _Text(F.normalize(total, dim=-1), words, mask)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and its report, or one sentence of it."""
        sentences = list(study.report.sentences)
        if self.recipe.sentences:
            sentences = [sentences[rng.integers(len(sentences))]]
        return self.pair(study, sentences, self.recipe.augmentation, rng)

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        levels = self.image_encoder.pyramid(self.normalise(batch["image"]))
        text = self._text(batch)
        forth, back = info_nce_directions(self._global(levels[3]), text.joint, self.recipe.tau_3)
        return {"L_global": (1.0, forth + back), "L_local": (1.0, self._local_loss(self._regions(levels), text))}

    def _local_loss(self, regions: Tensor, text: _Text) -> Tensor:
        """Both directions, with the images and the reports of all ranks as negatives."""
        (all_regions, all_words, all_masks), before = gather_padded(regions, text.words, text.mask)
        tau_2, tau_3, mean = self.recipe.tau_2, self.recipe.tau_3, self.recipe.length_normalised

        def similarity(some: Tensor, words: Tensor, mask: Tensor) -> Tensor:
            cosines, _ = word_cosines(some, words, mask, self.recipe.tau_1)
            return tau_3 * log_sum_exp(cosines, mask, tau_2, mean)

        of_images = similarity(regions, all_words, all_masks)
        if len(all_regions) == len(regions):  # one rank: the other direction is the same table
            return pair_cross_entropy(of_images, before) + pair_cross_entropy(of_images.T, before)
        return (pair_cross_entropy(of_images, before)
                + pair_cross_entropy(similarity(all_regions, text.words, text.mask).T, before))
