"""Reference row `imagenet`: the track's image encoder with timm's ImageNet weights, from which most methods start.

The recipes fetch them from the hub; `--set image.weights=FILE` takes a local file in their place. Mean, standard
deviation and interpolation are those of timm's configuration of the weights; the size is the track's.
"""

from __future__ import annotations

from typing import Any

import timm

from prior_bench.encoders.alone import EncoderOnly
from prior_bench.encoders.image import image_input
from prior_bench.recipes import Recipe


class Imagenet(EncoderOnly):
    name = "imagenet"
    title = "ImageNet weights"

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        config: Any = timm.get_pretrained_cfg(recipe.image.name)
        if config is not None and recipe.image.channels == len(config.mean):
            stated = recipe.image.model_copy(update={"mean": config.mean, "std": config.std})
            self.image_input = image_input(stated, config.interpolation)
