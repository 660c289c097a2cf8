"""A method that is an image encoder alone, as the reference rows are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from prior_bench.encoders.image import ImageEncoder, image_input
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import Recipe


class EncoderOnly(Method):
    """The recipe's image encoder with the weights that the recipe names."""

    has_text = False
    pretrains = False
    recipe_class: ClassVar[type[Recipe]] = Recipe

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.image_input = image_input(recipe.image)
        self.image_encoder = ImageEncoder(recipe.image)

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Self:
        return cls(recipe)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        return ImageFeatures(None, self.image_encoder(images))

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.image_encoder.pyramid(images)

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        return self.image_encoder.pyramid_channels
