"""`timm:NAME`: any image encoder of timm with its pretrained weights. Vision only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from torch import Tensor

from prior_bench.encoders.image import ImageEncoder, image_input
from prior_bench.errors import unknown_name
from prior_bench.methods.pretrained.towers import PretrainedRecipe, Tower
from prior_bench.recipes import ImageEncoderSpec, Recipe


class TimmRecipe(PretrainedRecipe):
    image_settings: ClassVar[tuple[str, ...]] = ("weights", "allow_partial")


class Timm(Tower):
    """The encoder is that of every method here, with the input that timm states for the weights; it takes any size."""

    name = "timm"
    title = "timm"
    has_text = False
    recipe_class: ClassVar[type[Recipe]] = TimmRecipe

    def __init__(self, recipe: PretrainedRecipe):
        super().__init__()
        import timm

        config: Any = None
        with suppress(RuntimeError):  # an unknown tag of a known encoder
            config = timm.get_pretrained_cfg(recipe.encoder)
        if config is None or not config.has_weights:
            raise unknown_name("pretrained encoder of timm", recipe.encoder, timm.list_pretrained(), where="--method",
                               see="timm.list_pretrained()")
        self.recipe = recipe
        weights = recipe.image.weights if "weights" in recipe.image.model_fields_set else "hub"
        spec = ImageEncoderSpec(name=recipe.encoder, weights=weights, channels=3, size=config.input_size[-1],
                                mean=config.mean, std=config.std, allow_partial=recipe.image.allow_partial)
        self.image_input = image_input(spec, config.interpolation)
        self.image_encoder = ImageEncoder(spec)

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        return [self.image_encoder(images)]

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.image_encoder.pyramid(images)

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        return self.image_encoder.pyramid_channels
