"""A small method that really reads the toy images and reports, for the tests of features and tasks.

Its joint space has one axis a shape and one a place: an image stands on an axis by how bright it is where the toy
dataset draws that thing, a text by what its sentences say. Its map is a convolution laid out as channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.method import ImageFeatures, Method, TextFeatures
from prior_bench.recipes import Recipe
from prior_bench.types import ImageInput

SPOTS = ((19, 19), (22, 45), (48, 26))  # centres (y, x) of disc, bar and cross at 64 px
WORDS = ("disc", "bar", "cross", "upper", "middle", "lower")


class PixelMethod(Method):
    name = "pixels"
    recipe_class = Recipe

    def __init__(self, seed: int = 0):
        super().__init__()
        self.image_input = ImageInput(size=64)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.image_encoder = nn.Sequential(nn.Conv2d(1, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU())
        self.encoded: list[int] = []  # sizes of the batches that were encoded
        self.eval()

    @classmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None,
                    tokenizer: Path | None = None) -> PixelMethod:
        return cls()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        self.encoded.append(len(images))
        shapes = [images[:, 0, y - 3 : y + 4, x - 3 : x + 4].mean(dim=(1, 2)) for y, x in SPOTS]
        places = [images[:, 0, int((0.1 + 0.35 * p) * 64) :][:, :4, -8:].mean(dim=(1, 2)) for p in range(3)]
        joint = F.normalize(torch.stack([*shapes, *places], dim=1).float() + 0.5, dim=1)
        return ImageFeatures(joint, self.image_encoder(images).flatten(1)[:, :, None, None])

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        self.encoded.append(len(texts))
        vectors = torch.zeros(len(texts), len(WORDS))
        for row, text in zip(vectors, texts, strict=True):
            for sentence in text.lower().split("."):
                sign = -1.0 if sentence.strip().startswith("no ") else 1.0
                for axis, word in enumerate(WORDS):
                    row[axis] += sign * (word in sentence)
        return TextFeatures(F.normalize(vectors + 1e-3, dim=1))

    def local_score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        return self.encode_image(images).joint[:, :3] @ self.encode_text(texts).joint[:, :3].T  # shapes alone

    def paper_zero_shot(self, images: Iterable[Tensor], classes: Sequence[str]) -> Tensor:
        texts = self.encode_text([f"{name} is observed" for name in classes]).joint
        return torch.cat([self.encode_image(batch).joint @ texts.T for batch in images]).softmax(dim=1)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise NotImplementedError

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        return (4, 4, 4, 4)
