"""ConVIRT: Contrastive Learning of Medical Visual Representations from Paired Images and Text.

Y. Zhang, H. Jiang, Y. Miura, C. D. Manning, C. P. Langlotz; MLHC 2022, arXiv 2010.00747. The equations, and every
deviation from the paper, are in README.md beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prior_bench import recipes
from prior_bench.data.augment import Augmentation
from prior_bench.data.reports import split_sentences
from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.text import TextEncoder
from prior_bench.errors import UserError
from prior_bench.layouts import image_state, recognise, renamed, text_state
from prior_bench.losses import info_nce_directions
from prior_bench.method import Batch, ImageFeatures, Sample, StudyView, TextFeatures
from prior_bench.recipes import Recipe, later

LEAST_WORDS = 3  # of a sentence that is a text view


# Released files by layout: the recipe that computes as they were trained, and their heads' names.
RELEASED: dict[str, tuple[str, dict[str, str]]] = {
    "convirt-benchx": ("benchx", {"vis_proj.": "image_head.", "lin_proj.": "text_head."}),
    "convirt-edreis": ("edreis", {"res_l1.": "image_head.0.", "res_l2.": "image_head.2.", "bert_l1.": "text_head.0.",
                                  "bert_l2.": "text_head.2."}),
}


class ConvirtRecipe(Recipe):
    """ConVIRT's settings; `width` is that of the joint space, and of the heads' hidden layers unless `hidden` is
    "input", the width that comes in. `whole_reports` and `text_pooling` other than "max" are not the paper's; released
    weights need them."""

    width: int = 512
    hidden: Literal["joint", "input"] = later("joint")
    text_pooling: Literal["max", "mean", "pooler"] = later("max")  # of tokens; "pooler": BERT's own, of the first token
    whole_reports: bool = later(False)  # a text is a report, not a sentence
    tau: float = Field(0.1, gt=0)
    image_to_text: float = Field(0.75, ge=0, le=1)  # lambda, the weight of that direction
    frozen_layers: int = Field(0, ge=0)  # of the text encoder, with its embeddings
    augmentation: Augmentation = Augmentation()


class Convirt(DualEncoder):
    name = "convirt"
    title = "ConVIRT"
    paper = "https://arxiv.org/abs/2010.00747"
    contrastive: ClassVar[Mapping[str, float]] = {"l_v_to_u": 1, "l_u_to_v": 1}
    recipe_class: ClassVar[type[Recipe]] = ConvirtRecipe
    recipe: ConvirtRecipe

    def __init__(self, recipe: ConvirtRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        if recipe.text_pooling == "pooler" and getattr(text_encoder.model, "pooler", None) is None:
            raise UserError("the text encoder has no pooler", where="text_pooling", expected="max or mean")
        self.image_head = self._head(self.image_encoder.channels)
        self.text_encoder.freeze(recipe.frozen_layers)
        self.text_head = self._head(text_encoder.width)

    def _head(self, inputs: int) -> nn.Sequential:
        hidden = inputs if self.recipe.hidden == "input" else self.recipe.width
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, self.recipe.width))

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The files of BenchX and of edreisMD, each by the recipe of that name: no other would compute as they do."""
        layout = recognise(state)
        if layout is None or layout.name not in RELEASED:
            return state
        name, heads = RELEASED[layout.name]
        needed = recipes.load(Path(__file__).with_name("recipe.yaml"), name, ConvirtRecipe)
        if (self.recipe.text_pooling, self.recipe.whole_reports) != (needed.text_pooling, needed.whole_reports):
            raise UserError(f"the file is {layout.title}, whose texts are encoded otherwise than this recipe does",
                            where="text_pooling, whole_reports", fix=f"give --recipe {name}")
        ours = renamed({key: value for key, value in state.items() if key.startswith(tuple(heads))}, heads)
        ours |= {f"image_encoder.model.{key}": value for key, value in image_state(state, layout).items()}
        return ours | {f"text_encoder.model.{key}": value for key, value in text_state(state, layout).items()}

    # --------------------------------------------------------------------------------------- encoding

    def encode_image(self, images: Tensor) -> ImageFeatures:
        features = self.image_encoder(images)
        return ImageFeatures(self._image(features), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """A text is the mean of its sentences' vectors, made unit length: training sees single sentences. With
        `whole_reports` it is one vector."""
        if self.recipe.whole_reports:
            whole = self.tokens(texts)
            return TextFeatures(self._text(whole["ids"], whole["mask"]))
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
        """u: unit-length vectors (B, D) of texts, the largest value of each channel over their tokens, or as the recipe
        pools them."""
        words = self.text_encoder(ids, mask)
        if self.recipe.text_pooling == "pooler":
            pooled = self.text_encoder.model.pooler(words)
        elif self.recipe.text_pooling == "mean":
            pooled = (words * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            pooled = words.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)
        return F.normalize(self.text_head(pooled).float(), dim=-1)

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and one of its sentences of at least three words, or its report."""
        sentences = study.report.sentences
        if self.recipe.whole_reports:
            return self.pair(study, sentences, self.recipe.augmentation, rng)
        long = [s for s in sentences if len(s.split()) >= LEAST_WORDS] or list(sentences)
        return self.pair(study, [long[rng.integers(len(long))]], self.recipe.augmentation, rng)

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        image = self._image(self.image_encoder(self.normalise(batch["image"])))
        text = self._text(batch["ids"], batch["mask"])
        forth, back = info_nce_directions(image, text, 1 / self.recipe.tau)
        share = self.recipe.image_to_text
        return {"l_v_to_u": (share, forth), "l_u_to_v": (1 - share, back)}
