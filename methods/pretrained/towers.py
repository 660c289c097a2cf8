"""What the encoders with weights of their own share: their recipe, and a pyramid from whatever maps a tower gives.

A tower works at the one size that its weights were made for; images of another size (dense tasks) are resized to it.
Whole images are squashed to the square, where the weights' own preprocessing would cut their sides off.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import log2
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prior_bench.encoders.image import STRIDES, resample
from prior_bench.errors import UserError
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import Recipe
from prior_bench.state_files import read_state

_WEIGHTS = ("*model*.safetensors", "*model*.bin")  # in a folder of OpenCLIP or transformers


class PretrainedRecipe(Recipe):
    """`encoder` is the name that follows the method's colon."""

    encoder: str = Field("", description="what follows the colon")
    trust_remote_code: bool = False  # whether code that lies beside the weights on the hub may run


class Tower(Method):
    """Base of the three families. Subclasses set `image_input` and fill `maps` and, with text, the rest."""

    pretrains = False
    recipe_class: ClassVar[type[Recipe]] = PretrainedRecipe

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Self:
        assert isinstance(recipe, PretrainedRecipe)
        if not recipe.encoder:
            raise UserError(f"which encoder of {cls.name} is not said", where="--method",
                            expected=f"{cls.name}:NAME", fix="give a name, as timm:resnet50.a1_in1k, "
                                                             "hf:microsoft/rad-dino or open-clip:ViT-B-32/openai")
        return cls(recipe)

    @abstractmethod
    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Feature maps (B, C_i, h_i, w_i) of normalised images at the tower's size, from the first to the last."""

    def encode_image(self, images: Tensor) -> ImageFeatures:
        return ImageFeatures(None, self.maps(images)[-1])

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = (self.image_input.size,) * 2
        own = images if images.shape[-2:] == size else F.interpolate(images, size, mode="bilinear", antialias=True)
        maps = self.maps(own)
        height, width = images.shape[-2:]
        p4, p8, p16, p32 = (resample(maps[level], (height // stride, width // stride))
                            for level, stride in zip(self.levels, STRIDES, strict=True))
        return p4, p8, p16, p32

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        c4, c8, c16, c32 = (self._channels[level] for level in self.levels)
        return c4, c8, c16, c32

    def probe(self) -> None:
        """Find out, on one black image, which map serves which stride: the last of those that are nearest."""
        size = self.image_input.size
        with torch.inference_mode():
            maps = self.maps(torch.zeros(1, self.image_input.channels, size, size))
        strides = [size / m.shape[-1] for m in maps]
        self._channels = [m.shape[1] for m in maps]
        self.levels = [min(range(len(maps)), key=lambda i: (abs(log2(strides[i] / s)), -i)) for s in STRIDES]


def missing(family: str, name: str, error: Exception, expected: str, fix: str = "", local: Path | None = None
            ) -> UserError:
    """The error of an encoder that cannot be had. `local` is the file or folder that it was to come from, if there is
    one; a file there that cannot be read at all is told in its place."""
    if local is None or not local.exists():
        return UserError(f"the encoder {name!r} of {family} could not be loaded: {_reason(error)}", where="--method",
                         expected=expected,
                         fix=fix or "check the name; without network, give the path of a local file or folder")
    for file in [local] if local.is_file() else sorted(p for pattern in _WEIGHTS for p in local.glob(pattern)):
        read_state(file)
    return UserError(f"{family} cannot load the encoder {name!r}: {_reason(error)}", where=str(local),
                     expected=expected, fix=fix or "check that its files are complete and belong together; "
                                                   "`prior-bench weights inspect FILE` says what one holds")


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):  # torch advises to run what is in it
        return "its weights hold more than tensors"
    return shorten(str(error), 200) or type(error).__name__
