"""What the encoders with weights of their own share: their recipe, and a pyramid from whatever maps a tower gives.

A tower works at the one size that its weights were made for; images of another size (dense tasks) are resized to it.
Whole images are squashed to the square, where the weights' own preprocessing would cut their sides off.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Container, Iterable, Sequence
from math import log2
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from prior_bench.encoders.image import STRIDES, resample
from prior_bench.errors import UserError
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import Recipe
from prior_bench.state_files import read_state
from prior_bench.weights import IMAGE, TEXT, Coverage

_WEIGHTS = ("*model*.safetensors", "*model*.bin")  # in a folder of OpenCLIP or transformers

# What encoders compute without, so that files may lack it: a vision encoder's pooler, the scale of a contrastive loss,
# what stands for hidden patches in pre-training.
_NOT_READ = re.compile(r"pooler\.|logit_(scale|bias)$|(.*\.)?mask_token$")


class PretrainedRecipe(Recipe):
    """`encoder` is the name that follows the method's colon. The weights' own configuration says what the image is, so
    that of `image` only what a family reads can be set, and is told."""

    image_settings: ClassVar[tuple[str, ...]] = ()  # that the family reads
    encoder: str = Field("", description="what follows the colon")
    trust_remote_code: bool = False  # whether code that lies beside the weights on the hub may run

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        ignored = sorted(self.image.model_fields_set - set(self.image_settings))
        if ignored:
            known = " and ".join(f"image.{name}" for name in self.image_settings)
            raise UserError(f"image.{ignored[0]} is not read by a method with weights of its own: size, mean, standard "
                            "deviation and interpolation are those that the weights were made for", where="--set",
                            expected=f"of image, {known or 'nothing'}", fix="leave it out")
        return self

    @model_serializer(mode="wrap")
    def _what_is_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return values | {"image": {k: v for k, v in values["image"].items() if k in self.image.model_fields_set}}


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


def filled(model: nn.Module, image: str, absent: Container[str] = (), unexpected: Iterable[str] = ()) -> Coverage:
    """What files filled, of all that was learnt and is read here (integers are tables that code makes). Keys of the
    image encoder start with `image`, the others are the text encoder's."""
    learnt = [key for key, value in model.state_dict().items()
              if value.is_floating_point() and not _NOT_READ.match(key)]
    parts = {IMAGE: [key for key in learnt if key.startswith(image)],
             TEXT: [key for key in learnt if not key.startswith(image)]}
    expected = {part: len(keys) for part, keys in parts.items() if keys}
    loaded = {part: sum(key not in absent for key in parts[part]) for part in expected}
    return Coverage(loaded, expected, tuple(key for key in learnt if key in absent), tuple(sorted(unexpected)))


def missing(family: str, name: str, error: Exception, expected: str, fix: str = "", local: Path | None = None
            ) -> UserError:
    """The error of an encoder that cannot be had. `local` is the file or folder that it was to come from, if there is
    one; a file there that cannot be read at all is told in its place."""
    if local is not None and not local.exists() and _is_path(name):
        return UserError(f"the folder or file of {family} does not exist", where=name, expected=expected,
                         fix="check the path")
    if local is None or not local.exists():
        return UserError(f"the encoder {name!r} of {family} could not be loaded: {_reason(error)}", where="--method",
                         expected=expected,
                         fix=fix or "check the name; without network, give the path of a local file or folder")
    for file in [local] if local.is_file() else sorted(p for pattern in _WEIGHTS for p in local.glob(pattern)):
        read_state(file)
    return UserError(f"{family} cannot load the encoder {name!r}: {_reason(error)}", where=str(local),
                     expected=expected, fix=fix or "check that its files are complete and belong together; "
                                                   "`prior-bench weights inspect FILE` says what one holds")


def _is_path(name: str) -> bool:
    """Names on the hub have at most one slash, inside."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):  # torch advises to run what is in it
        return "its weights hold more than tensors"
    return shorten(str(error), 200) or type(error).__name__
