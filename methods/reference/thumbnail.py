"""Reference row `thumbnail`: the 16 x 16 mean pixels of an image. What a dataset gives away without any encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor

from prior_bench.encoders.image import image_input
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import Recipe
from prior_bench.task import NotApplicable

SIDE = 16


class Thumbnail(Method):
    """Its map is (B, 256, 1, 1), so that `pooled` holds the pixels. Dense tasks are not applicable."""

    name = "thumbnail"
    title = "16 x 16 pixels"
    has_text = False
    pretrains = False
    recipe_class: ClassVar[type[Recipe]] = Recipe

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.image_input = image_input(recipe.image)

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Self:
        return cls(recipe)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        pixels = F.adaptive_avg_pool2d(images.mean(dim=1), SIDE)
        return ImageFeatures(None, pixels.flatten(1)[:, :, None, None])

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise NotApplicable("a thumbnail has no feature pyramid")

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        raise NotApplicable("a thumbnail has no feature pyramid")
