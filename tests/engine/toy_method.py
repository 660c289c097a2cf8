"""A tiny method for the engine's tests: a convolution, a bag of words, dropout, InfoNCE. Loaded as a plug-in file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.method import ImageFeatures, Method, Sample, StudyView
from prior_bench.recipes import Recipe, Stage, Strict, Training
from prior_bench.types import ImageInput


class ToyRecipe(Recipe):
    class Image(Strict):
        weights: str = "random"
        size: int = 16

    image: Image = Image()
    dropout: float = 0.2


def toy_recipe(**training: object) -> ToyRecipe:
    settings = {"batch": 8, "epochs": 4, "stages": (Stage(share=0.5, lr=5e-3, warmup=0.2), Stage(share=0.5, lr=2e-3)),
                "weight_decay": 0.01, "clip": 1.0} | training
    return ToyRecipe(text=None, width=8, training=Training(**settings))


class ToyMethod(Method):
    name = "toy-method"
    recipe_class: ClassVar[type[Recipe]] = ToyRecipe

    def __init__(self, recipe: ToyRecipe, words: Sequence[str]):
        super().__init__()
        self.image_input = ImageInput(size=recipe.image.size)
        self.words = tuple(words)
        self.image_encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.image_head = nn.Linear(8 * (recipe.image.size // 4) ** 2, recipe.width)
        self.text_encoder = nn.Linear(len(self.words), recipe.width)
        self.late = nn.Linear(recipe.width, recipe.width)  # unused in the first stage, as PRIOR's decoders are
        self.dropout = nn.Dropout(recipe.dropout)
        self.second_stage_from = recipe.training.stages[0].share
        self.steps_seen: list[float] = []

    @classmethod
    def from_recipe(cls, recipe: ToyRecipe, texts: Iterable[str] | None = None,
                    tokenizer: Path | None = None) -> ToyMethod:
        if tokenizer is not None:
            return cls(recipe, json.loads((tokenizer / "words.json").read_text()))
        return cls(recipe, sorted({word for text in texts or [] for word in text.split()}))

    def save_tokenizer(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps(self.words))

    def encode_image(self, images: Tensor) -> ImageFeatures:
        maps = self.image_encoder(images)
        return ImageFeatures(F.normalize(self.image_head(self.dropout(maps.flatten(1))), dim=1), maps)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        raise NotImplementedError

    @property
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        return (8, 8, 8, 8)

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        image = study.images[rng.integers(len(study.images))]
        image = np.roll(image, int(rng.integers(-1, 2)), axis=1)
        present = set(study.report.text.split())
        return {"image": image, "words": np.array([word in present for word in self.words], np.float32)}

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return {"images": torch.from_numpy(np.stack([s["image"] for s in samples]))[:, None],
                "words": torch.from_numpy(np.stack([s["words"] for s in samples]))}

    def losses(self, batch: dict[str, Tensor], progress: float) -> dict[str, tuple[float, Tensor]]:
        image = self.encode_image(self.normalise(batch["images"])).joint
        text = F.normalize(self.text_encoder(self.dropout(batch["words"])), dim=1)
        here = torch.arange(len(image), device=image.device)
        terms = {"global": (1.0, F.cross_entropy(5 * image @ text.T, here))}
        if progress >= self.second_stage_from:
            terms["late"] = (0.5, (self.late(text) - image).square().mean())
        return terms

    def param_groups(self) -> list[dict]:
        slow = list(self.text_encoder.parameters())
        rest = [p for p in self.parameters() if all(p is not q for q in slow)]
        return [{"params": rest}, {"params": slow, "lr_scale": 0.5, "weight_decay": 0.0}]

    def after_step(self, progress: float) -> None:
        self.steps_seen.append(progress)
        self.late.weight.clamp_(-0.5, 0.5)
