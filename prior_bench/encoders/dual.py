"""What methods with an image and a text encoder share: building, encoding of texts, the pyramid, views and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from prior_bench.data.augment import Augmentation, augment
from prior_bench.data.reports import split_sentences
from prior_bench.encoders.image import ImageEncoder, image_input
from prior_bench.encoders.text import TextEncoder
from prior_bench.errors import UserError
from prior_bench.method import Batch, Method, Sample, StudyView
from prior_bench.recipes import Recipe


class DualEncoder(Method):
    """Base of methods that train on pairs. Subclasses add heads, `encode_image`, `encode_text`, `view` and `losses`.

    One that has weights without text in the world, too, builds itself without a text encoder.
    """

    recipe: Recipe
    text_encoder: TextEncoder

    def __init__(self, recipe: Recipe, text_encoder: TextEncoder | None):
        super().__init__()
        self.recipe = recipe
        self.image_input = image_input(recipe.image)
        self.image_encoder = ImageEncoder(recipe.image)
        self.has_text = text_encoder is not None
        if text_encoder is not None:
            self.text_encoder = text_encoder

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Self:
        assert isinstance(recipe, cls.recipe_class)
        if recipe.text is None:
            raise UserError(f"{cls.title} needs a text encoder, and the recipe has none", where="text",
                            expected="a text encoder's name and sizes", fix="leave text=null out")
        return cls(recipe, TextEncoder.build(recipe.text, texts, tokenizer))

    def save_tokenizer(self, folder: Path) -> None:
        if self.recipe.text is not None:
            self.text_encoder.save(folder)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.image_encoder.pyramid(images)

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        return self.image_encoder.pyramid_channels

    def tokens(self, texts: Sequence[str]) -> Batch:
        """Word pieces of whole texts, split into sentences as training reports are, on the method's device."""
        tokens = self.text_encoder.pad([self.text_encoder.tokens(split_sentences(text)) for text in texts])
        device = next(self.parameters()).device
        return {key: value.to(device) for key, value in tokens.items()}

    def pair(self, study: StudyView, sentences: Sequence[str], how: Augmentation, rng: np.random.Generator) -> Sample:
        """One of the study's images, augmented, and some sentences as word pieces."""
        pixels = augment(study.images[rng.integers(len(study.images))], how, rng)
        return {"image": pixels, "tokens": self.text_encoder.tokens(sentences)}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        images = torch.from_numpy(np.stack([s["image"] for s in samples])).unsqueeze(1)
        return {"image": images, **self.text_encoder.pad([s["tokens"] for s in samples])}
